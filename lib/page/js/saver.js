// Writes tags, one after the other, until each is stored or refused; what is not stored yet outlives a reload.

import { ApiError, ask, part, untilAnswered } from "./api.js";

const KEY = "tagging.unsaved";

/**
 * One tag on its way to the server; `draft` is the range that it was made of.
 * @typedef {{
 *   id: number, image: string, name: string, value: import("./marks.js").Tag, user: string, draft?: import("./marks.js").Draft,
 * }} Entry
 */

export class Saver {
  /**
   * @param {{
   *   onChange: () => void,
   *   onStored: (entry: Entry, reply: object) => void,
   *   onRefused: (entry: Entry, error: Error) => void,
   *   onWaiting: (error: Error) => void,
   * }} listeners
   */
  constructor(listeners) {
    this.listeners = listeners;
    /** @type {Entry[]} the first one is on its way */
    this.queue = restore();
    this.isSending = false;
    /** Whether the first entry has failed and is tried again. */
    this.isFailing = false;
    this.nextId = Math.max(0, ...this.queue.map((entry) => entry.id)) + 1;
  }

  /** Adds a tag, and begins to send. @param {Omit<Entry, "id">} entry */
  add(entry) {
    this.queue.push({ ...entry, id: this.nextId++ });
    this.#changed();
    this.start();
  }

  /** Sends what is left, such as from before a reload. */
  async start() {
    if (this.isSending) return;
    this.isSending = true;
    while (this.queue.length) await this.#sendFirst();
    this.isSending = false;
  }

  /** The tag of a class that is on its way, or undefined. @param {string} image @param {string} name */
  pending(image, name) {
    return this.queue.findLast((entry) => entry.image === image && entry.name === name)?.value;
  }

  /** Whether something of an image, or of any, is not stored. @param {string} [image] */
  isUnsaved(image) {
    return this.queue.some((entry) => image === undefined || entry.image === image);
  }

  /** Takes back the newest tag of an image that was not sent yet. @param {string} image @returns {Entry | undefined} */
  takeBack(image) {
    const index = this.queue.findLastIndex((entry) => entry.image === image);
    if (index < 0 || (index === 0 && !this.isFailing)) return undefined;
    const [entry] = this.queue.splice(index, 1);
    this.#changed();
    return entry;
  }

  async #sendFirst() {
    const entry = this.queue[0];
    const isWanted = () => this.queue[0] === entry;
    try {
      const reply = await untilAnswered(() => (isWanted() ? put(entry) : Promise.resolve(null)), {
        onFailure: (error) => {
          this.isFailing = true;
          this.listeners.onWaiting(error);
          this.#changed();
        },
      });
      this.isFailing = false;
      if (!isWanted()) return;
      this.queue.shift();
      this.listeners.onStored(entry, reply);
    } catch (error) {
      this.isFailing = false;
      if (isWanted()) this.queue.shift();
      this.listeners.onRefused(entry, error instanceof ApiError ? error : new Error(`it could not be sent (${error})`));
    }
    this.#changed();
  }

  #changed() {
    try {
      sessionStorage.setItem(KEY, JSON.stringify(this.queue));
    } catch {
      // Storage is full or forbidden: the warning on leaving the page remains.
    }
    this.listeners.onChange();
  }
}

/** @param {Entry} entry */
function put({ image, name, value, user }) {
  return ask("PUT", `tags/${part(image)}`, { query: { class: name }, json: { value, user } });
}

/** @returns {Entry[]} */
function restore() {
  try {
    return JSON.parse(sessionStorage.getItem(KEY) ?? "[]");
  } catch {
    return [];
  }
}
