// The Train button: options, progress while it runs, and what the server says.

import { ask, pause } from "./api.js";

const POLL_MS = 1500;
const dialog = document.getElementById("train-dialog");
const options = document.getElementById("train-options");
const progress = document.getElementById("train-progress");
const message = document.getElementById("train-message");
const log = document.getElementById("train-log");
const start = document.getElementById("train-start");
const stop = document.getElementById("train-stop");
const buttonText = document.getElementById("train-text");

export class Training {
  /** @param {(state: object) => void} onState gets what `/tagging/state` says, whenever it was asked */
  constructor(onState) {
    this.onState = onState;
    this.isRunning = false;
    this.isWatching = false;
    this.hasSpoken = false;
    this.refusal = "";
    start.addEventListener("click", () => this.#start());
    stop.addEventListener("click", () => this.#stop());
  }

  open() {
    this.refusal = "";
    dialog.showModal();
    start.focus();
    void this.#refresh();
  }

  /** Takes the server's state; watches a training that runs, whoever has started it. */
  take(state) {
    if (this.isRunning && !state.is_training) this.refusal = ""; // it was about the training that has ended
    this.isRunning = state.is_training;
    const phase = state.training?.state ?? "";
    this.hasSpoken = this.isRunning && (this.hasSpoken || phase === "running");
    if (!options.children.length && state.train_options) options.append(...Object.entries(state.train_options).flatMap(makeOption));
    const { epoch = 0, total_epochs: total = 100, stage = "", message: said = "" } = state.training ?? {};
    const share = this.isRunning && !this.hasSpoken ? 0 : (100 * epoch) / total; // until it has said something the record is that of the one before
    progress.value = share;
    buttonText.textContent = this.isRunning ? `Training ${Math.floor(share)} %` : "Train";
    stop.disabled = !this.isRunning;
    const step = `${stage ? `${stage}: ` : ""}${said} (${Math.floor(share)} %)`;
    const now = phase === "running" && this.isRunning ? step : !this.isRunning || this.hasSpoken ? said : "starting";
    message.textContent = this.refusal || (!state.train_options && "This server does not train.") || now || "No training yet.";
    if (this.isRunning && !this.isWatching) void this.#watch();
  }

  async #watch() {
    this.isWatching = true;
    while (this.isRunning) {
      await pause(POLL_MS);
      await this.#refresh();
    }
    this.isWatching = false;
  }

  async #refresh() {
    try {
      const [state, task] = await Promise.all([ask("GET", "tagging/state"), lastTask()]);
      const isAtEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
      log.textContent = (task?.details ?? []).join("\n");
      if (isAtEnd) log.scrollTop = log.scrollHeight;
      this.onState(state);
    } catch (error) {
      message.textContent = `Asked again: ${error.message}`;
    }
  }

  async #start() {
    const params = {};
    for (const field of options.querySelectorAll("input, select")) {
      params[field.name] = field.type === "checkbox" ? field.checked : field.type === "number" ? Number(field.value) : field.value;
    }
    await this.#do(() => ask("POST", "train/weak_label", { json: params }));
  }

  async #stop() {
    await this.#do(() => ask("DELETE", "train/"));
  }

  async #do(action) {
    try {
      await action();
      this.refusal = "";
    } catch (error) {
      this.refusal = error.message;
      message.textContent = error.message;
    }
    await this.#refresh();
  }
}

/** The host's record of the last training, with the last lines of its log; null while there was none. */
async function lastTask() {
  try {
    return await ask("GET", "train/");
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

/** Label and field of an option: a list is a choice, whose first item is the default. */
function makeOption([name, value]) {
  const label = document.createElement("label");
  label.textContent = name;
  label.htmlFor = `option-${name}`;
  const field = document.createElement(Array.isArray(value) ? "select" : "input");
  if (Array.isArray(value)) field.append(...value.map((item) => new Option(item)));
  else if (typeof value === "boolean") [field.type, field.checked] = ["checkbox", value];
  else if (typeof value === "number") [field.type, field.step, field.min, field.value] = ["number", "any", "0", String(value)];
  else field.value = value;
  [field.id, field.name] = [label.htmlFor, name];
  return [label, field];
}
