// One case as it is tagged: what the server holds, what is on its way there, and what is half marked.

import { ask, part, untilAnswered } from "./api.js";
import { anotherRange, isSame, markEnd } from "./marks.js";
import { lastAction } from "./saver.js";

export class Case {
  /** @param {object} about what `/tagging/case/<image>` says @param {import("./saver.js").Saver} saver */
  constructor(about, saver) {
    this.about = about;
    this.saver = saver;
    /** @type {Map<string, import("./marks.js").Draft>} by class */
    this.drafts = new Map();
    this.take(about);
  }

  /** Asks for a case until the server answers. */
  static async load(image, saver, { signal, onFailure }) {
    const about = await untilAnswered(() => ask("GET", `tagging/case/${part(image)}`, { signal, long: true }), { signal, onFailure });
    return new Case(about, saver);
  }

  get image() {
    return this.about.image;
  }

  get numSlices() {
    return this.about.num_slices;
  }

  /** A single slice, such as a photograph: present or absent is all there is to say. */
  get isPicture() {
    return this.numSlices === 1;
  }

  /** Takes tags and who gave them from an answer of the server. */
  take({ tags, details }) {
    this.tags = { ...this.tags, ...tags };
    this.details = { ...this.details, ...details };
  }

  /** Asks the server for the tags again. */
  async refresh() {
    this.take(await ask("GET", `tagging/case/${part(this.image)}`));
  }

  /** The tag of a class as the reader has set it. */
  tag(name) {
    const pending = this.saver.pending(this.image, name);
    return pending === undefined ? this.tags[name] : pending;
  }

  isUnsaved(name) {
    return this.saver.pending(this.image, name) !== undefined;
  }

  draft(name) {
    return this.drafts.get(name) ?? null;
  }

  get isComplete() {
    return this.about.classes.every((name) => this.tag(name) !== null && this.tag(name) !== undefined);
  }

  /** Marks an end of a range; stores the tag once it has both. Returns whether it has. */
  mark(name, end, slice, user) {
    const { draft, tag } = markEnd(this.tag(name), this.draft(name), end, slice);
    if (tag === undefined) {
      this.drafts.set(name, draft);
      return false;
    }
    this.drafts.delete(name);
    if (!isSame(tag, this.tag(name))) this.saver.add({ image: this.image, name, value: tag, user, draft });
    return true;
  }

  /** Begins another range. */
  begin(name) {
    this.drafts.set(name, anotherRange(this.tag(name)));
  }

  /** Sets a tag as a whole. Returns whether that changes anything. */
  set(name, value, user) {
    this.drafts.delete(name);
    if (isSame(value, this.tag(name))) return false;
    this.saver.add({ image: this.image, name, value, user });
    return true;
  }

  /** A tag was refused: the range that it was made of may still be marked otherwise. */
  refused(entry) {
    if (entry.draft) this.drafts.set(entry.name, entry.draft);
  }

  /** The last action on this case that was not taken back, or null. */
  lastAction() {
    return lastAction(this.image);
  }

  /** Takes an action back, unless another came in between. */
  async undo(action, user) {
    this.take(await ask("POST", `tags/${part(this.image)}/undo`, { query: { user, action } }));
  }
}
