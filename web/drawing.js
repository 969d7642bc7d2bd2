// One request: what was sent, where it stands, and what has come of it. It knows no element of the page.

import { Lost, base64Of, blobOf, generate } from "./api.js";

const FRAMES = 16; // previews of a picture at most: as much of a film as one looks at

export class Drawing extends EventTarget {
  state = "held"; // sending, waiting, forming, finished, failed or cancelled
  ahead = null; // pictures of others that wait before it
  made = null; // steps of a picture: fewer than were asked for where it starts from one
  cut = false; // the model read only the beginning of the prompt
  error = null;
  #abort = new AbortController();
  #expected = null; // seconds, and when that was said
  #since = 0;
  #first = null; // when the first step came, and how many had come by then

  constructor(settings) {
    super();
    this.settings = settings;
    this.started = 0;
    this.pictures = Array.from({ length: settings.images }, () => ({
      step: 0,
      preview: null,
      frames: [],
      stored: null,
      kept: false, // the finished picture came
    }));
  }

  get running() {
    return ["sending", "waiting", "forming"].includes(this.state);
  }

  get open() {
    return this.running || this.state === "held";
  }

  /** Sends it and takes what comes, until the last event. It throws nothing: `state` and `error` say how it ended. */
  async run() {
    this.started = performance.now();
    this.#become("sending");
    try {
      const request = await requestOf(this.settings);
      for await (const [name, data] of generate(request, this.#abort.signal)) this.#take(name, data);
      this.#become("finished");
    } catch (error) {
      if (this.state === "cancelled") return;
      this.error = error;
      this.#become("failed");
    }
  }

  /** Stops it: the server gives its seat on after the step under way. */
  cancel() {
    this.#become("cancelled");
    this.#abort.abort();
  }

  /** Returns the share that is done, 0 to 1. */
  get share() {
    const total = this.#total;
    return total ? Math.min(1, this.#steps / total) : 0;
  }

  /** Returns how many seconds are left, or null where nobody knows yet. */
  get left() {
    const now = performance.now();
    if (this.#first && this.#steps > this.#first.steps) {
      const pace = (now - this.#first.at) / (this.#steps - this.#first.steps);
      return (pace * (this.#total - this.#steps)) / 1000;
    }
    return this.#expected === null ? null : Math.max(0, this.#expected - (now - this.#since) / 1000);
  }

  get #total() {
    return (this.made ?? this.settings.steps) * this.settings.images;
  }

  get #steps() {
    return this.pictures.reduce((sum, picture) => sum + picture.step, 0);
  }

  #take(name, data) {
    if (name === "queued") {
      const { seed, steps, guidance, sampler, width, height, model } = data;
      Object.assign(this.settings, { seed, steps, guidance, sampler, width, height, model });
      this.cut = data.prompt_cut || data.negative_prompt_cut;
    }
    if (name === "queued" || name === "waiting") {
      this.ahead = data.ahead;
      this.#expected = data.expected_seconds ?? null;
      this.#since = performance.now();
      this.#become("waiting");
    } else if (name === "started") {
      this.#become("forming");
    } else if (name === "step") {
      this.made = data.steps;
      this.pictures[data.index].step = data.step;
      this.#first ??= { at: performance.now(), steps: this.#steps };
      this.#become("forming");
    } else if (name === "preview") {
      const picture = this.pictures[data.index];
      picture.preview = blobOf(data.jpeg, "image/jpeg");
      if (picture.frames.length < FRAMES) picture.frames.push(picture.preview);
      this.#become("forming");
    } else if (name === "image") {
      const { prompt, negative_prompt, steps, guidance, sampler, model } = this.settings;
      const { guidance_start, guidance_end, original, style, loras } = this.settings;
      const { original_size, crop, target_size } = this.settings;
      this.pictures[data.index].step = this.made ?? steps;
      this.pictures[data.index].kept = true;
      const { seed, width, height, score } = data;
      const settings = { prompt, negative_prompt, seed, steps, guidance, sampler, width, height, model };
      Object.assign(settings, { guidance_start, guidance_end, original, style, loras, score });
      Object.assign(settings, { original_size, crop, target_size });
      const blob = blobOf(data.data, `image/${data.format}`);
      const record = { ...settings, when: Date.now(), blob };
      this.dispatchEvent(new CustomEvent("picture", { detail: { index: data.index, record } }));
    }
  }

  #become(state) {
    if (this.state === "cancelled") return;
    this.state = state;
    this.dispatchEvent(new Event("change"));
  }
}

/** Returns settings as the server takes them, pictures in base64. */
async function requestOf({ original, style, ...settings }) {
  const steps = settings.steps ?? 25;
  const request = { ...settings, format: "png", preview_every: Math.max(1, Math.ceil(steps / FRAMES)) };
  if (original) {
    request.init_image = await base64Of(original.blob);
    if (original.mask) request.mask = await base64Of(original.mask);
    request.strength = original.strength;
    request.fit = original.fit;
  }
  if (style) {
    request.style_image = await base64Of(style.blob);
    request.style_weight = style.weight;
  }
  return request;
}

/** Returns what went wrong as a sentence for whoever looks at the page. */
export function sentence(error) {
  if (error instanceof Lost) return `${error.message} Is it still running?`;
  if (error.status === 429) {
    const wait = error.retryAfter ? ` Try again in ${Math.ceil(error.retryAfter)} s.` : "";
    return `The server has as much to do as it can take on.${wait}`;
  }
  return error.message;
}
