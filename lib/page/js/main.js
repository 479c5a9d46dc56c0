// The tagging page: wires the server, the viewer, the keys and the panels together.

import { ask, download, part, untilAnswered } from "./api.js";
import { Case } from "./case.js";
import { openCases } from "./cases.js";
import { actionOf, listKeys } from "./keys.js";
import { inWords } from "./marks.js";
import { Opinions, percent } from "./opinion.js";
import { Saver } from "./saver.js";
import { say, sayError, unsay } from "./say.js";
import { busy, cssColor, showPage, WITHOUT_CASE } from "./screen.js";
import { Strip } from "./strip.js";
import { Training } from "./training.js";
import { Viewer } from "./viewer.js";

const USER_KEY = "tagging.user";
const STATE_MS = 20_000;
const NOTCH_PX = 40;
const NOT_SAVED = "A tag is not saved yet, and is sent again";
const NO_SERVER = "Waiting for the server";
const $ = (id) => document.getElementById(id);

const viewer = new Viewer($("image"));
const saver = new Saver({ onChange: show, onStored, onRefused, onWaiting });
const opinions = new Opinions(viewer, colorOf, show);
const strip = new Strip($("strip"), goTo);
const training = new Training(takeState);

/** @type {Case | null} */
let shown = null;
let active = "";
let user = localStorage.getItem(USER_KEY) ?? "";
let server = { classes: [], model: null, progress: null, user: null };
let opening = new AbortController();
/** @type {AbortController | null} the server is choosing a case */
let choosing = null;
/** Images of which a tag was stored while they were not shown, since the last one was asked for. */
const storedUnseen = new Set();
let undoing = Promise.resolve();
let wheel = 0;
/** What must be pressed twice, because something would be lost or undone for somebody else. */
let asked = "";
/** Cases in the order they were opened, and which of them is shown. */
const visited = [];
let place = -1;

const ACTIONS = {
  "slice+1": () => goTo(viewer.slice + 1),
  "slice-1": () => goTo(viewer.slice - 1),
  "slice+10": () => goTo(viewer.slice + 10),
  "slice-10": () => goTo(viewer.slice - 10),
  "slice-first": () => goTo(0),
  "slice-last": () => goTo(viewer.numSlices - 1),
  "window-wider": () => viewer.changeWindow(1.12, 0),
  "window-narrower": () => viewer.changeWindow(1 / 1.12, 0),
  "level-brighter": () => viewer.changeWindow(1, -0.05),
  "level-darker": () => viewer.changeWindow(1, 0.05),
  "zoom-in": () => viewer.changeZoom(1.2),
  "zoom-out": () => viewer.changeZoom(1 / 1.2),
  "look-up": () => viewer.look(0, 0.1),
  "look-down": () => viewer.look(0, -0.1),
  "look-left": () => viewer.look(-0.1, 0),
  "look-right": () => viewer.look(0.1, 0),
  reset: () => viewer.resetView(),
  first: () => mark("first"),
  last: () => mark("last"),
  range: beginRange,
  absent: () => tag(false),
  present: () => tag(shown.isPicture ? [[0, 0]] : true),
  unknown: () => tag(null),
  undo,
  next: nextCase,
  previous: previousCase,
  cases: () => openCases(shown?.image ?? null, (image) => leaveTo("cases", () => open(image))),
  opinion: () => opinions.toggle(),
  overlay: () => opinions.changeOverlay(),
  highest,
  accept: () => judge("accept"),
  reject: () => judge("reject"),
  train: () => training.open(),
  user: askUser,
  help: () => $("help-dialog").showModal(),
};

async function begin() {
  listKeys($("help-keys"));
  listen();
  show();
  try {
    await viewer.start();
  } catch (error) {
    return sayError("This browser cannot show images (WebGL 2 is needed)", error);
  }
  await untilAnswered(refreshState, { onFailure: (error) => sayError(NO_SERVER, error) });
  if (!user && !server.user) await askUser();
  void saver.start();
  setInterval(() => refreshState().catch((error) => sayError(NO_SERVER, error)), STATE_MS);
  await openLink();
}

/** What the address asks for: an image, a study, or nothing in particular. */
async function openLink() {
  const query = new URLSearchParams(location.search);
  const [image, study] = [query.get("image"), query.get("study")];
  if (image) return open(image);
  if (!study) return nextCase();
  try {
    const { images } = await untilAnswered(() => ask("GET", `tagging/study/${part(study)}`), { onFailure: waiting });
    await open(images[0]);
    if (images.length > 1) say(`The study has ${images.length} series here; C lists the cases.`);
  } catch (error) {
    sayError("The study cannot be opened", error);
  }
}

/** Opens a case; one that is being opened is let go. */
async function open(image, { isReturn = false } = {}) {
  opening.abort();
  choosing?.abort();
  opening = new AbortController();
  const { signal } = opening;
  asked = "";
  shown = null;
  storedUnseen.clear();
  opinions.close();
  viewer.clear();
  viewer.draw();
  say("");
  busy(`Opening ${image} …`);
  show();
  try {
    const found = await Case.load(image, saver, { signal, onFailure: waiting });
    const onProgress = (received, total) => busy(`Loading ${image}: ${total ? percent(received / total) : `${received >> 20} MiB`}`);
    const fetching = () => download(found.about.volume, { signal, onProgress });
    const bytes = await untilAnswered(fetching, { signal, onFailure: waiting });
    await viewer.show(bytes, image, found.about.slicing_axis, found.numSlices, signal);
    while (!signal.aborted && storedUnseen.delete(image)) await untilAnswered(() => found.refresh(), { signal, onFailure: waiting });
    if (signal.aborted) return;
    enter(found, isReturn);
  } catch (error) {
    if (signal.aborted) return;
    busy("");
    sayError(`${image} cannot be opened`, error);
    show();
  }
}

/** Shows a case that has been loaded. */
function enter(found, isReturn) {
  shown = found;
  if (!isReturn) place = visited.push(found.image) - 1;
  const { classes } = found.about;
  if (!classes.includes(active)) active = classes[0] ?? "";
  history.replaceState(null, "", `?${new URLSearchParams({ image: found.image })}`);
  busy("");
  say(classes.length ? "" : "No class can be tagged: start the server with --classes NAME,NAME,... or publish a model", "error");
  goTo(Math.floor(found.numSlices / 2));
  opinions.setClass(active);
  void opinions.open(found.about, server.model?.methods[0], server.model_missing);
  $("stage").focus();
}

function goTo(slice) {
  if (!shown) return;
  viewer.goTo(slice);
  show();
}

function highest() {
  const scores = opinions.scores(active);
  if (!scores) return say("There is no opinion to go by.");
  goTo(scores.indexOf(Math.max(...scores)));
}

// Tags

function mark(end) {
  if (shown.isPicture) return tag([[0, 0]]);
  shown.mark(active, end, viewer.slice, userName());
  afterTag();
}

function beginRange() {
  if (shown.isPicture) return;
  shown.begin(active);
  say(`${active}: mark the first and the last slice of another range.`);
  show();
}

function tag(value) {
  shown.set(active, value, userName());
  afterTag();
}

function afterTag() {
  const words = inWords(shown.tag(active), shown.isPicture);
  const isDone = shown.isComplete && !shown.draft(active);
  say(shown.draft(active) ? "" : `${active}: ${words}.${isDone ? " Every class is tagged; N opens the next case." : ""}`);
  show();
}

/** Quick presses are one undo after the other. */
function undo() {
  undoing = undoing.then(undoOnce);
}

/** Takes back what was done last: what is half marked, then what is on its way, then what the server has. */
async function undoOnce() {
  const found = shown;
  if (!found) return;
  if (found.drafts.delete(active)) return say(`${active}: marks removed.`), show();
  const entry = saver.takeBack(found.image, found.tags);
  if (entry) return say(`${entry.name}: taken back before it was stored, so ${inWords(found.tag(entry.name), found.isPicture)}.`), show();
  if (saver.isUnsaved(found.image)) return say("The last tag is just being sent: press U again.");
  try {
    const last = await found.lastAction();
    if (!last) return say("There is nothing to undo on this case.");
    const isOther = last.user !== userName();
    if (isOther && asked !== `undo ${last.action}`) {
      asked = `undo ${last.action}`;
      return say(`The last tag is by ${last.user}: press U again to take it back.`);
    }
    asked = "";
    await found.undo(last.action, userName());
    say(`${last.class}: taken back, now ${inWords(found.tags[last.class], found.isPicture)}.`);
    void refreshState().catch(() => {});
  } catch (error) {
    sayError("Nothing was undone", error);
  }
  show();
}

async function judge(verdict) {
  const found = shown;
  if (!opinions.isShown || !opinions.opinion) return say("There is no opinion to accept or reject.");
  if (!opinions.opinion.id) return say("This server keeps no results, so that a mask cannot be accepted.");
  try {
    const reply = await opinions.judge(verdict, userName());
    await found.refresh();
    const tags = Object.entries(reply.tags ?? {}).map(([name, value]) => `${name} ${inWords(value, found.isPicture)}`);
    say(`${verdict === "accept" ? "Mask accepted" : "Rejected"}: ${tags.join(", ")}. U takes the tags back.`, "good");
    void refreshState().catch(() => {});
  } catch (error) {
    sayError(verdict === "accept" ? "Not accepted" : "Not rejected", error);
  }
  show();
}

function onStored(entry, reply) {
  if (shown?.image === entry.image) shown.take(reply);
  else storedUnseen.add(entry.image);
  unsay(NOT_SAVED);
  if (!saver.isUnsaved()) void refreshState().catch(() => {});
  show();
}

function onRefused(entry, error) {
  if (shown?.image === entry.image) shown.refused(entry);
  sayError(`Not saved (${entry.image}, ${entry.name} ${inWords(entry.value)})`, error);
  show();
}

function onWaiting(error) {
  sayError(NOT_SAVED, error);
}

// Cases

async function nextCase() {
  await leaveTo("next", async () => {
    if (place < visited.length - 1) return open(visited[++place], { isReturn: true });
    if (choosing && !choosing.signal.aborted) return; // another press asks for the same
    const { signal } = (choosing = new AbortController()); // aborted by whatever opens a case meanwhile
    busy("Choosing the next case …");
    try {
      const asking = () => ask("POST", "activelearning/uncertain", { json: { client_id: userName() }, signal });
      const { id } = await untilAnswered(asking, { signal, onFailure: waiting });
      choosing = null;
      busy("");
      if (id) return await leaveTo("next", () => open(id));
      say("No case is left: each has a tag for every class, or a final label. C lists them all.", "good");
    } catch (error) {
      if (signal.aborted) return;
      choosing = null;
      busy("");
      sayError("No next case", error);
    }
  });
}

async function previousCase() {
  if (!shown && place >= 0) return open(visited[place], { isReturn: true }); // instead of the one that is being opened
  if (place <= 0) return say("There is no case before this one; C lists them all.");
  await leaveTo("previous", () => open(visited[--place], { isReturn: true }));
}

/** Leaves the case, unless something is half marked: that is said first. */
async function leaveTo(action, go) {
  const [halfMarked] = shown?.drafts.keys() ?? [];
  if (halfMarked && asked !== action) {
    asked = action;
    return say(`${halfMarked} is half marked and not saved: mark its other end, or do the same again to leave.`, "error");
  }
  return go();
}

// Server

async function refreshState() {
  takeState(await ask("GET", "tagging/state"));
}

function takeState(state) {
  unsay(NO_SERVER);
  const before = server;
  server = state;
  if (state.user) user = state.user;
  training.take(state);
  const isOther = before.model?.version !== state.model?.version || before.model?.name !== state.model?.name;
  if (isOther && shown) void opinions.open(shown.about, state.model?.methods[0], state.model_missing);
  show();
}

function waiting(error) {
  sayError("Asked again until the server answers", error);
}

function userName() {
  return user || "unknown";
}

function askUser() {
  if (server.user) return say(`You are logged in as ${server.user}.`);
  const dialog = $("user-dialog");
  $("user-name").value = user;
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      user = $("user-name").value.trim() || user;
      localStorage.setItem(USER_KEY, user);
      show();
      $("stage").focus();
      resolve();
    }, { once: true });
  });
}

// What is seen

/** Red, green and blue of a class. */
function colorOf(name) {
  const hex = cssColor(Math.max((shown?.about.classes ?? []).indexOf(name), 0));
  return [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
}

function show() {
  showPage({ shown, active, server, user, saver, viewer, opinions, strip, choose });
}

function choose(name) {
  active = name;
  opinions.setClass(name);
  show();
}

// What is done

/** @param {string} action @param {string} [key] */
function act(action, key) {
  if (action === "class") {
    const name = shown?.about.classes[Number(key) - 1];
    if (name) choose(name);
    return;
  }
  if (!shown && !WITHOUT_CASE.has(action)) return;
  if (asked && !["undo", "next", "previous", "cases"].includes(action)) asked = "";
  const button = document.querySelector(`button[data-action="${action}"]`);
  if (button?.disabled) return;
  button?.classList.remove("is-pressed");
  requestAnimationFrame(() => button?.classList.add("is-pressed"));
  void ACTIONS[action]();
  show();
}

function listen() {
  document.addEventListener("keydown", (event) => {
    const action = actionOf(event);
    if (!action) return;
    event.preventDefault();
    act(action, event.key);
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-action]");
    if (button) act(button.dataset.action);
  });
  $("stage").addEventListener("wheel", onWheel, { passive: false });
  $("stage").addEventListener("pointermove", (event) => {
    if (!shown || !(event.buttons & 1)) return;
    const { width, height } = $("stage").getBoundingClientRect();
    viewer.changeWindow(Math.exp((2 * event.movementX) / width), event.movementY / height);
    show();
  });
  new ResizeObserver(() => viewer.niivue?.gl && viewer.draw()).observe($("stage"));
  addEventListener("beforeunload", (event) => {
    if (saver.isUnsaved() || shown?.drafts.size) event.preventDefault();
  });
}

/** The wheel scrolls a slice a notch; with Ctrl it zooms. Touchpads send many small steps, which are added up. */
function onWheel(event) {
  event.preventDefault();
  if (!shown) return;
  const isNotch = event.deltaMode !== 0 || Math.abs(event.deltaY) >= NOTCH_PX;
  wheel = isNotch ? Math.sign(event.deltaY) * NOTCH_PX : wheel + event.deltaY;
  const step = Math.trunc(wheel / NOTCH_PX);
  if (!step) return;
  wheel = 0;
  if (event.ctrlKey) viewer.changeZoom(1.1 ** -step);
  else viewer.goTo(viewer.slice + step);
  show();
}

void begin();
