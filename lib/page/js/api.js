// The server's routes, relative to where the page was loaded from; errors carry the server's own words.

const ROOT = new URL("../", document.baseURI);
/** Milliseconds until a request that nobody answers counts as lost; fetching a series from a PACS may take long. */
const TIMEOUT_MS = 20_000;
const LONG_TIMEOUT_MS = 600_000;

/** A request that the server refused (`status` 4xx or 5xx) or that never reached it (`status` 0). */
export class ApiError extends Error {
  /** @param {number} status @param {string} message */
  constructor(status, message) {
    super(message);
    this.status = status;
  }

  /** Whether the same request may succeed later: the server is gone, overloaded, busy or broken. */
  get isTemporary() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

/** Absolute address of a path such as `tags/case1`. */
export function address(path, query = {}) {
  const url = new URL(path, ROOT);
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined) url.searchParams.set(name, String(value));
  }
  return url.href;
}

/** One name inside a path. */
export const part = encodeURIComponent;

/**
 * Sends a request.
 * @param {string} method
 * @param {string} path relative to the server's root
 * @param {{query?: object, json?: unknown, form?: FormData, signal?: AbortSignal, long?: boolean}} [options]
 * @returns {Promise<Response>} with status 2xx
 * @throws {ApiError}
 */
export async function send(method, path, { query, json, form, signal, long } = {}) {
  const limit = AbortSignal.timeout(long ? LONG_TIMEOUT_MS : TIMEOUT_MS);
  const options = { method, signal: signal ? AbortSignal.any([signal, limit]) : limit, body: form };
  if (json !== undefined) {
    options.body = JSON.stringify(json);
    options.headers = { "Content-Type": "application/json" };
  }
  let response;
  try {
    response = await fetch(address(path, query), options);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(0, "the server does not answer");
  }
  if (!response.ok) throw new ApiError(response.status, await words(response));
  return response;
}

/** The JSON of an answer; see `send`. */
export async function ask(method, path, options) {
  const response = await send(method, path, options);
  return read(() => response.json(), options?.signal);
}

/** The bytes of an answer, with their progress; see `send`. */
export async function download(path, { onProgress, ...options } = {}) {
  const response = await send(options.method ?? "GET", path, { long: true, ...options });
  const total = Number(response.headers.get("Content-Length")) || 0;
  const parts = [];
  let received = 0;
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await read(() => reader.read(), options.signal);
    if (done) break;
    parts.push(value);
    received += value.length;
    onProgress?.(received, total);
  }
  return new Blob(parts).arrayBuffer();
}

/** An answer that breaks off counts as none. */
async function read(reading, signal) {
  try {
    return await reading();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(0, "the server's answer broke off");
  }
}

async function words(response) {
  const text = await response.text().catch(() => "");
  try {
    const { detail } = JSON.parse(text);
    return typeof detail === "string" ? detail : JSON.stringify(detail);
  } catch {
    return `the server answered ${response.status} ${response.statusText}`.trim();
  }
}

/** Waits; ends early, with an error, when the signal is aborted. */
export function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

/**
 * Tries until it succeeds, is refused for good, or is not wanted any more.
 * @template T
 * @param {() => Promise<T>} action
 * @param {{signal?: AbortSignal, onFailure?: (error: ApiError) => void, maxPauseMs?: number}} [options]
 * @returns {Promise<T>}
 */
export async function untilAnswered(action, { signal, onFailure, maxPauseMs = 5000 } = {}) {
  for (let wait = 500; ; wait = Math.min(2 * wait, maxPauseMs)) {
    try {
      return await action();
    } catch (error) {
      if (signal?.aborted || !(error instanceof ApiError) || !error.isTemporary) throw error;
      onFailure?.(error);
      await pause(wait, signal);
    }
  }
}
