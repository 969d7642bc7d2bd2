// The pictures of this browser, as a grid that arrow keys walk, and in which two are picked to compare.

import { at, forget, make, say, show } from "./dom.js";
import { setIcon } from "./icons.js";
import { open } from "./route.js";
import { Store } from "./store.js";

export class Gallery extends EventTarget {
  #picked = null; // null, or the ids that are picked so far
  #tiles = new Map();
  #grid = at("grid");

  constructor(store) {
    super();
    this.store = store;
    at("keeping").textContent = store.lasting
      ? `Only this browser keeps them, the newest ${Store.most}; the server keeps none.`
      : "This browser does not let the page keep pictures: download what you like, they go when you leave.";
    at("pick").addEventListener("click", () => (this.#picked ? this.#stop() : this.pick()));
    at("clear").addEventListener("click", () => this.dispatchEvent(new Event("clear")));
    this.#grid.addEventListener("keydown", (event) => this.#walk(event));
    addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.#picked && !document.querySelector("dialog[open]")) this.#stop();
    });
    this.refresh();
  }

  /** Makes the grid what the store has, newest first; tiles that stay are not touched. */
  refresh() {
    const pictures = this.store.pictures;
    for (const [id, tile] of this.#tiles) {
      if (this.store.find(id)) continue;
      forget(tile.firstChild.firstChild);
      tile.remove();
      this.#tiles.delete(id);
    }
    for (const picture of [...pictures].reverse()) {
      if (!this.#tiles.has(picture.id)) {
        const tile = this.#tile(picture);
        this.#tiles.set(picture.id, tile);
        this.#grid.prepend(tile);
      }
    }
    at("gallery").hidden = pictures.length === 0;
    at("count").textContent = String(pictures.length);
    at("pick").hidden = pictures.length < 2;
    if (pictures.length < 2 && this.#picked) this.#stop();
  }

  /** Begins to pick two pictures to compare, one of them perhaps given. */
  pick(...ids) {
    this.#picked = ids;
    this.#mark();
    this.#buttons().find((button) => Number(button.dataset.id) !== ids[0])?.focus();
  }

  #tile(picture) {
    const image = make("img", { alt: "", loading: "lazy", width: picture.width, height: picture.height });
    show(image, picture.blob);
    const settings = { type: "button", class: "tile", "aria-label": picture.prompt, title: picture.prompt };
    const button = make("button", settings, image);
    button.dataset.id = picture.id;
    button.addEventListener("click", () => this.#chosen(picture.id));
    const label = { "aria-label": `Start from this one: ${picture.prompt}`, title: "Start from this one" };
    const begin = () => this.dispatchEvent(new CustomEvent("start", { detail: picture }));
    const start = make("button", { type: "button", class: "start icon", onclick: begin, ...label });
    setIcon(start, "start");
    return make("li", {}, button, start);
  }

  #buttons() {
    return [...this.#grid.querySelectorAll(".tile")];
  }

  #chosen(id) {
    if (!this.#picked) {
      open(`picture-${id}`);
      return;
    }
    this.#picked = this.#picked.includes(id) ? this.#picked.filter((other) => other !== id) : [...this.#picked, id];
    if (this.#picked.length === 2) {
      const [left, right] = this.#picked;
      this.#stop();
      open(`compare-${left}-${right}`);
    } else {
      this.#mark();
    }
  }

  #stop() {
    this.#picked = null;
    this.#mark();
    say("");
  }

  #mark() {
    const picking = this.#picked !== null;
    at("pick").setAttribute("aria-pressed", String(picking));
    at("pick").textContent = picking ? "Stop comparing" : "Compare two";
    at("picking").hidden = !picking;
    at("picking").textContent = this.#picked?.length ? "Choose the other picture" : "Choose two pictures";
    this.#grid.classList.toggle("picking", picking);
    for (const button of this.#buttons()) {
      if (picking) button.setAttribute("aria-pressed", String(this.#picked.includes(Number(button.dataset.id))));
      else button.removeAttribute("aria-pressed");
    }
  }

  #walk(event) {
    const buttons = this.#buttons();
    const here = buttons.indexOf(document.activeElement);
    if (here < 0) return;
    const top = (button) => button.parentElement.offsetTop;
    const columns = buttons.findIndex((button) => top(button) > top(buttons[0]) + 1);
    const row = columns < 0 ? buttons.length : columns;
    const there = {
      ArrowLeft: here - 1,
      ArrowRight: here + 1,
      ArrowUp: here - row,
      ArrowDown: here + row,
      Home: 0,
      End: buttons.length - 1,
    }[event.key];
    if (there === undefined) return;
    event.preventDefault();
    buttons[there]?.focus();
  }
}
