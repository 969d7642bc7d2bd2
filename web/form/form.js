// The form: what to draw, and how. It remembers the settings of this browser's last visit.

import { at, make } from "../dom.js";
import { setIcon } from "../icons.js";
import { rolled, samplerWords, sizeWords } from "../words.js";
import { Conditions } from "./conditions.js";
import { Loras } from "./loras.js";
import { Things } from "./things.js";

const REMEMBERED = "latentd.settings";
const FIELDS = ["prompt", "negative_prompt", "size", "images", "keep", "steps", "guidance", "guidance_start"];
FIELDS.push("guidance_end", "sampler", "seed");
const TOLD = ["original_size", "crop", "target_size"]; // sizes, of a model that takes them
FIELDS.push(...TOLD);
// What else the server may find wrong, and what then gets the focus.
const PLACES = { ...Object.fromEntries(FIELDS.map((name) => [name, name])), width: "size", height: "size" };
Object.assign(PLACES, { strength: "strength", fit: "fit", style_weight: "style_weight", mask: "mask", loras: "loras" });
const PICTURES = { init_image: "original", style_image: "style" };
const PLAIN = { images: 1, keep: "", guidance_start: 0, guidance_end: 1, original_size: "", crop: "", target_size: "" };

export class Form extends EventTarget {
  #model = null;
  #locked = false;
  #conditions = new Conditions();
  #loras = new Loras(() => this.#remember());
  #things = new Things((prompt) => {
    this.set({ prompt });
    this.#remember();
    at("prompt").focus();
  });

  constructor() {
    super();
    const form = at("form");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || document.querySelector("dialog[open]")) return;
      event.preventDefault();
      this.submit();
    });
    form.addEventListener("input", (event) => this.#edited(event.target));
    at("dice").addEventListener("click", () => {
      at("seed").value = rolled();
      this.#lock(true);
      this.#remember();
    });
    at("lock").addEventListener("click", () => {
      this.#lock(!this.#locked);
      if (this.#locked && at("seed").value === "") at("seed").value = rolled();
      this.#remember();
    });
    at("defaults").addEventListener("click", () => {
      this.set({ ...this.#model.defaults, ...PLAIN });
      this.#loras.set([]);
      at("seed").value = "";
      this.#lock(false);
      this.#remember();
    });
    const wide = matchMedia("(min-width: 60rem)");
    at("settings").open = wide.matches;
    wide.addEventListener("change", () => (at("settings").open = wide.matches));
  }

  /** Fills the choices with what the model takes, and the fields with what was last chosen here. */
  offer(model) {
    this.#model = model;
    at("size").replaceChildren(
      ...model.sizes.map(([width, height]) => make("option", { value: `${width}x${height}` }, sizeWords(width, height))),
    );
    at("sampler").replaceChildren(...model.samplers.map((id) => make("option", { value: id }, samplerWords(id))));
    const numbers = Array.from({ length: model.limits.images }, (_, index) => String(index + 1));
    at("images").replaceChildren(...numbers.map((number) => make("option", { value: number }, number)));
    for (const name of ["steps", "guidance"]) {
      at(name).max = model.limits[name];
      at(`${name}-slider`).max = name === "steps" ? Math.min(model.limits.steps, 50) : Math.min(model.limits.guidance, 15);
    }
    if (model.examples?.length) at("prompt").placeholder = `for example: ${model.examples[0].prompt}`;
    at("interval").hidden = !model.features?.interval;
    at("told").hidden = !model.features?.sizes;
    this.#things.offer(model);
    this.#loras.offer(model);
    const early = at("prompt").value; // typed before the model was known
    this.set({ ...model.defaults, ...PLAIN });
    const remembered = read(REMEMBERED);
    // The settings of another model are no settings of this one; words are words.
    const same = remembered.model === model.id;
    this.set(same ? remembered : pick(remembered, "prompt", "negative_prompt"));
    if (same) this.#loras.set(remembered.loras);
    if (early) this.set({ prompt: early });
    this.#lock(Boolean(remembered.locked));
    this.#conditions.offer(model);
    document.querySelector("button.draw").disabled = false;
    at("form").dataset.state = "ready";
  }

  /** Puts settings into the fields: those of a picture, or of an example. What is absent stays as it is. */
  set(settings) {
    for (const name of FIELDS) {
      if (name === "keep") this.#keepable(settings.keep ?? at("keep").value);
      else if (name === "size" && settings.width) at("size").value = `${settings.width}x${settings.height}`;
      else if (settings[name] !== undefined && settings[name] !== null) at(name).value = settings[name];
    }
    if (at("size").selectedIndex < 0) at("size").selectedIndex = 0; // a size or sampler that this model lacks
    if (at("sampler").selectedIndex < 0) at("sampler").value = this.#model.defaults.sampler;
    if (at("negative_prompt").value) at("without").open = true;
    if (Number(at("guidance_start").value) > 0 || Number(at("guidance_end").value) < 1) at("interval").open = true;
    if (TOLD.some((name) => at(name).value)) at("told").open = true;
    this.#follow();
    this.#things.look(at("prompt").value);
    this.#conditions.refresh();
    this.complain(null);
  }

  /** Takes over the settings of a picture: its seed too, which is kept until it is unlocked, and what it started from. */
  reuse(picture) {
    const said = Object.entries(picture).filter(([, value]) => value !== null && value !== undefined);
    this.set({ ...PLAIN, negative_prompt: "", ...Object.fromEntries(said) });
    this.#conditions.restore(picture);
    this.#loras.set(picture.loras);
    this.#lock(true);
    this.#remember();
    at("prompt").focus();
  }

  /** Starts from a picture of the gallery, in its size; words that are there stay. */
  start(picture) {
    const { width, height } = picture;
    this.set({ width, height, prompt: at("prompt").value.trim() ? undefined : picture.prompt });
    this.#conditions.start(picture);
    this.#remember();
    at("prompt").focus();
  }

  submit() {
    this.complain(null);
    if (!this.#model) return;
    if (at("prompt").value.trim() === "") {
      this.complain("prompt", "Write what you would like to see first.");
      at("prompt").focus();
      return;
    }
    const missing = this.#conditions.missing();
    if (missing) {
      this.complain(...missing);
      return;
    }
    if (!this.#locked) at("seed").value = rolled();
    this.#remember();
    this.dispatchEvent(new CustomEvent("draw", { detail: this.read() }));
  }

  /** Returns the fields as the server takes them; what is empty is left to the model. */
  read() {
    const [width, height] = at("size").value.split("x").map(Number);
    return {
      prompt: at("prompt").value.trim(),
      negative_prompt: at("negative_prompt").value.trim(),
      width,
      height,
      images: Number(at("images").value),
      keep: number("keep"),
      steps: number("steps"),
      guidance: number("guidance"),
      guidance_start: number("guidance_start") || null, // what is the default needs no word
      guidance_end: number("guidance_end") === 1 ? null : number("guidance_end"),
      sampler: at("sampler").value,
      seed: number("seed"),
      loras: this.#loras.read(),
      ...Object.fromEntries(TOLD.map((name) => [name, at(name).value.trim() || null])),
      ...this.#conditions.read(),
    };
  }

  /** Tells what is wrong beside the field that it is about; without a field, below the button; null takes it back. */
  complain(field, message) {
    for (const complaint of document.querySelectorAll("form .complaint")) complaint.textContent = "";
    for (const input of document.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
    if (!message) return;
    const picture = PICTURES[field];
    if (picture) {
      at(`${field}-complaint`).textContent = message;
      at(at(`${picture}-choose`).hidden ? `${picture}-other` : `${picture}-choose`).focus();
      return;
    }
    const name = PLACES[field?.split("[")[0]]; // loras[0].weight
    const input = name ? at(name) : null;
    at(input ? `${name}-complaint` : "form-complaint").textContent = message;
    if (!input) return;
    input.setAttribute("aria-invalid", "true");
    input.closest("details")?.setAttribute("open", "");
    input.focus();
  }

  #edited(input) {
    if (input.id.endsWith("-slider")) at(input.id.replace("-slider", "")).value = input.value;
    if (input.id === "seed") this.#lock(input.value !== "");
    if (input.id === "images") this.#keepable(at("keep").value);
    if (input.id === "prompt") this.#things.look(input.value);
    if (input.hasAttribute("aria-invalid") || at("form-complaint").textContent) this.complain(null);
    this.#follow();
    this.#remember();
  }

  /** Has what goes with other fields follow them. */
  #follow() {
    for (const name of ["steps", "guidance"]) at(`${name}-slider`).value = at(name).value;
    for (const name of ["original_size", "target_size"]) at(name).placeholder = at("size").value;
  }

  /** Offers to keep 1, 2, .. of the pictures, where the model has a judge and there are several. */
  #keepable(chosen) {
    const images = Number(at("images").value);
    const numbers = Array.from({ length: Math.max(0, images - 1) }, (_, index) => String(index + 1));
    const all = make("option", { value: "" }, "all of them");
    at("keep").replaceChildren(all, ...numbers.map((number) => make("option", { value: number }, `the best ${number}`)));
    at("keep").value = numbers.includes(String(chosen)) ? chosen : "";
    at("keep-part").hidden = !this.#model?.features?.keep || images < 2;
    if (at("keep-part").hidden) at("keep").value = "";
  }

  #lock(locked) {
    this.#locked = locked;
    at("lock").setAttribute("aria-pressed", String(locked));
    setIcon(at("lock"), locked ? "lock" : "open-lock");
  }

  #remember() {
    const settings = Object.fromEntries(FIELDS.map((name) => [name, at(name).value]));
    write(REMEMBERED, { ...settings, loras: this.#loras.read(), model: this.#model?.id, locked: this.#locked });
  }
}

const number = (id) => (at(id).value === "" ? null : Number(at(id).value));

const pick = (values, ...names) => Object.fromEntries(names.map((name) => [name, values[name]]));

function read(key) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? {};
  } catch {
    return {}; // a browser that keeps nothing
  }
}

function write(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
  } catch {
    // a browser that keeps nothing: the next visit begins with the model's own settings
  }
}
