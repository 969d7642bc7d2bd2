// Two pictures in one place, with an edge between them that can be moved, and how their settings differ.

import { at, forget, make, show } from "./dom.js";
import { close } from "./route.js";
import { settingsOf } from "./words.js";

export class Compare {
  #dialog = at("compare");

  constructor() {
    this.#dialog.addEventListener("cancel", (event) => {
      event.preventDefault();
      close();
    });
    this.#dialog.addEventListener("click", (event) => event.target === this.#dialog && close());
    this.#dialog.querySelector(".close").addEventListener("click", close);
    at("cut").addEventListener("input", () => this.#cut());
  }

  /** Shows two pictures, or nothing where one of them is null. */
  show(left, right) {
    if (!left || !right) {
      if (this.#dialog.open) this.#dialog.close();
      forget(at("left-picture"));
      forget(at("right-picture"));
      return;
    }
    show(at("left-picture"), left.blob);
    show(at("right-picture"), right.blob);
    at("left-picture").alt = `Left: ${left.prompt}`;
    at("right-picture").alt = `Right: ${right.prompt}`;
    at("versus").style.setProperty("--shape", left.width / left.height);
    at("cut").value = 50;
    this.#cut();
    const [theirs, others] = [left, right].map((picture) => new Map([["Prompt", picture.prompt], ...settingsOf(picture)]));
    const names = [...new Set([...theirs.keys(), ...others.keys()])].filter((name) => name !== "Drawn");
    const rows = names.map((name) => {
      const same = theirs.get(name) === others.get(name);
      const cell = (words) => make("td", {}, words ?? "–");
      return make(
        "tr",
        { class: same ? "same" : "differs" },
        make("th", { scope: "row" }, name),
        cell(theirs.get(name)),
        cell(others.get(name)),
      );
    });
    this.#dialog.querySelector("tbody").replaceChildren(...rows);
    if (!this.#dialog.open) this.#dialog.showModal();
    at("cut").focus();
  }

  #cut() {
    at("versus").style.setProperty("--cut", `${at("cut").value}%`);
  }
}
