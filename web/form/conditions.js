// Pictures as conditions of a drawing: the one it starts from, with what may change in it, and one whose style it takes.

import { at, say } from "../dom.js";
import { onRoute } from "../route.js";
import { Painter } from "./painter.js";
import { pictureIn } from "./picture.js";
import { Source } from "./source.js";

const STYLE = 512; // pixels: an image encoder sees fewer

export class Conditions {
  #original = new Source("original", "init_image");
  #style = new Source("style", "style_image", STYLE);
  #painter = new Painter();
  #mask = null;
  #inpaints = false;
  #restored = 0; // counts restorations, of which the last counts

  constructor() {
    this.#original.addEventListener("change", () => {
      const { picture } = this.#original;
      if (picture) this.#painter.load(picture);
      this.#mask = null;
      this.refresh();
      if (picture) say("The picture is there. Say what should become of it, and draw.");
    });
    this.#style.addEventListener("change", () => this.refresh());
    this.#painter.addEventListener("change", () => {
      this.#mask = this.#painter.mask();
      this.refresh();
    });
    at("mask").addEventListener("click", () => this.#painter.open());
    for (const name of ["strength", "style_weight"]) at(name).addEventListener("input", () => this.refresh());
    at("size").addEventListener("change", () => this.refresh());
    onRoute(({ kind }) => this.#painter.show(kind === "paint"));
    this.#everywhere();
  }

  /** Offers what the model takes. */
  offer(model) {
    this.#inpaints = Boolean(model.features?.inpaints);
    this.#original.offer(Boolean(model.features?.init_image));
    this.#style.offer(Boolean(model.features?.style_image));
    at("mask").hidden = !model.features?.mask;
    at("style_weight").max = model.limits.style_weight ?? 2;
    this.refresh();
  }

  /** Starts from a picture of the gallery. */
  start({ blob, width, height }) {
    this.#original.put({ blob, width, height });
  }

  /** Puts back what a picture was drawn with: all of it, or nothing where it had nothing. */
  async restore({ original, style }) {
    const turn = ++this.#restored;
    this.#original.put(original && this.#original.offered ? pick(original) : null);
    this.#style.put(style && this.#style.offered ? pick(style) : null);
    if (original) at("strength").value = original.strength;
    if (original) at("fit").value = original.fit;
    if (style) at("style_weight").value = style.weight;
    this.refresh();
    if (!original?.mask || !this.#original.picture) return;
    this.#mask = original.mask; // for whoever draws before it is on the easel
    const mask = await createImageBitmap(original.mask);
    if (turn === this.#restored) this.#painter.load(pick(original), mask);
  }

  /** Returns what is missing, as [field, sentence], or null. */
  missing() {
    if (!this.#inpaints) return null;
    if (!this.#original.picture) return ["init_image", "This model changes a part of a picture: give it one to start from."];
    return this.#mask ? null : ["mask", "This model changes a part of a picture: paint which."];
  }

  /** Returns { original, style }, each null where there is none. */
  read() {
    const original = this.#original.picture;
    const style = this.#style.picture;
    return {
      original: original && {
        ...original,
        mask: this.#mask,
        strength: Number(at("strength").value),
        fit: at("fit").value,
      },
      style: style && { ...style, weight: Number(at("style_weight").value) },
    };
  }

  /** Shows what there is now, after a setting was changed. */
  refresh() {
    const { picture } = this.#original;
    at("strength-part").hidden = !picture;
    at("strength-words").textContent = percent(at("strength").value);
    at("style-part").hidden = !this.#style.picture;
    at("style_weight-words").textContent = percent(at("style_weight").value);
    const [width, height] = at("size").value.split("x").map(Number);
    at("fit-part").hidden = !picture || Math.abs(picture.width / picture.height - width / height) < 0.01;
    at("original-words").textContent = this.#mask
      ? "What you painted is drawn anew."
      : "All of it may change.";
    at("mask").textContent = this.#mask ? "Paint on" : "Paint what to change";
    const veil = at("original-veil");
    veil.hidden = !this.#mask;
    if (!this.#mask) return;
    const { veil: painted } = this.#painter;
    const scale = 256 / Math.max(painted.width, painted.height);
    veil.width = Math.round(painted.width * scale);
    veil.height = Math.round(painted.height * scale);
    veil.getContext("2d").drawImage(painted, 0, 0, veil.width, veil.height);
  }

  /** Takes what is dropped or pasted anywhere on the page, where nothing is open above it. */
  #everywhere() {
    const busy = () => !this.#original.offered || document.querySelector("dialog[open]");
    const holds = (event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file");
    addEventListener("dragover", (event) => {
      if (busy() || !holds(event)) return;
      event.preventDefault();
      at("original").classList.add("over");
    });
    addEventListener("dragleave", (event) => !event.relatedTarget && at("original").classList.remove("over"));
    addEventListener("drop", (event) => {
      at("original").classList.remove("over");
      if (!holds(event)) return;
      event.preventDefault(); // or the browser leaves the page for the file
      const file = pictureIn(event.dataTransfer);
      if (file && !busy()) this.#original.take(file);
    });
    addEventListener("paste", (event) => {
      const file = pictureIn(event.clipboardData);
      if (!file || busy()) return;
      event.preventDefault();
      this.#original.take(file);
    });
  }
}

const pick = ({ blob, width, height }) => ({ blob, width, height });

const percent = (share) => `${Math.round(100 * share)}%`;
