// One picture large: its settings, the film of how it formed, and what can be done with it.

import { at, forget, make, show } from "./dom.js";
import { setIcon } from "./icons.js";
import { parameters, withText } from "./png.js";
import { close, instead } from "./route.js";
import { settingsOf } from "./words.js";

const PACE = 140; // milliseconds a frame

export class Viewer extends EventTarget {
  #dialog = at("viewer");
  #frames = [];
  #playing = null;
  picture = null;

  constructor(store) {
    super();
    this.store = store;
    this.#dialog.addEventListener("cancel", (event) => {
      event.preventDefault(); // Esc goes the way of Back, so that both leave the same history
      close();
    });
    this.#dialog.addEventListener("click", (event) => event.target === this.#dialog && close());
    this.#dialog.querySelector(".close").addEventListener("click", close);
    this.#dialog.addEventListener("keydown", (event) => {
      if (event.target.matches("input") || event.ctrlKey || event.altKey || event.metaKey) return;
      if (event.key === "ArrowLeft") this.#beside(-1);
      if (event.key === "ArrowRight") this.#beside(1);
    });
    at("newer").addEventListener("click", () => this.#beside(-1));
    at("older").addEventListener("click", () => this.#beside(1));
    at("play").addEventListener("click", () => (this.#playing ? this.#pause() : this.#play()));
    at("moment").addEventListener("input", () => {
      this.#pause();
      this.#at(Number(at("moment").value));
    });
    at("download").addEventListener("click", () => download(this.picture));
    for (const [id, name] of [["reuse", "reuse"], ["start-this", "start"], ["compare-this", "compare"], ["delete", "delete"]]) {
      at(id).addEventListener("click", () => this.dispatchEvent(new CustomEvent(name, { detail: this.picture })));
    }
  }

  /** Shows a picture, or nothing where it is null. */
  async show(picture) {
    this.#pause();
    this.picture = picture;
    if (!picture) {
      if (this.#dialog.open) this.#dialog.close();
      forget(at("viewer-picture"));
      return;
    }
    const image = at("viewer-picture");
    image.alt = picture.prompt;
    image.style.setProperty("--shape", picture.width / picture.height);
    show(image, picture.blob);
    at("viewer-title").textContent = picture.prompt;
    const rows = settingsOf(picture).map(([name, words]) => make("div", {}, make("dt", {}, name), make("dd", {}, words)));
    at("viewer-settings").replaceChildren(...rows);
    for (const source of at("viewer-sources").querySelectorAll("img")) forget(source);
    const sources = [
      ["It started from this picture", picture.original?.blob],
      ["White was drawn anew", picture.original?.mask],
      ["It took the style of this picture", picture.style?.blob],
    ].filter(([, blob]) => blob);
    at("viewer-sources").replaceChildren(...sources.map(([words, blob]) => small(words, blob)));
    at("viewer-sources").hidden = sources.length === 0;
    const index = this.store.pictures.indexOf(picture);
    at("newer").disabled = index <= 0;
    at("older").disabled = index >= this.store.pictures.length - 1;
    at("compare-this").hidden = this.store.pictures.length < 2;
    at("film").hidden = true;
    if (!this.#dialog.open) this.#dialog.showModal();
    const frames = await this.store.film(picture.id);
    if (this.picture !== picture || !frames.length) return;
    this.#frames = [...frames, picture.blob];
    at("film").hidden = false;
    at("moment").max = this.#frames.length - 1;
    this.#at(this.#frames.length - 1, false);
  }

  #beside(by) {
    const there = this.store.pictures[this.store.pictures.indexOf(this.picture) + by];
    if (there) instead(`picture-${there.id}`);
  }

  #at(index, showing = true) {
    at("moment").value = index;
    const words = index === this.#frames.length - 1 ? "finished" : `${index + 1} of ${this.#frames.length}`;
    at("moment-name").textContent = words;
    at("moment").setAttribute("aria-valuetext", words);
    if (showing) show(at("viewer-picture"), this.#frames[index]);
  }

  #play() {
    let index = 0;
    this.#at(index);
    setIcon(at("play"), "pause");
    at("play").setAttribute("aria-label", "Pause");
    this.#playing = setInterval(() => {
      this.#at(++index);
      if (index === this.#frames.length - 1) this.#pause();
    }, PACE);
  }

  #pause() {
    clearInterval(this.#playing);
    this.#playing = null;
    setIcon(at("play"), "play");
    at("play").setAttribute("aria-label", "Play how it formed");
  }
}

function small(words, blob) {
  const image = make("img", { alt: words, title: words });
  show(image, blob);
  return make("li", {}, image);
}

/** Hands a picture to the browser's downloads, its settings put into the file. */
async function download(picture) {
  const bytes = withText(new Uint8Array(await picture.blob.arrayBuffer()), "parameters", parameters(picture));
  const url = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
  const words = picture.prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 48);
  make("a", { href: url, download: `${words || "picture"}-${picture.seed}.png` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // the browser reads it after the click, and says not when
}
