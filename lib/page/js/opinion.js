// What the model thinks of the case: asked for in the background, shown unless the reader has switched it off.

import { ApiError, untilAnswered } from "./api.js";
import { accept, askModel, canJudge, mapOf, maskOf, reject } from "./results.js";

const KEY = "tagging.opinion";
/** Overlays in the order that a key goes through them; a map only where the server keeps one. */
const OVERLAYS = ["map", "mask", "none"];
const OVERLAY_KEY = "tagging.overlay";

export class Opinions {
  /**
   * @param {import("./viewer.js").Viewer} viewer
   * @param {(name: string) => number[]} colorOf red, green and blue of a class
   * @param {() => void} onChange
   */
  constructor(viewer, colorOf, onChange) {
    this.viewer = viewer;
    this.colorOf = colorOf;
    this.onChange = onChange;
    this.isShown = localStorage.getItem(KEY) !== "hidden";
    this.overlay = localStorage.getItem(OVERLAY_KEY) ?? OVERLAYS[0];
    this.close();
  }

  /** Forgets the case. */
  close() {
    this.asking?.abort();
    this.asking = new AbortController();
    /** @type {import("./results.js").Opinion | null} */
    this.opinion = null;
    this.text = "";
    this.canJudge = false;
    this.files = new Map();
    this.laid = "";
  }

  /**
   * Asks for the opinion of a case.
   * @param {{image: string, slicing_axis: number}} about
   * @param {string | undefined} task the model's best method; undefined while there is no model
   * @param {string} why there is none
   */
  async open(about, task, why) {
    this.close();
    this.about = about;
    Object.assign(this, { task, why });
    if (!this.isShown) return this.onChange();
    const { signal } = this.asking;
    try {
      if (!task) throw new ApiError(404, why);
      this.#tell("The model is looking at the case …");
      const onFailure = (error) => this.#tell(`No opinion yet, asked again: ${error.message}`);
      this.canJudge = await untilAnswered(() => canJudge(signal), { signal, onFailure });
      const opinion = await untilAnswered(() => askModel(task, about.image, signal), { signal, onFailure, maxPauseMs: 15_000 });
      if (opinion.axis !== about.slicing_axis) throw new ApiError(500, `it counts slices along axis ${opinion.axis}, tags along another`);
      this.opinion = opinion;
      this.#tell("");
      await this.lay();
    } catch (error) {
      if (!signal.aborted) this.#tell(`No opinion: ${error.message}`);
    }
  }

  /** Shows or hides everything that comes from the model. */
  toggle() {
    this.isShown = !this.isShown;
    localStorage.setItem(KEY, this.isShown ? "shown" : "hidden");
    if (this.isShown && !this.opinion && this.about) return void this.open(this.about, this.task, this.why);
    void this.lay();
    this.onChange();
  }

  /** Map, mask, nothing, and again. */
  changeOverlay() {
    const kinds = OVERLAYS.filter((kind) => kind !== "map" || this.hasMaps);
    this.overlay = kinds[(kinds.indexOf(this.kind) + 1) % kinds.length];
    localStorage.setItem(OVERLAY_KEY, this.overlay);
    void this.lay();
    this.onChange();
  }

  get hasMaps() {
    return Object.keys(this.opinion?.maps ?? {}).length > 0;
  }

  /** The overlay that is wanted, of those there are. */
  get kind() {
    return this.overlay === "map" && !this.hasMaps ? "mask" : this.overlay;
  }

  /** Scores of a class by slice, or null. @param {string} name */
  scores(name) {
    return (this.isShown && this.opinion?.sliceScores?.[name]) || null;
  }

  /** The class whose overlay is shown. @param {string} name */
  setClass(name) {
    this.name = name;
    void this.lay();
  }

  /** Puts the overlay that is wanted over the image; fetches it first if need be. */
  async lay() {
    const { signal } = this.asking;
    const wanted = this.isShown && this.opinion && this.kind !== "none" ? this.#key : "";
    if (wanted === this.laid) return;
    this.laid = wanted;
    try {
      const bytes = wanted ? await this.#file() : null;
      if (signal.aborted || this.laid !== wanted) return;
      await (wanted && this.kind === "mask" ? this.viewer.setMask(bytes, this.#looks()) : this.viewer.setMap(bytes));
    } catch (error) {
      if (!signal.aborted) this.#tell(`The overlay cannot be shown: ${error.message}`);
    }
    this.onChange();
  }

  #looks() {
    return Object.entries(this.opinion.labels).map(([name, number]) => ({ number, rgb: this.colorOf(name) }));
  }

  /** Which overlay is wanted: one mask for all classes, a map for each. */
  get #key() {
    return this.kind === "map" ? `map ${this.name}` : this.kind;
  }

  async #file() {
    const { signal } = this.asking;
    const { opinion, name } = this;
    const [isMap, key] = [this.kind === "map", this.#key];
    if (!this.files.has(key)) {
      const fetching = () => (isMap ? mapOf(opinion, name, signal) : maskOf(opinion, signal));
      this.files.set(key, await untilAnswered(fetching, { signal }));
    }
    return this.files.get(key);
  }

  /**
   * Accepts or rejects what is shown. A result is decided on once; after that (the tags were undone, say) a new one is made.
   * @param {"accept" | "reject"} verdict
   * @param {string} user
   */
  async judge(verdict, user) {
    if (this.opinion.isDecided) await this.open(this.about, this.task, this.why);
    const { opinion } = this; // another case may be open by the time of the answer
    if (!opinion) throw new Error(this.text);
    const reply = await (verdict === "accept" ? accept : reject)(opinion, user);
    opinion.isDecided = true;
    return reply;
  }

  #tell(text) {
    this.text = text;
    this.onChange();
  }
}

/** What the panel says of an opinion. @param {Opinions} opinions @param {string} name @param {number} slice */
export function describe(opinions, name, slice) {
  if (!opinions.isShown) return "Hidden. Press O to see it.";
  const { opinion } = opinions;
  if (!opinion || opinions.text) return opinions.text;
  const score = opinion.classScores?.[name];
  if (score === undefined) return `The model knows nothing of ${name}.`;
  const volume = opinion.volumesMl?.[name];
  const marked = volume === undefined ? "" : `, ${volume.toFixed(1)} ml marked`;
  const here = opinion.sliceScores?.[name]?.[slice];
  const warning = Object.hasOwn(opinion.warnings, name) ? `\nBeware: ${opinion.warnings[name]}` : "";
  return `${name}: ${percent(score)} in the image${marked}\nthis slice: ${percent(here)} (${opinion.model} ${opinion.version})${warning}`;
}

/** A probability in whole percent. */
export const percent = (value) => (typeof value === "number" ? `${Math.round(100 * value)} %` : "–");
