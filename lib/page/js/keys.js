// One table of keys: what they do, and the words in the help.

/** Keys (`event.key`, letters in lower case), action, words. */
const TABLE = [
  [["ArrowDown", "ArrowRight"], "slice+1", "↓ →", "next slice"],
  [["ArrowUp", "ArrowLeft"], "slice-1", "↑ ←", "slice before"],
  [["PageDown"], "slice+10", "PgDn", "ten slices on"],
  [["PageUp"], "slice-10", "PgUp", "ten slices back"],
  [["Home"], "slice-first", "Home", "first slice of the image"],
  [["End"], "slice-last", "End", "last slice of the image"],
  [["1", "2", "3", "4", "5", "6", "7", "8", "9"], "class", "1–9", "class that the tag keys act on"],
  [["f"], "first", "F", "first slice that shows it"],
  [["l"], "last", "L", "last slice that shows it"],
  [["r"], "range", "R", "mark another range"],
  [["a"], "absent", "A", "absent: on no slice"],
  [["p"], "present", "P", "present somewhere (picture: present)"],
  [["Delete", "Backspace"], "unknown", "Del", "clear: nobody has said"],
  [["u"], "undo", "U", "undo the last tag of this case"],
  [["n"], "next", "N", "next case, the most doubtful first"],
  [["b"], "previous", "B", "back to the case before"],
  [["c"], "cases", "C", "list of cases"],
  [["o"], "opinion", "O", "show or hide the model's opinion"],
  [["m"], "overlay", "M", "show or hide the overlay"],
  [["h"], "highest", "H", "slice with the highest score"],
  [["y"], "accept", "Y", "accept the model's mask"],
  [["x"], "reject", "X", "reject it: tag absent"],
  [["w"], "window-wider", "W", "wider window"],
  [["q"], "window-narrower", "Q", "narrower window"],
  [["e"], "level-brighter", "E", "brighter"],
  [["d"], "level-darker", "D", "darker"],
  [["+", "="], "zoom-in", "+", "zoom in"],
  [["-", "_"], "zoom-out", "−", "zoom out"],
  [["0"], "reset", "0", "window and zoom as at first"],
  [["t"], "train", "T", "training"],
  [["?"], "help", "?", "this list"],
];
const ACTIONS = new Map(TABLE.flatMap(([keys, action]) => keys.map((key) => [key, action])));
const LOOKS = { ArrowUp: "look-up", ArrowDown: "look-down", ArrowLeft: "look-left", ArrowRight: "look-right" };

/** Held down, only these go on; a tag or a case is never changed twice by one press. */
const REPEATED = /^(slice|window|level|zoom|look)/;

/**
 * The action of a key press, or undefined: in a text field and in a dialog keys belong to those.
 * @param {KeyboardEvent} event
 */
export function actionOf(event) {
  if (event.defaultPrevented || event.isComposing || event.altKey || event.metaKey) return undefined;
  if (document.querySelector("dialog[open]") || event.target.closest?.("input, select, textarea")) return undefined;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey) return key === "z" && !event.repeat ? "undo" : undefined;
  const action = (event.shiftKey && LOOKS[key]) || ACTIONS.get(key);
  return event.repeat && !REPEATED.test(action ?? "") ? undefined : action;
}

/** Fills the help. @param {HTMLElement} place */
export function listKeys(place) {
  const rows = [...TABLE.map(([, , shown, words]) => [shown, words]), ["Shift + arrows", "look to that side, zoomed"], ["Ctrl Z", "undo"]];
  place.replaceChildren(
    ...rows.map(([shown, words]) => {
      const row = document.createElement("p");
      const key = document.createElement("kbd");
      key.textContent = shown;
      row.append(words, key);
      return row;
    }),
  );
}
