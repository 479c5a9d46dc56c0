// The classes of the case: what is tagged, by whom, and what is not saved.

import { draftInWords, inWords } from "./marks.js";

const place = document.getElementById("classes");

/**
 * @typedef {{
 *   name: string, isActive: boolean, tag: import("./marks.js").Tag, isUnsaved: boolean,
 *   draft: import("./marks.js").Draft | null, details: {user: string, time: string, provenance: string} | undefined,
 * }} Row
 */

/**
 * Shows the classes; elements are kept, so that the one in focus stays in focus.
 * @param {Row[]} rows
 * @param {boolean} isPicture
 * @param {(name: string) => void} onChoose
 */
export function showClasses(rows, isPicture, onChoose) {
  while (place.children.length > rows.length) place.lastElementChild.remove();
  rows.forEach((row, index) => {
    const button = place.children[index] ?? place.appendChild(makeRow(index));
    button.onclick = () => onChoose(row.name);
    button.dataset.name = row.name;
    button.setAttribute("aria-checked", String(row.isActive));
    button.classList.toggle("is-unsaved", row.isUnsaved);
    const isOpen = row.tag === null || row.tag === undefined;
    set(button, ".name", row.name);
    set(button, ".value", inWords(row.tag, isPicture)).classList.toggle("is-open", isOpen);
    set(button, ".mark", row.isUnsaved ? "not saved" : "");
    set(button, ".draft", draftInWords(row.draft));
    set(button, ".by", isOpen || row.isUnsaved ? "" : byWhom(row.details));
  });
}

/** Who tagged, when and how. */
function byWhom(details) {
  if (!details) return "";
  const how = details.provenance === "manual" ? "" : `, by ${details.provenance}`;
  return `${details.user}, ${shortTime(details.time)}${how}`;
}

/** A time as a reader writes it; the server's are UTC. @param {string} time */
export function shortTime(time) {
  return new Date(time).toLocaleString("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
}

function makeRow(index) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = `class color-${(index % 9) + 1}`;
  button.setAttribute("role", "radio");
  const key = document.createElement("kbd");
  key.textContent = index < 9 ? String(index + 1) : "";
  key.hidden = index >= 9;
  const parts = ["swatch", "name", "mark", "value", "draft", "by"].map((name) => {
    const part = document.createElement("span");
    part.className = name;
    return part;
  });
  button.append(key, ...parts);
  return button;
}

function set(button, selector, text) {
  const part = button.querySelector(selector);
  if (part.textContent !== text) part.textContent = text;
  part.hidden = text === "";
  return part;
}
