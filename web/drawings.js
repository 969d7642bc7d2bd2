// What is being drawn: a card a request, the one whose turn it is large, the others in lines below it.

import { Lost } from "./api.js";
import { sentence } from "./drawing.js";
import { at, forget, make, say, show } from "./dom.js";
import { paintNoise } from "./noise.js";
import { duration, pictures, rolled, samplerWords, sizeWords } from "./words.js";

// A browser opens six connections to a server of HTTP/1.1: one stays free for everything else.
const MOST_AT_ONCE = 5;

export class Drawings extends EventTarget {
  #cards = new Map();
  #list = at("drawings");

  constructor() {
    super();
    setInterval(() => this.#refresh(), 1000);
  }

  get empty() {
    return this.#cards.size === 0;
  }

  add(drawing) {
    const card = this.#card(drawing);
    this.#cards.set(drawing, card);
    this.#list.append(card.element);
    drawing.addEventListener("change", () => this.#changed(drawing));
    this.#next();
    this.#settle();
    card.element.scrollIntoView({ block: "nearest", behavior: "smooth" }); // on a phone it is below the form
    say(`Drawing: ${drawing.settings.prompt}`);
  }

  /** Hands a stored picture to the card that it was drawn in. */
  stored(drawing, index, picture) {
    drawing.pictures[index].stored = picture;
    const frame = this.#cards.get(drawing)?.frames[index];
    if (!frame) return;
    show(frame.image, picture.blob);
    frame.element.dataset.state = "finished";
    frame.element.disabled = false;
    frame.element.setAttribute("aria-label", `Look at the picture: ${picture.prompt}`);
    frame.element.onclick = () => this.dispatchEvent(new CustomEvent("look", { detail: picture }));
  }

  /** Takes pictures that were deleted from the cards that show them. */
  gone(ids) {
    for (const drawing of [...this.#cards.keys()]) {
      if (drawing.state === "finished" && drawing.pictures.some((picture) => ids.includes(picture.stored?.id))) {
        this.#drop(drawing);
      }
    }
    this.#settle();
  }

  #next() {
    const all = [...this.#cards.keys()];
    const running = all.filter((drawing) => drawing.running).length;
    for (const drawing of all.filter((held) => held.state === "held").slice(0, MOST_AT_ONCE - running)) drawing.run();
  }

  #changed(drawing) {
    const card = this.#cards.get(drawing);
    if (!card) return;
    drawing.pictures.forEach((picture, index) => {
      const frame = card.frames[index];
      if (picture.preview && frame.preview !== picture.preview && !picture.stored) {
        frame.preview = picture.preview;
        frame.element.dataset.state = "forming";
        show(frame.image, picture.preview);
      }
    });
    this.#describe(drawing, card);
    if (drawing.open) {
      this.#settle();
      return;
    }
    if (drawing.state === "cancelled") {
      say("Cancelled.");
      this.#drop(drawing);
    } else if (drawing.state === "finished") {
      const kept = drawing.pictures.filter((picture) => picture.kept).length;
      say(`${pictures(kept)} finished: ${drawing.settings.prompt}`);
      drawing.pictures.forEach((picture, index) => (card.frames[index].element.hidden = !picture.kept));
      card.element.querySelector(".frames").dataset.number = kept;
    } else if (drawing.error.field && !(drawing.error instanceof Lost)) {
      this.dispatchEvent(new CustomEvent("refused", { detail: drawing.error }));
      this.#drop(drawing);
    } else if (drawing.error instanceof Lost) {
      this.dispatchEvent(new Event("lost"));
    }
    this.#next();
    this.#settle();
  }

  #drop(drawing) {
    const card = this.#cards.get(drawing);
    if (card.element.contains(document.activeElement)) at("prompt").focus({ preventScroll: true });
    for (const frame of card.frames) forget(frame.image);
    card.element.remove();
    this.#cards.delete(drawing);
  }

  /** Gives the stage to who is drawn now, else to who was drawn last; who is finished and not on it is in the gallery. */
  #settle() {
    const all = [...this.#cards.keys()];
    const finished = all.filter((drawing) => drawing.state === "finished");
    const stage =
      all.find((drawing) => drawing.state === "forming") ?? finished.at(-1) ?? all.find((drawing) => drawing.open);
    for (const drawing of finished) if (drawing !== stage) this.#drop(drawing);
    for (const [drawing, card] of this.#cards) card.element.classList.toggle("stage", drawing === stage);
    const open = all.filter((drawing) => drawing.open);
    document.title = open.length ? `${Math.round(100 * (stage?.share ?? 0))}% · latentd` : "latentd";
    this.dispatchEvent(new Event("change"));
  }

  #refresh() {
    for (const [drawing, card] of this.#cards) if (drawing.open) this.#describe(drawing, card);
  }

  #card(drawing) {
    const { prompt, images, width, height } = drawing.settings;
    const frames = drawing.pictures.map((_, index) => frameOf(drawing, index));
    const card = {
      frames,
      state: make("p", { class: "state" }),
      details: make("p", { class: "details" }),
      note: make("p", { class: "note", hidden: true }),
      complaint: make("p", { class: "complaint", role: "alert" }),
      bar: make("progress", { max: "1", "aria-label": "How much is drawn" }),
      cancel: make("button", { type: "button", onclick: () => drawing.cancel() }, "Cancel"),
      again: make("button", { type: "button", class: "strong", hidden: true }, "Try again"),
      another: make("button", { type: "button", hidden: true }, images > 1 ? "Draw more like them" : "Draw another like it"),
      dismiss: make("button", { type: "button", class: "quiet", hidden: true }, "Dismiss"),
    };
    card.again.addEventListener("click", () => {
      this.dispatchEvent(new CustomEvent("again", { detail: drawing.settings }));
      this.#drop(drawing);
      this.#settle();
    });
    card.another.addEventListener("click", () => {
      this.dispatchEvent(new CustomEvent("again", { detail: { ...drawing.settings, seed: rolled() } }));
    });
    card.dismiss.addEventListener("click", () => {
      this.#drop(drawing);
      this.#settle();
    });
    const well = make("div", { class: "frames" }, ...frames.map((frame) => frame.element));
    well.dataset.number = images;
    well.style.setProperty("--shape", width / height);
    card.element = make(
      "li",
      { class: "drawing" },
      well,
      make(
        "div",
        { class: "telling" },
        make("p", { class: "prompt" }, prompt),
        card.details,
        card.state,
        card.bar,
        card.note,
        card.complaint,
        make("div", { class: "acts" }, card.cancel, card.again, card.another, card.dismiss),
      ),
    );
    this.#describe(drawing, card);
    return card;
  }

  #describe(drawing, card) {
    const { steps, sampler, seed, width, height } = drawing.settings;
    card.element.dataset.state = drawing.state;
    card.details.textContent = [
      sizeWords(width, height),
      steps && `${steps} steps`,
      sampler && samplerWords(sampler),
      seed !== null && `seed ${seed}`,
    ]
      .filter(Boolean)
      .join(" · ");
    card.state.textContent = standing(drawing);
    card.bar.hidden = !drawing.open;
    card.bar.value = drawing.share;
    card.cancel.hidden = !drawing.open;
    card.again.hidden = card.dismiss.hidden = drawing.state !== "failed";
    card.another.hidden = drawing.state !== "finished";
    card.note.textContent = [
      drawing.cut ? "The prompt is longer than this model reads. Its end was left out." : "",
      drawing.state === "finished" ? `Choose ${drawing.settings.images > 1 ? "a" : "the"} picture to see how it formed.` : "",
    ].join(" ").trim();
    card.note.hidden = card.note.textContent === "";
    card.complaint.textContent = drawing.error ? sentence(drawing.error) : "";
  }
}

function frameOf(drawing, index) {
  const noise = make("canvas", { width: 48, height: 48, "aria-hidden": "true" });
  paintNoise(noise, (drawing.settings.seed ?? 0) + index);
  const image = make("img", { alt: "" });
  const element = make("button", { type: "button", class: "frame", disabled: true }, noise, image);
  element.setAttribute("aria-label", `Picture ${index + 1}, not finished yet`);
  element.dataset.state = "waiting";
  return { element, image, preview: null };
}

/** Returns where a request stands, in words. */
function standing(drawing) {
  const left = drawing.left;
  const rest = left === null ? "" : `, about ${duration(left)} left`;
  if (drawing.state === "held") return "Waits for your other requests";
  if (drawing.state === "sending") return "On its way to the server";
  if (drawing.state === "waiting" && drawing.ahead) return `In the queue, ${pictures(drawing.ahead)} before it${rest}`;
  if (drawing.state === "waiting") return `Next in the queue${rest}`;
  if (drawing.state === "finished") return "";
  if (drawing.state === "failed") return "Not drawn";
  const steps = drawing.pictures.map((picture) => picture.step);
  const least = Math.min(...steps);
  const made = drawing.made ?? drawing.settings.steps;
  return least >= made ? "Finishing" : `Step ${least} of ${made}${rest}`;
}
