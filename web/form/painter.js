// A mask painted over a picture: strokes of a brush and an eraser, each of which can be taken back. Listeners of
// "change" hear of it when the easel is put away, and when it gets a picture.

import { blobOf } from "../api.js";
import { at, forget, show } from "../dom.js";
import { close, open } from "../route.js";

const FINE = 768; // pixels of the longer side that are painted on at least: strokes on a small picture are round too

export class Painter extends EventTarget {
  #dialog = at("painter");
  #veil = at("easel-veil");
  #brush = this.#veil.getContext("2d", { willReadFrequently: true });
  #deeds = []; // strokes, fills and swaps, in their order
  #erasing = false;
  #stroke = null; // the one under way
  #spot = null; // where the brush is, in the veil's pixels
  #picture = null;

  constructor() {
    super();
    this.#dialog.addEventListener("cancel", (event) => {
      event.preventDefault();
      close();
    });
    this.#dialog.querySelector(".close").addEventListener("click", close);
    at("painted").addEventListener("click", close);
    at("brush").addEventListener("click", () => this.#take(false));
    at("eraser").addEventListener("click", () => this.#take(true));
    at("brush-size").addEventListener("input", () => this.#ring());
    at("undo").addEventListener("click", () => {
      this.#deeds.pop();
      this.#again();
    });
    at("invert").addEventListener("click", () => this.#do({ kind: "swap" }));
    at("wipe").addEventListener("click", () => this.#do({ kind: "wipe" }));
    this.#dialog.addEventListener("keydown", (event) => {
      if ((event.ctrlKey || event.metaKey) && event.key === "z" && !at("undo").disabled) at("undo").click();
    });
    this.#veil.addEventListener("pointerdown", (event) => this.#down(event));
    this.#veil.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) this.#veil.addEventListener(name, () => this.#up());
    this.#veil.addEventListener("pointerleave", () => !this.#stroke && (at("ring").hidden = true));
    this.#veil.addEventListener("keydown", (event) => this.#key(event));
    this.#veil.addEventListener("blur", () => (at("ring").hidden = true));
  }

  /** Puts a picture on the easel, and perhaps a mask (a canvas or bitmap: white is painted) that it had before. */
  load(picture, mask = null) {
    this.#picture = picture;
    const scale = Math.max(1, Math.ceil(FINE / Math.max(picture.width, picture.height)));
    this.#veil.width = picture.width * scale;
    this.#veil.height = picture.height * scale;
    this.#deeds = mask ? [{ kind: "mask", mask: opaque(mask) }] : [];
    this.#spot = null;
    this.#take(false);
    this.#again();
    this.dispatchEvent(new Event("change"));
  }

  /** Returns the painted veil. */
  get veil() {
    return this.#veil;
  }

  open() {
    open("paint");
  }

  /** Shows the easel, or puts it away. */
  show(shown) {
    if (!shown) {
      if (!this.#dialog.open) return;
      this.#dialog.close();
      forget(at("easel-picture"));
      this.dispatchEvent(new Event("change"));
      return;
    }
    if (!this.#picture) {
      close(); // the address alone brings no picture back
      return;
    }
    show(at("easel-picture"), this.#picture.blob);
    at("easel").style.setProperty("--shape", this.#picture.width / this.#picture.height);
    if (!this.#dialog.open) this.#dialog.showModal();
    this.#veil.focus({ preventScroll: true });
    at("ring").hidden = true;
  }

  /** Returns the mask as a PNG of the picture's sides, white where it was painted; null where nothing was. */
  mask() {
    if (!this.#picture) return null;
    const { width, height } = this.#picture;
    const white = copyOf(this.#veil, this.#veil.width, this.#veil.height);
    const colour = white.getContext("2d");
    colour.globalCompositeOperation = "source-in";
    colour.fillStyle = "white";
    colour.fillRect(0, 0, white.width, white.height);
    const mask = document.createElement("canvas");
    mask.width = width;
    mask.height = height;
    const context = mask.getContext("2d", { willReadFrequently: true });
    context.fillRect(0, 0, width, height);
    context.imageSmoothingQuality = "high";
    context.drawImage(white, 0, 0, width, height);
    const { data } = context.getImageData(0, 0, width, height);
    let painted = false;
    for (let index = 0; index < data.length && !painted; index += 4) painted = data[index] >= 128;
    return painted ? blobOf(mask.toDataURL("image/png").split(",")[1], "image/png") : null;
  }

  #take(erasing) {
    this.#erasing = erasing;
    at("brush").setAttribute("aria-pressed", String(!erasing));
    at("eraser").setAttribute("aria-pressed", String(erasing));
  }

  /** Returns the brush's width in the veil's pixels: a share of the picture's longer side. */
  get #width() {
    return Math.max(1, (Number(at("brush-size").value) / 100) * Math.max(this.#veil.width, this.#veil.height));
  }

  #do(deed) {
    this.#deeds.push(deed);
    this.#apply(deed);
    this.#changed();
  }

  #again() {
    this.#brush.clearRect(0, 0, this.#veil.width, this.#veil.height);
    for (const deed of this.#deeds) this.#apply(deed);
    this.#changed();
  }

  #changed() {
    at("undo").disabled = at("wipe").disabled = this.#deeds.length === 0;
  }

  #apply(deed) {
    const { width, height } = this.#veil;
    this.#brush.globalCompositeOperation = "source-over";
    if (deed.kind === "wipe") this.#brush.clearRect(0, 0, width, height);
    if (deed.kind === "mask") this.#fill((context) => context.drawImage(deed.mask, 0, 0, width, height));
    if (deed.kind === "swap") {
      this.#brush.globalCompositeOperation = "source-out";
      this.#brush.fillStyle = hatch(this.#brush);
      this.#brush.fillRect(0, 0, width, height);
    }
    if (deed.kind === "stroke") deed.spots.forEach((spot, index) => this.#line(deed, deed.spots[index - 1] ?? spot, spot));
  }

  #fill(draw) {
    draw(this.#brush);
    this.#brush.globalCompositeOperation = "source-in";
    this.#brush.fillStyle = hatch(this.#brush);
    this.#brush.fillRect(0, 0, this.#veil.width, this.#veil.height);
  }

  #line(stroke, from, to) {
    this.#brush.globalCompositeOperation = stroke.erasing ? "destination-out" : "source-over";
    this.#brush.strokeStyle = this.#brush.fillStyle = hatch(this.#brush);
    this.#brush.lineWidth = stroke.width;
    this.#brush.lineCap = "round";
    this.#brush.beginPath();
    if (from[0] === to[0] && from[1] === to[1]) {
      this.#brush.arc(...to, stroke.width / 2, 0, 2 * Math.PI); // a line without length is not drawn
      this.#brush.fill();
      return;
    }
    this.#brush.moveTo(...from);
    this.#brush.lineTo(...to);
    this.#brush.stroke();
  }

  #where(event) {
    const box = this.#veil.getBoundingClientRect();
    return [
      ((event.clientX - box.left) / box.width) * this.#veil.width,
      ((event.clientY - box.top) / box.height) * this.#veil.height,
    ];
  }

  #down(event) {
    if (event.button !== 0 || !event.isPrimary) return;
    this.#veil.setPointerCapture(event.pointerId);
    this.#spot = this.#where(event);
    this.#stroke = { kind: "stroke", erasing: this.#erasing, width: this.#width, spots: [this.#spot] };
    this.#line(this.#stroke, this.#spot, this.#spot);
    this.#ring();
  }

  #move(event) {
    if (!event.isPrimary) return;
    for (const each of event.getCoalescedEvents?.() ?? []) this.#on(this.#where(each));
    this.#on(this.#where(event));
    this.#ring(event.pointerType !== "touch");
  }

  #on(spot) {
    if (this.#stroke) {
      this.#line(this.#stroke, this.#stroke.spots.at(-1), spot);
      this.#stroke.spots.push(spot);
    }
    this.#spot = spot;
  }

  #up() {
    if (!this.#stroke) return;
    this.#deeds.push(this.#stroke);
    this.#stroke = null;
    this.#changed();
  }

  #key(event) {
    const { width, height } = this.#veil;
    this.#spot ??= [width / 2, height / 2];
    const by = this.#width / (event.shiftKey ? 1 : 3);
    const steps = { ArrowLeft: [-by, 0], ArrowRight: [by, 0], ArrowUp: [0, -by], ArrowDown: [0, by] };
    if (steps[event.key]) {
      const [x, y] = steps[event.key];
      this.#spot = [Math.min(width, Math.max(0, this.#spot[0] + x)), Math.min(height, Math.max(0, this.#spot[1] + y))];
    } else if (event.key === " ") {
      this.#do({ kind: "stroke", erasing: this.#erasing, width: this.#width, spots: [this.#spot] });
    } else {
      return;
    }
    event.preventDefault();
    this.#ring();
  }

  /** Draws the brush's rim where it is. */
  #ring(shown = true) {
    const ring = at("ring");
    ring.hidden = !shown || !this.#spot;
    if (ring.hidden) return;
    const { width, height } = this.#veil;
    ring.style.setProperty("--x", `${(100 * this.#spot[0]) / width}%`);
    ring.style.setProperty("--y", `${(100 * this.#spot[1]) / height}%`);
    ring.style.setProperty("--size", `${(100 * this.#width) / width}%`);
  }
}

let pattern = null;

/** Returns what is painted with: stripes, which are seen on a picture of any colour. */
function hatch(context) {
  if (!pattern) {
    const tile = new OffscreenCanvas(24, 24);
    const stripes = tile.getContext("2d");
    stripes.fillStyle = "#ff6a2b";
    stripes.fillRect(0, 0, 24, 24);
    stripes.strokeStyle = "#8a1fd0";
    stripes.lineWidth = 6;
    for (const x of [-24, 0, 24]) {
      stripes.moveTo(x - 12, 36); // beyond the tile, so that tiles have no seam
      stripes.lineTo(x + 36, -12);
    }
    stripes.stroke();
    pattern = context.createPattern(tile, "repeat");
  }
  return pattern;
}

function copyOf(image, width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d", { willReadFrequently: true }).drawImage(image, 0, 0, width, height);
  return canvas;
}

/** Returns a mask as a canvas that is opaque where the mask is white, and clear elsewhere. */
function opaque(mask) {
  const canvas = copyOf(mask, mask.width, mask.height);
  const context = canvas.getContext("2d");
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let index = 0; index < pixels.data.length; index += 4) {
    pixels.data[index + 3] = pixels.data[index] >= 128 ? 255 : 0;
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}
