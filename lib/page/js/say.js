// The status line: one readable sentence of what just happened.

const line = document.getElementById("status");

/** @param {string} text @param {"plain" | "good" | "error"} [kind] */
export function say(text, kind = "plain") {
  line.textContent = text;
  line.classList.toggle("is-error", kind === "error");
  line.classList.toggle("is-good", kind === "good");
}

/** An error as a sentence that begins with what failed. @param {string} what @param {unknown} error */
export function sayError(what, error) {
  say(`${what}: ${error instanceof Error ? error.message : error}`, "error");
}

/** Takes back what was said of a failure that is over, if it still stands there. @param {string} what as given to `sayError` */
export function unsay(what) {
  if (line.textContent.startsWith(`${what}: `)) say("");
}
