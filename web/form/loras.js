// The LoRAs of the form: chosen by name from the server's folder, each with its weight.

import { at, make } from "../dom.js";
import { setIcon } from "../icons.js";

export class Loras {
  #usable = [];
  #most = 8;
  #weight = 10;
  #changed;

  /** `changed` is called when one was added or left out; the weights are inputs of the form. */
  constructor(changed) {
    this.#changed = changed;
    at("loras").addEventListener("change", () => {
      this.#add(at("loras").value, 1);
      this.#look();
      this.#changed();
    });
  }

  /** Offers what the model has in its folder, nothing where it takes none. What is for other models is there, but grey. */
  offer(model) {
    const listed = model.loras ?? [];
    this.#usable = listed.filter((lora) => !lora.refusal).map((lora) => lora.name);
    this.#most = model.limits.loras ?? 8;
    this.#weight = model.limits.lora_weight ?? 10;
    at("loras-part").hidden = !model.features?.loras;
    const options = listed.map(({ name, refusal }) =>
      make("option", { value: name, disabled: Boolean(refusal), title: refusal || null }, refusal ? `${name} (not for this model)` : name),
    );
    at("loras").replaceChildren(make("option", { value: "" }), ...options);
    this.set([]);
  }

  set(loras) {
    at("loras-chosen").replaceChildren();
    for (const { name, weight } of loras ?? []) this.#add(name, weight);
    this.#look();
  }

  /** Returns names and weights; null where there are none. */
  read() {
    const inputs = [...at("loras-chosen").querySelectorAll("input")];
    const loras = inputs.map((input) => ({ name: input.dataset.name, weight: Number(input.value || 1) }));
    return loras.length ? loras : null;
  }

  #add(name, weight) {
    const chosen = this.read() ?? [];
    if (!this.#usable.includes(name) || chosen.some((lora) => lora.name === name) || chosen.length >= this.#most) return;
    const label = `Weight of ${name}`;
    const limits = { min: -this.#weight, max: this.#weight, step: 0.05, inputmode: "decimal" };
    const input = make("input", { type: "number", ...limits, value: weight, "aria-label": label, "data-name": name });
    const words = `Leave out ${name}`;
    const leave = make("button", { type: "button", class: "icon quiet", "aria-label": words, title: words });
    setIcon(leave, "close");
    const row = make("li", {}, make("span", {}, name), input, leave);
    leave.addEventListener("click", () => {
      row.remove();
      this.#look();
      this.#changed();
      at("loras").focus();
    });
    at("loras-chosen").append(row);
  }

  /** Says what may be added: those that are chosen are not offered again. */
  #look() {
    const chosen = new Set((this.read() ?? []).map((lora) => lora.name));
    const full = chosen.size >= this.#most;
    const [first, ...options] = at("loras").options;
    const left = this.#usable.filter((name) => !chosen.has(name));
    first.textContent = full ? `${this.#most} at most` : left.length ? "Add one" : chosen.size ? "No others are there" : "None is there for this model";
    for (const option of options) option.hidden = chosen.has(option.value);
    at("loras").value = "";
    at("loras").disabled = full;
  }
}
