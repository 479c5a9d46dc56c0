// What key presses make of a tag. Pure: nothing here knows of a server or a screen.

/**
 * A tag: `false` absent, `true` present somewhere, `null` unknown, or inclusive slice ranges counted from 0.
 * @typedef {boolean | null | number[][]} Tag
 */

/**
 * A range whose ends are being marked; `index` is the range of the tag that it replaces, or one beyond the last.
 * @typedef {{index: number, first: number | null, last: number | null}} Draft
 */

/** The ranges of a tag. @param {Tag | undefined} tag @returns {number[][]} */
export const rangesOf = (tag) => (Array.isArray(tag) ? tag : []);

/** The range nearest to a slice. @param {number[][]} ranges @param {number} slice */
function nearest(ranges, slice) {
  const distances = ranges.map(([first, last]) => Math.max(first - slice, slice - last, 0));
  return distances.indexOf(Math.min(...distances));
}

/** A range to be marked from scratch, beside those there are. @param {Tag | undefined} tag @returns {Draft} */
export const anotherRange = (tag) => ({ index: rangesOf(tag).length, first: null, last: null });

/**
 * Marks one end of a range: of the one being marked, else of the one nearest to the slice, else of a new one.
 * @param {Tag | undefined} tag in force
 * @param {Draft | null} draft
 * @param {"first" | "last"} end
 * @param {number} slice
 * @returns {{draft: Draft, tag: Tag | undefined}} `tag` once both ends are known, whatever their order: the server judges it
 */
export function markEnd(tag, draft, end, slice) {
  const ranges = rangesOf(tag);
  let marked = draft;
  if (!marked && ranges.length) {
    const index = nearest(ranges, slice);
    marked = { index, first: ranges[index][0], last: ranges[index][1] };
  }
  marked = { ...(marked ?? anotherRange(tag)), [end]: slice };
  if (marked.first === null || marked.last === null) return { draft: marked, tag: undefined };
  const value = ranges.map((range) => [...range]);
  value[Math.min(marked.index, value.length)] = [marked.first, marked.last];
  return { draft: marked, tag: value };
}

/** Whether two tags are the same. @param {Tag | undefined} one @param {Tag | undefined} other */
export const isSame = (one, other) => JSON.stringify(one ?? null) === JSON.stringify(other ?? null);

/** A tag in words. @param {Tag | undefined} tag @param {boolean} isPicture a single slice needs no number */
export function inWords(tag, isPicture = false) {
  if (tag === false) return "absent";
  if (tag === true) return isPicture ? "present" : "present somewhere";
  if (tag === null || tag === undefined) return "not tagged";
  if (isPicture) return "present";
  return tag.map(([first, last]) => (first === last ? `slice ${first}` : `slices ${first}–${last}`)).join(", ");
}

/** What is still to be marked, in words; empty if nothing is. @param {Draft | null | undefined} draft */
export function draftInWords(draft) {
  if (!draft) return "";
  if (draft.first === null && draft.last === null) return "another range: press F and L on its ends";
  if (draft.last === null) return `first slice ${draft.first}: now press L on the last one`;
  if (draft.first === null) return `last slice ${draft.last}: now press F on the first one`;
  return `slices ${draft.first}–${draft.last} refused: mark an end again`;
}
