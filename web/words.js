// Numbers and names in words.

const NAMES = {
  ddim: "DDIM",
  ddpm: "DDPM",
  euler: "Euler",
  euler_a: "Euler a",
  heun: "Heun",
  dpmpp_2m: "DPM++ 2M",
  dpmpp_2m_sde: "DPM++ 2M SDE",
  dpmpp_3m_sde: "DPM++ 3M SDE",
  unipc: "UniPC",
  pndm: "PLMS",
  lcm: "LCM",
};

/** Returns a sampler's name as other programs write it, and whether it steps on Karras' levels. */
export function samplerName(id) {
  const karras = id.endsWith("_karras");
  const plain = karras ? id.slice(0, -"_karras".length) : id;
  return { name: NAMES[plain] ?? plain, karras };
}

export function samplerWords(id) {
  const { name, karras } = samplerName(id);
  return karras ? `${name} Karras` : name;
}

export function duration(seconds) {
  if (seconds < 1.5) return "a second";
  if (seconds < 90) return `${Math.round(seconds)} seconds`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} minutes` : `${Math.round(minutes / 60)} hours`;
}

export const pictures = (number) => (number === 1 ? "1 picture" : `${number} pictures`);

export const sizeWords = (width, height) => `${width} × ${height}`;

/** Returns the settings of a picture as [name, words], what was not said left out. */
export function settingsOf(picture) {
  return [
    ["Leave out", picture.negative_prompt],
    ["Seed", String(picture.seed)],
    ["Steps", String(picture.steps)],
    ["Guidance", String(round(picture.guidance)) + intervalWords(picture)],
    ["Sampler", samplerWords(picture.sampler)],
    ["Size", sizeWords(picture.width, picture.height)],
    ["Told sizes", toldWords(picture)],
    ["Started from", picture.original && originalWords(picture.original)],
    ["Style", picture.style && `of a picture, ${Math.round(100 * picture.style.weight)}%`],
    ["LoRAs", picture.loras?.map(({ name, weight }) => `${name} ${round(weight)}`).join(", ")],
    ["Fits words", typeof picture.score === "number" && `${round(picture.score.toFixed(2))} by the judge`],
    ["Model", picture.model],
    ["Drawn", new Date(picture.when).toLocaleString([], { dateStyle: "medium", timeStyle: "short" })],
  ].filter(([, words]) => words);
}

function toldWords({ original_size, crop, target_size }) {
  const told = [original_size && `as if ${original_size}`, crop && `cut at ${crop}`, target_size && `became ${target_size}`];
  return told.filter(Boolean).join(", ");
}

function intervalWords({ guidance_start, guidance_end }) {
  const [start, end] = [guidance_start ?? 0, guidance_end ?? 1];
  return start > 0 || end < 1 ? `, from ${start} to ${end} of the way` : "";
}

function originalWords({ mask, strength }) {
  const share = Math.round(100 * strength);
  return mask ? `a picture; its painted part may change by ${share}%` : `a picture; ${share}% may change`;
}

/** Draws a seed: one of all there are. */
export const rolled = () => crypto.getRandomValues(new Uint32Array(1))[0];

/** Guidance travels in 32 bits: 3.0999999 is 3.1. */
export const round = (number) => Number(Number(number).toPrecision(6));
