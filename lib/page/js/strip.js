// Every slice of the case side by side: the model's scores above, the tags of each class below, and where the reader is.

import { rangesOf } from "./marks.js";

const SCORES_PX = 34;
const ROW_PX = 9;
const SIDE_PX = 22;
const NUMBERS_PX = 15;

/**
 * @typedef {{
 *   numSlices: number, slice: number, ends: string[], scores: number[] | null,
 *   rows: {color: string, isActive: boolean, tag: import("./marks.js").Tag, draft: import("./marks.js").Draft | null}[],
 * }} Shown
 */

export class Strip {
  /** @param {HTMLElement} element a slider @param {(slice: number) => void} onSlice */
  constructor(element, onSlice) {
    this.element = element;
    this.canvas = element.querySelector("canvas");
    this.onSlice = onSlice;
    /** @type {Shown | null} */
    this.shown = null;
    element.addEventListener("pointerdown", (event) => {
      element.setPointerCapture(event.pointerId);
      this.#point(event);
    });
    element.addEventListener("pointermove", (event) => {
      if (event.buttons & 1) this.#point(event);
    });
    new ResizeObserver(() => this.draw()).observe(element);
  }

  /** @param {Shown | null} shown @param {string} words what a screen reader says of the slice */
  show(shown, words) {
    this.shown = shown;
    this.element.hidden = !shown || shown.numSlices < 2;
    if (!shown) return;
    this.element.setAttribute("aria-valuemax", String(shown.numSlices - 1));
    this.element.setAttribute("aria-valuenow", String(shown.slice));
    this.element.setAttribute("aria-valuetext", words);
    this.draw();
  }

  draw() {
    if (!this.shown || this.element.hidden) return;
    const { rows } = this.shown;
    const style = getComputedStyle(this.element);
    const width = this.element.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    const height = SCORES_PX + rows.length * ROW_PX + NUMBERS_PX + 4;
    const scale = window.devicePixelRatio || 1;
    this.canvas.style.height = `${height}px`;
    [this.canvas.width, this.canvas.height] = [Math.round(width * scale), Math.round(height * scale)];
    const context = this.canvas.getContext("2d");
    context.scale(scale, scale);
    this.#paint(context, width, height, (name) => style.getPropertyValue(name).trim());
  }

  #paint(context, width, height, color) {
    const { numSlices, slice, ends, scores, rows } = this.shown;
    const cell = (width - 2 * SIDE_PX) / numSlices;
    const left = (index) => SIDE_PX + index * cell;
    const gap = cell > 4 ? 1 : 0;

    context.fillStyle = color("--background");
    context.fillRect(SIDE_PX, 0, cell * numSlices, SCORES_PX);
    context.fillStyle = color("--score");
    scores?.forEach((score, index) => {
      const tall = Math.max(score * (SCORES_PX - 2), 1);
      context.fillRect(left(index), SCORES_PX - tall, cell - gap, tall);
    });

    if (scores) {
      context.fillStyle = color("--line");
      context.fillRect(SIDE_PX, SCORES_PX / 2, cell * numSlices, 1); // one half: of two minds
    }

    rows.forEach((row, number) => {
      const top = SCORES_PX + 2 + number * ROW_PX;
      const middle = top + ROW_PX / 2;
      context.fillStyle = color(row.isActive ? "--line" : "--raised");
      context.fillRect(SIDE_PX, top + 1, cell * numSlices, ROW_PX - 2);
      context.fillStyle = context.strokeStyle = row.color;
      for (const [first, last] of rangesOf(row.tag)) context.fillRect(left(first), top + 1, (last - first + 1) * cell, ROW_PX - 2);
      if (row.tag === false || row.tag === true) {
        // Absent is a thin line, present somewhere a dashed one: told apart without colour.
        context.lineWidth = row.tag ? 4 : 1.5;
        context.setLineDash(row.tag ? [10, 6] : []);
        context.beginPath();
        context.moveTo(SIDE_PX, middle);
        context.lineTo(SIDE_PX + cell * numSlices, middle);
        context.stroke();
        context.setLineDash([]);
      }
      context.fillStyle = color("--draft");
      for (const end of [row.draft?.first, row.draft?.last]) {
        if (typeof end === "number") context.fillRect(left(end), top - 1, Math.max(cell, 2), ROW_PX + 2);
      }
    });

    context.strokeStyle = color("--text");
    context.lineWidth = 2;
    context.strokeRect(left(slice) - 1, 1, Math.max(cell, 2) + 2, height - NUMBERS_PX - 2);

    context.fillStyle = color("--text");
    context.font = "600 12px system-ui, sans-serif";
    context.textBaseline = "middle";
    context.fillText(ends[0], 4, SCORES_PX / 2);
    context.textAlign = "right";
    context.fillText(ends[1], width - 4, SCORES_PX / 2);
    context.fillStyle = color("--muted");
    context.textBaseline = "bottom";
    context.fillText(String(numSlices - 1), SIDE_PX + cell * numSlices, height);
    context.textAlign = "left";
    context.fillText("0", SIDE_PX, height);
    context.textAlign = "center";
    context.fillStyle = color("--text");
    const here = left(slice) + cell / 2;
    if (here > SIDE_PX + 24 && here < width - SIDE_PX - 34) context.fillText(String(slice), here, height);
  }

  #point(event) {
    if (!this.shown) return;
    const box = this.canvas.getBoundingClientRect();
    const share = (event.clientX - box.left - SIDE_PX) / (box.width - 2 * SIDE_PX);
    this.onSlice(Math.floor(share * this.shown.numSlices));
  }
}
