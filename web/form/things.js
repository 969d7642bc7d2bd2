// What a model can draw, where that is a list: a gentle word when a prompt names nothing of it.

import { at, make } from "../dom.js";

const SHOWN = 4;

const plain = (text) => text.toLowerCase().normalize("NFKC").match(/[\p{L}\p{N}-]+/gu) ?? [];
const same = (asked, known) => [asked, `${asked}s`].includes(known) || [`${known}s`, `${known}es`].includes(asked);

/** Tells whether a prompt names a thing: its words, one after the other, the last perhaps more than one of it. */
export function names(prompt, thing) {
  const words = plain(prompt);
  const known = plain(thing);
  return words.some((_, start) => known.every((word, index) => same(words[start + index] ?? "", word)));
}

/** Returns the things that come nearest to a prompt: those that share a word with it, or the beginning of one. */
export function nearest(prompt, things) {
  const words = plain(prompt).filter((word) => word.length > 2);
  const near = (thing) =>
    Math.max(
      0,
      ...plain(thing).flatMap((known) =>
        words.map((word) => (same(word, known) ? 2 : word.slice(0, 4) === known.slice(0, 4) && known.length > 3 ? 1 : 0)),
      ),
    );
  const rated = things.map((thing) => [near(thing), thing]).filter(([nearness]) => nearness > 0);
  return rated.sort(([one], [other]) => other - one).map(([, thing]) => thing);
}

export class Things {
  #things = [];
  #examples = [];
  #choose;

  /** `choose` is called with the prompt that a button stands for. */
  constructor(choose) {
    this.#choose = choose;
  }

  offer({ things, examples }) {
    this.#things = things ?? [];
    this.#examples = (examples ?? []).map(({ prompt }) => prompt);
  }

  /** Looks whether a prompt names something that the model can draw, and says so where it does not. */
  look(prompt) {
    const known = !this.#things.length || plain(prompt).length === 0 || this.#things.some((thing) => names(prompt, thing));
    at("unknown").hidden = known;
    if (known) {
      at("unknown-words").textContent = "";
      return;
    }
    const tail = (text) => (text.includes(",") ? text.slice(text.indexOf(",")) : "");
    const end = tail(prompt).trim() || tail(this.#examples[0] ?? "");
    const near = nearest(prompt, this.#things).slice(0, SHOWN).map((thing) => [thing, thing + end]);
    const ideas = near.length ? near : this.#examples.slice(0, SHOWN).map((text) => [text.split(",")[0], text]);
    const words = `This model knows ${this.#things.length} things, and your words name none of them, so do not expect much. `;
    at("unknown-words").textContent = words + (near.length ? "Near to your words:" : "It can draw, for example:");
    at("unknown-ideas").replaceChildren(
      ...ideas.map(([thing, text]) =>
        make("li", {}, make("button", { type: "button", onclick: () => this.#choose(text) }, thing)),
      ),
    );
  }
}
