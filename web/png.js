// A PNG that carries its settings: the text chunk `parameters`, in the words that AUTOMATIC1111's web UI writes and reads.

import { round, samplerName } from "./words.js";

// Samplers that step on a model's own timesteps: a type of schedule means nothing to them there.
const WITHOUT_SCHEDULE = new Set(["DDIM", "PLMS", "UniPC", "LCM", "DDPM"]);

/** Returns the settings of a picture as one text: prompt, negative prompt, and a line of names and values. */
export function parameters(picture) {
  const { name, karras } = samplerName(picture.sampler);
  // Without a type that program would take Karras' levels for some samplers by itself.
  const schedule = karras ? "Karras" : WITHOUT_SCHEDULE.has(name) ? null : "Uniform";
  const values = [
    ["Steps", picture.steps],
    ["Sampler", name],
    ["Schedule type", schedule],
    ["CFG scale", round(picture.guidance)],
    ["Seed", picture.seed],
    ["Size", `${picture.width}x${picture.height}`],
    ["Model", picture.model],
    ["Denoising strength", picture.original?.strength ?? null],
    ["Version", "latentd"],
  ].filter(([, value]) => value !== null);
  return [
    picture.prompt,
    ...(picture.negative_prompt ? [`Negative prompt: ${picture.negative_prompt}`] : []),
    values.map(([key, value]) => `${key}: ${quoted(String(value))}`).join(", "),
  ].join("\n");
}

const quoted = (value) => (/[,:\n]/.test(value) ? JSON.stringify(value) : value);

/** Returns a PNG's bytes with one more text chunk behind its header. Throws RangeError where the bytes are no PNG. */
export function withText(bytes, keyword, text) {
  const header = 8 + 25; // the signature, and IHDR: length, name, 13 bytes, checksum
  if (bytes.length < header || String.fromCharCode(...bytes.slice(12, 16)) !== "IHDR") throw new RangeError("no PNG");
  const latin = [...text].every((letter) => letter.codePointAt(0) < 256);
  // tEXt is Latin-1; iTXt is UTF-8, after five zeros: end of keyword, uncompressed, its method, no language, no translation.
  const chunk = latin
    ? named("tEXt", [...ascii(keyword), 0, ...ascii(text)])
    : named("iTXt", [...ascii(keyword), 0, 0, 0, 0, 0, ...new TextEncoder().encode(text)]);
  const whole = new Uint8Array(bytes.length + chunk.length);
  whole.set(bytes.subarray(0, header));
  whole.set(chunk, header);
  whole.set(bytes.subarray(header), header + chunk.length);
  return whole;
}

const ascii = (text) => [...text].map((letter) => letter.codePointAt(0));

function named(name, data) {
  const body = Uint8Array.from([...ascii(name), ...data]);
  const chunk = new Uint8Array(body.length + 8);
  const view = new DataView(chunk.buffer);
  view.setUint32(0, data.length);
  chunk.set(body, 4);
  view.setUint32(body.length + 4, checksum(body));
  return chunk;
}

/** CRC-32, as PNG asks for it. */
function checksum(bytes) {
  let sum = 0xffffffff;
  for (const byte of bytes) {
    sum ^= byte;
    for (let bit = 0; bit < 8; bit++) sum = sum & 1 ? (sum >>> 1) ^ 0xedb88320 : sum >>> 1;
  }
  return ~sum >>> 0;
}
