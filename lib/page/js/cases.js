// The list of cases, a page at a time: thousands are never in the page at once.

import { ask } from "./api.js";
import { inWords } from "./marks.js";
import { shortTime } from "./panel.js";
import { sayError } from "./say.js";

const PAGE = 50;
const dialog = document.getElementById("cases-dialog");
const query = document.getElementById("cases-query");
const state = document.getElementById("cases-state");
const list = document.getElementById("cases-list");
const count = document.getElementById("cases-count");
const before = document.getElementById("cases-before");
const after = document.getElementById("cases-after");

let offset = 0;
let found = 0;
let current = null;
let asked = 0;
let choose = () => {};

/** Opens the list. @param {string | null} image the case that is shown @param {(image: string) => void} onChoose */
export async function openCases(image, onChoose) {
  [current, choose, offset, query.value] = [image, onChoose, 0, ""];
  dialog.showModal();
  await load();
  if (!query.value && document.activeElement === query) focusOn(0); // unless somebody searches by now
}

async function load() {
  const number = ++asked;
  try {
    const reply = await ask("GET", "tagging/cases", { query: { query: query.value.trim(), state: state.value, offset, limit: PAGE } });
    if (number !== asked) return; // somebody has typed on
    found = reply.found;
    list.replaceChildren(...reply.cases.map(makeRow));
    const last = offset + reply.cases.length;
    count.textContent = found ? `${offset + 1}–${last} of ${found}${found < reply.total ? ` (${reply.total} in all)` : ""}` : "no such case";
    before.disabled = offset === 0;
    after.disabled = last >= found;
  } catch (error) {
    count.textContent = `The list cannot be read: ${error.message}`;
    sayError("The list of cases cannot be read", error);
  }
}

/** What a case is called on the screen: of a DICOM series its title, and enough of its long id to tell it from others. */
export function nameOf({ image, title }) {
  return title ? `${title} …${image.split("_")[0].slice(-6)}` : image;
}

function makeRow({ image, title, tags, users, time }) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  if (image === current) button.setAttribute("aria-current", "true");
  const tagged = Object.entries(tags).map(([name, tag]) => `${name}: ${inWords(tag)}`);
  const texts = [nameOf({ image, title }), tagged.join("; ") || "not tagged", users.length ? `${users.join(", ")} ${shortTime(time)}` : ""];
  button.append(
    ...texts.map((text, index) => {
      const part = document.createElement("span");
      part.textContent = text;
      part.title = index === 0 ? image : text;
      part.classList.toggle("muted", index > 0);
      return part;
    }),
  );
  button.addEventListener("click", () => {
    dialog.close();
    choose(image);
  });
  item.append(button);
  return item;
}

function rows() {
  return [...list.querySelectorAll("button")];
}

function focusOn(index) {
  const buttons = rows();
  (buttons[Math.min(Math.max(index, 0), buttons.length - 1)] ?? query).focus();
}

async function turn(step) {
  if (offset + step < 0 || offset + step >= found) return;
  offset += step;
  await load();
  focusOn(0);
}

async function search() {
  offset = 0;
  await load();
}

query.addEventListener("input", search);
state.addEventListener("change", search);
before.addEventListener("click", () => turn(-PAGE));
after.addEventListener("click", () => turn(PAGE));
dialog.addEventListener("keydown", (event) => {
  const index = rows().indexOf(document.activeElement);
  const moves = {
    ArrowDown: () => focusOn(index + 1),
    ArrowUp: () => (index === 0 ? query.focus() : focusOn(index - 1)),
    PageDown: () => turn(PAGE),
    PageUp: () => turn(-PAGE),
    Enter: () => focusOn(0),
  };
  const move = event.target === state || (index < 0 && event.key === "ArrowUp") ? undefined : moves[event.key];
  if (!move || (event.key === "Enter" && event.target !== query)) return;
  event.preventDefault();
  void move();
});
