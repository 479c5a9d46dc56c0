// The model's opinion of a case. Where the server keeps results, a mask can be accepted or rejected as it was shown.

import { ApiError, ask, download, part, send } from "./api.js";

/**
 * @typedef {{
 *   id: string | null, model: string, version: string, axis: number,
 *   classScores: Record<string, number>, sliceScores: Record<string, number[]>, warnings: Record<string, string>,
 *   labels: Record<string, number>, volumesMl: Record<string, number>, maps: Record<string, string>, mask: ArrayBuffer | null,
 * }} Opinion
 */

let keepsResults = null;

/** Whether the server has `/results/`. */
export async function canJudge(signal) {
  if (keepsResults === null) {
    try {
      await send("GET", "results/", { signal });
      keepsResults = true;
    } catch (error) {
      if (!(error instanceof ApiError) || error.isTemporary) throw error;
      keepsResults = false;
    }
  }
  return keepsResults;
}

/**
 * Runs the model on an image.
 * @param {string} task such as `student`
 * @param {string} image
 * @param {AbortSignal} signal
 * @returns {Promise<Opinion>}
 */
export async function askModel(task, image, signal) {
  return (await canJudge(signal)) ? askForResult(task, image, signal) : askForMask(task, image, signal);
}

async function askForResult(task, image, signal) {
  const reply = await ask("POST", `results/${part(task)}`, { query: { image }, json: {}, signal, long: true });
  return { ...scores(reply), id: reply.result, volumesMl: reply.volumes_ml ?? {}, labels: reply.labels, maps: reply.maps ?? {}, mask: null };
}

/** Of a server that keeps no results: one answer with scores and mask. */
async function askForMask(task, image, signal) {
  const form = new FormData();
  form.set("params", JSON.stringify({ result_extension: ".nii.gz" }));
  const response = await send("POST", `infer/${part(task)}`, { query: { image, output: "all" }, form, signal, long: true });
  const parts = await response.formData();
  const params = parts.get("params");
  const reply = JSON.parse(typeof params === "string" ? params : await params.text());
  const mask = parts.get("image");
  return { ...scores(reply), id: null, volumesMl: {}, labels: reply.label_names, maps: {}, mask: mask ? await mask.arrayBuffer() : null };
}

function scores(reply) {
  return {
    model: reply.model ?? reply.method ?? "",
    version: reply.model_version,
    axis: reply.slicing_axis,
    classScores: reply.class_scores,
    sliceScores: reply.slice_scores,
    warnings: reply.warnings ?? {},
  };
}

/** The mask as NIfTI. @param {Opinion} opinion @param {AbortSignal} signal */
export async function maskOf(opinion, signal) {
  return opinion.mask ?? download(`results/${part(opinion.id)}/mask`, { signal });
}

/** The saliency map of a class as NIfTI, or null where there is none. @param {Opinion} opinion */
export async function mapOf(opinion, name, signal) {
  if (!opinion.id || !(name in opinion.maps)) return null;
  return download(`results/${part(opinion.id)}/map/${part(name)}`, { signal });
}

/** Makes the mask that was shown the final label. @returns {Promise<{tags: object}>} */
export const accept = (opinion, user) => ask("POST", `results/${part(opinion.id)}/accept`, { query: { user }, long: true });

/** Tags the result's classes absent. @returns {Promise<{tags: object}>} */
export const reject = (opinion, user) => ask("POST", `results/${part(opinion.id)}/reject`, { query: { user } });
