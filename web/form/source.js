// A place for one picture in the form: it is dropped, pasted or chosen, shown small, and taken away again.

import { at, forget, show } from "../dom.js";
import { NoPicture, pictureIn, pictureOf } from "./picture.js";

export class Source extends EventTarget {
  picture = null; // { blob, width, height }
  #name;
  #field;
  #longest;
  #turn = 0; // counts what was put here, or chosen: of files that are read at once the last counts

  /** `name` begins the ids of its elements, `field` is the server's name, and the file input's id. */
  constructor(name, field, longest) {
    super();
    this.#name = name;
    this.#field = field;
    this.#longest = longest;
    const input = at(field);
    for (const part of ["choose", "other"]) at(`${name}-${part}`).addEventListener("click", () => input.click());
    input.addEventListener("change", () => {
      if (input.files.length) this.take(input.files[0]);
      input.value = ""; // so that the same file may be chosen again
    });
    at(`${name}-remove`).addEventListener("click", () => {
      this.put(null);
      at(`${name}-choose`).focus();
    });
    const place = at(name);
    place.addEventListener("dragover", (event) => {
      event.preventDefault();
      place.classList.add("over");
    });
    place.addEventListener("dragleave", () => place.classList.remove("over"));
    place.addEventListener("drop", (event) => {
      place.classList.remove("over");
      const file = pictureIn(event.dataTransfer);
      event.preventDefault();
      event.stopPropagation();
      if (file) this.take(file);
    });
  }

  offer(offered) {
    at(this.#name).hidden = !offered;
    if (!offered) this.put(null);
  }

  get offered() {
    return !at(this.#name).hidden;
  }

  /** Takes a file as its picture; one that is none is said to be none. */
  async take(file) {
    const complaint = at(`${this.#field}-complaint`);
    complaint.textContent = "";
    const turn = ++this.#turn;
    try {
      const picture = await pictureOf(file, this.#longest);
      if (turn === this.#turn) this.put(picture);
    } catch (error) {
      if (!(error instanceof NoPicture)) throw error;
      if (turn === this.#turn) complaint.textContent = error.message;
    }
  }

  /** Puts a picture in its place; null takes it away. */
  put(picture) {
    this.#turn++;
    this.picture = picture;
    at(`${this.#name}-chosen`).hidden = !picture;
    at(`${this.#name}-choose`).hidden = Boolean(picture);
    at(`${this.#field}-complaint`).textContent = "";
    if (picture) show(at(`${this.#name}-picture`), picture.blob);
    else forget(at(`${this.#name}-picture`));
    this.dispatchEvent(new Event("change"));
  }
}
