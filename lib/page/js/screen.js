// Everything on the page that follows from what is known, written anew after each change.

import { address } from "./api.js";
import { nameOf } from "./cases.js";
import { describe, percent } from "./opinion.js";
import { showClasses } from "./panel.js";

const $ = (id) => document.getElementById(id);

/** What can be done without a case. */
export const WITHOUT_CASE = new Set(["next", "previous", "cases", "opinion", "train", "user", "help"]);

/**
 * @typedef {{
 *   shown: import("./case.js").Case | null, active: string, server: object, user: string, saver: import("./saver.js").Saver,
 *   viewer: import("./viewer.js").Viewer, opinions: import("./opinion.js").Opinions, strip: import("./strip.js").Strip,
 *   choose: (name: string) => void,
 * }} Page
 */

/** @param {Page} page */
export function showPage(page) {
  showCase(page);
  showImageText(page);
  showPanel(page);
  showSaved(page.saver);
  showServer(page);
}

/** What is being waited for, over the image. @param {string} text */
export function busy(text) {
  $("loading").textContent = text;
}

/** The colour of a class, as CSS writes it. @param {number} index */
export function cssColor(index) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--class-${(index % 9) + 1}`).trim();
}

function showServer({ server, user }) {
  const { progress, model } = server;
  const [tagged, all] = [progress?.complete ?? 0, progress?.images ?? 0];
  [$("progress").max, $("progress").value] = [Math.max(all, 1), tagged];
  $("progress-text").textContent = `${tagged} / ${all} tagged`;
  $("model").textContent = model ? `Model ${model.name}, version ${model.version}.` : "No model yet.";
  $("user").textContent = user || "No name";
}

function showSaved(saver) {
  const isUnsaved = saver.isUnsaved();
  const count = saver.queue.length;
  const text = isUnsaved ? `${count} tag${count > 1 ? "s" : ""} not saved` : saver.nextId > 1 ? "All saved" : "";
  if ($("saved").textContent !== text) $("saved").textContent = text;
  $("saved").classList.toggle("is-unsaved", isUnsaved && saver.isFailing);
  $("saved").classList.toggle("is-saved", !isUnsaved);
}

function showCase({ shown }) {
  const about = shown?.about;
  for (const button of document.querySelectorAll("button[data-action]")) {
    button.disabled = !shown && !WITHOUT_CASE.has(button.dataset.action);
    if ("volume" in button.dataset) button.hidden = Boolean(shown?.isPicture);
  }
  $("case-name").textContent = about ? nameOf(about) : "Tagging";
  $("case-name").title = about?.image ?? "";
  document.title = about ? `${nameOf(about)} – Tagging` : "Tagging";
  const size = about ? `${about.shape.join(" × ")} voxels, ${about.spacing_mm.map((mm) => mm.toFixed(2)).join(" × ")} mm` : "";
  $("case-about").textContent = size;
  $("ohif").hidden = !about?.ohif;
  if (about?.ohif) $("ohif").href = address(about.ohif);
}

function showImageText({ shown, active, viewer, opinions, strip }) {
  if (!shown) {
    for (const id of ["slice-text", "score-text", "window-text", "overlay-text"]) $(id).textContent = "";
    return strip.show(null, "");
  }
  const { slice, numSlices } = viewer;
  const scores = opinions.scores(active);
  const { level, width } = viewer.window;
  const zoom = viewer.zoom > 1 ? `, zoom ${viewer.zoom.toFixed(1)}` : "";
  $("slice-text").textContent = shown.isPicture ? "" : `Slice ${slice} of 0–${numSlices - 1}`;
  $("score-text").textContent = scores ? `${active} here: ${percent(scores[slice])}` : "";
  $("window-text").textContent = `Level ${short(level)}, window ${short(width)}${zoom}`;
  $("overlay-text").textContent = opinions.isShown && opinions.opinion ? `Overlay: ${opinions.kind}` : "";
  const words = `slice ${slice} of 0 to ${numSlices - 1}${scores ? `, ${active} ${percent(scores[slice])}` : ""}`;
  const rows = shown.about.classes.map((name, index) => ({
    color: cssColor(index),
    isActive: name === active,
    tag: shown.tag(name),
    draft: shown.draft(name),
  }));
  strip.show({ numSlices, slice, ends: viewer.ends, scores, rows }, words);
}

function showPanel({ shown, active, server, viewer, opinions, choose }) {
  const rows = (shown?.about.classes ?? server.classes).map((name) => ({
    name,
    isActive: name === active,
    tag: shown?.tag(name),
    draft: shown?.draft(name),
    isUnsaved: Boolean(shown?.isUnsaved(name)),
    details: shown?.details[name],
  }));
  showClasses(rows, Boolean(shown?.isPicture), choose);
  $("active-class").textContent = active;
  $("present-text").textContent = shown?.isPicture ? "Present" : "Present somewhere";
  $("opinion-text").textContent = shown ? describe(opinions, active, viewer.slice) : "";
  $("opinion-button").setAttribute("aria-pressed", String(opinions.isShown));
  $("overlay-button").setAttribute("aria-pressed", String(opinions.isShown && opinions.kind !== "none"));
  for (const id of ["accept", "reject"]) $(id).hidden = !opinions.canJudge || !opinions.isShown;
}

/** A number of at most four digits or so. */
function short(value) {
  return Math.abs(value) >= 100 ? String(Math.round(value)) : String(Number(value.toPrecision(3)));
}
