// The LoRAs of the form: chosen by name from the server's folder, each with its weight.

import { at, make } from "../dom.js";

export class Loras {
  #usable = [];
  #most = 8;
  #weight = 10;

  constructor() {
    at("loras").addEventListener("change", () => {
      this.#add(at("loras").value, 1);
      at("loras").value = "";
    });
  }

  /** Offers what the model has in its folder; nothing where it takes none. */
  offer(model) {
    this.#usable = (model.loras ?? []).filter((lora) => !lora.refusal).map((lora) => lora.name);
    this.#most = model.limits.loras ?? 8;
    this.#weight = model.limits.lora_weight ?? 10;
    at("loras-part").hidden = !model.features?.loras;
    const first = make("option", { value: "" }, this.#usable.length ? "add one …" : "the folder holds none");
    at("loras").replaceChildren(first, ...this.#usable.map((name) => make("option", { value: name }, name)));
    this.set([]);
  }

  set(loras) {
    at("loras-chosen").replaceChildren();
    for (const { name, weight } of loras ?? []) this.#add(name, weight);
  }

  /** Returns names and weights; null where there are none. */
  read() {
    const inputs = [...at("loras-chosen").querySelectorAll("input")];
    const loras = inputs.map((input) => ({ name: input.dataset.name, weight: Number(input.value || 1) }));
    return loras.length ? loras : null;
  }

  #add(name, weight) {
    if (!this.#usable.includes(name) || this.read()?.some((lora) => lora.name === name)) return;
    if ((this.read() ?? []).length >= this.#most) return;
    const label = `weight of ${name}`;
    const limits = { min: -this.#weight, max: this.#weight, step: 0.05 };
    const input = make("input", { type: "number", ...limits, value: weight, "aria-label": label, "data-name": name });
    const row = make("li", {}, make("span", {}, name), input);
    row.append(make("button", { type: "button", "aria-label": `leave out ${name}`, onclick: () => row.remove() }, "×"));
    at("loras-chosen").append(row);
  }
}
