// What the page asks of its server: the model, and pictures as a stream of events.

import { asked, shown } from "./key.js";

const here = (path) => new URL(path, document.baseURI);

/** Is thrown for what the server refused, in its own words. */
export class Refused extends Error {
  constructor(error, status) {
    super(error.message || `The server answered with ${status}.`);
    this.code = error.code;
    this.field = error.field ?? null;
    this.retryAfter = error.retry_after ?? null;
    this.requestId = error.request_id ?? null;
    this.status = status;
  }
}

/** Is thrown where no server answered, or where one went silent before the last event. */
export class Lost extends Error {}

async function ask(path, options) {
  await asked();
  let answer;
  try {
    answer = await fetch(here(path), { ...options, headers: { ...options?.headers, ...shown() } });
  } catch (error) {
    if (options?.signal?.aborted) throw error;
    throw new Lost("The server cannot be reached.");
  }
  if (answer.ok) return answer;
  if (answer.status === 401) dispatchEvent(new Event("keyless"));
  const body = await answer.json().catch(() => ({}));
  throw new Refused(body.error ?? {}, answer.status);
}

/** Returns what is served: sizes, samplers, defaults, limits, examples. Throws Refused (503 while it loads) and Lost. */
export async function model() {
  return (await ask("api/model", { cache: "no-store" })).json();
}

/** Yields [name, data] of each event up to the one called done. Throws Refused, Lost, and AbortError. */
export async function* generate(request, signal) {
  const answer = await ask("api/generate", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(request),
    signal,
  });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (signal.aborted) throw error;
      throw new Lost("The connection to the server broke while it was drawing.");
    }
    if (part.done) throw new Lost("The server stopped before the picture was finished.");
    text += part.value.replaceAll("\r\n", "\n");
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      const [name, data] = parse(text.slice(0, end));
      text = text.slice(end + 2);
      if (name === "error") throw new Refused(data, answer.status);
      if (name) yield [name, data];
      if (name === "done") return;
    }
  }
}

function parse(block) {
  let name = null;
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
  return [name, data.length ? JSON.parse(data.join("\n")) : null]; // a comment line alone is a sign of life
}

/** Returns a blob's bytes in base64. */
export function base64Of(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

export function blobOf(base64, type) {
  return new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], { type });
}
