// Writes tags, one after the other, until each is stored or refused; what is not stored yet outlives a reload.

import { ApiError, ask, part, untilAnswered } from "./api.js";
import { isSame } from "./marks.js";

const KEY = "tagging.unsaved";

/**
 * One tag on its way to the server; `draft` is the range that it was made of. With `wrong` it takes such a tag back, if that was stored.
 * @typedef {{
 *   id: number, image: string, name: string, value: import("./marks.js").Tag, user: string, draft?: import("./marks.js").Draft,
 *   wrong?: import("./marks.js").Tag,
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

  /**
   * Takes back the newest tag of an image that is not stored. One that was tried may have reached the server although no answer came: that
   * is looked up when the server answers again.
   * @param {string} image
   * @param {Record<string, import("./marks.js").Tag>} stored what the server is known to hold, by class
   * @returns {Entry | undefined} what was taken back
   */
  takeBack(image, stored) {
    const index = this.queue.findLastIndex((entry) => entry.image === image);
    const entry = this.queue[index];
    if (!entry || "wrong" in entry || (index === 0 && !this.isFailing)) return undefined;
    const back = { ...entry, id: this.nextId++, value: stored[entry.name] ?? null, wrong: entry.value, draft: undefined };
    this.queue.splice(index, 1, ...(index === 0 ? [back] : []));
    this.#changed();
    return entry;
  }

  async #sendFirst() {
    const entry = this.queue[0];
    const isWanted = () => this.queue[0] === entry;
    try {
      const reply = await untilAnswered(() => (isWanted() ? send(entry) : Promise.resolve(null)), {
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
function send(entry) {
  const { image, name, value, user } = entry;
  if ("wrong" in entry) return takeBack(entry);
  return ask("PUT", `tags/${part(image)}`, { query: { class: name }, json: { value, user } });
}

/** Undoes a tag that the server has, maybe more than once, because no answer had come. @param {Entry} entry */
async function takeBack({ image, name, wrong, user }) {
  for (;;) {
    const last = await lastAction(image, name);
    if (last?.user !== user || !isSame(last.value, wrong)) return ask("GET", `tags/${part(image)}`);
    await ask("POST", `tags/${part(image)}/undo`, { query: { user, action: last.action } });
  }
}

/** The last action on an image, or on a class of it, that was not taken back; null where there is none. @param {string} image */
export async function lastAction(image, name = undefined) {
  const { history } = await ask("GET", `tags/${part(image)}/history`);
  const undone = new Set(history.map((event) => event.undoes));
  const isOpen = (event) => event.undoes === null && !undone.has(event.action);
  const here = history.slice(history.findLastIndex((event) => event.undoes === event.action) + 1); // since another image had this name
  return here.findLast((event) => isOpen(event) && (name === undefined || event.class === name)) ?? null;
}

/** @returns {Entry[]} */
function restore() {
  try {
    return JSON.parse(sessionStorage.getItem(KEY) ?? "[]");
  } catch {
    return [];
  }
}
