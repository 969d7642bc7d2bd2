// Puts the page together: form, drawings, gallery, and what opens above them.

import { Lost, model } from "./api.js";
import { Compare } from "./compare.js";
import { at, make, say } from "./dom.js";
import { Drawing, sentence } from "./drawing.js";
import { Drawings } from "./drawings.js";
import { Form } from "./form/form.js";
import { Gallery } from "./gallery.js";
import { fillIcons } from "./icons.js";
import { askForKey } from "./key.js";
import { paintLandscape } from "./noise.js";
import { changed, close, onRoute } from "./route.js";
import { Store } from "./store.js";
import { Viewer } from "./viewer.js";
import { pictures, sizeWords } from "./words.js";

fillIcons();
const store = await Store.open();
const form = new Form();
const drawings = new Drawings();
const gallery = new Gallery(store);
const viewer = new Viewer(store);
const compare = new Compare();

function draw(settings) {
  const drawing = new Drawing({ ...settings });
  drawing.addEventListener("picture", async ({ detail: { index, record } }) => {
    const { picture, stored } = await store.add(record, drawing.pictures[index].frames);
    at("store-complaint").hidden = stored || !store.lasting;
    at("store-complaint").textContent = "The browser has no room to keep this picture: download it, or delete others.";
    drawings.stored(drawing, index, picture);
    gallery.refresh();
    settle();
  });
  drawings.add(drawing);
}

/** Shows the greeting where there is nothing else to show. */
function settle() {
  at("now").hidden = drawings.empty;
  at("welcome").hidden = !drawings.empty || store.pictures.length > 0;
}

let asked = null; // what was asked last

/** Asks, and returns whether the answer was yes. */
async function confirmed(question, yes) {
  at("confirm-question").textContent = question;
  at("confirm-yes").textContent = yes;
  const dialog = at("confirm");
  const mine = (asked = {});
  dialog.returnValue = "no";
  dialog.showModal();
  // A dialog says that it closed a moment later; by then it may be open again, with another question.
  do await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  while (mine === asked && dialog.open);
  return mine === asked && dialog.returnValue === "yes";
}

async function remove(ids, question, yes) {
  if (!(await confirmed(question, yes))) return;
  close();
  await store.remove(ids);
  drawings.gone(ids);
  gallery.refresh();
  settle();
  say("Deleted.");
  at("prompt").focus({ preventScroll: true });
}

form.addEventListener("draw", ({ detail }) => draw(detail));
drawings.addEventListener("again", ({ detail }) => draw(detail));
drawings.addEventListener("change", settle);
drawings.addEventListener("lost", () => connect());
drawings.addEventListener("refused", ({ detail }) => form.complain(detail.field, sentence(detail)));
drawings.addEventListener("look", ({ detail }) => at("grid").querySelector(`[data-id="${detail.id}"]`)?.click());
gallery.addEventListener("clear", () => {
  const ids = store.pictures.map((picture) => picture.id);
  remove(ids, `Delete ${ids.length === 1 ? "your picture" : `all ${pictures(ids.length)}`} for good?`, "Delete all");
});
viewer.addEventListener("reuse", ({ detail }) => {
  close();
  // The dialog gives the focus back to where it came from when it closes; then it is the prompt's.
  at("viewer").addEventListener("close", () => form.reuse(detail), { once: true });
});
viewer.addEventListener("start", ({ detail }) => {
  close();
  at("viewer").addEventListener("close", () => form.start(detail), { once: true });
});
gallery.addEventListener("start", ({ detail }) => form.start(detail));
viewer.addEventListener("compare", ({ detail }) => {
  close();
  at("viewer").addEventListener("close", () => gallery.pick(detail.id), { once: true });
});
viewer.addEventListener("delete", ({ detail }) => remove([detail.id], "Delete this picture for good?", "Delete"));
onRoute(({ kind, ids }) => {
  viewer.show(kind === "picture" ? store.find(ids[0]) : null);
  compare.show(...(kind === "compare" ? ids.map((id) => store.find(id)) : []));
});

let connecting = false;

/** Asks what is served until somebody answers, and says meanwhile what is wrong. */
async function connect() {
  if (connecting) return;
  connecting = true;
  for (let wait = 500; ; wait = Math.min(wait * 1.5, 5000)) {
    try {
      offer(await model());
      break;
    } catch (error) {
      if (error.status === 401) {
        at("served").textContent = "This server asks for a key.";
        await askForKey();
        continue;
      }
      const lost = error instanceof Lost;
      at("served").textContent = lost ? "No connection to the server. Looking for it…" : "The server is getting ready…";
      at("served").dataset.state = lost ? "lost" : "loading";
    }
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
  connecting = false;
}

let offered = null;

function offer(served) {
  const sizes = served.sizes.map(([width, height]) => sizeWords(width, height));
  at("served").textContent = `${served.id} · ${sizes.length > 3 ? `${sizes.length} sizes` : sizes.join(", ")}`;
  at("served").dataset.state = "ready";
  if (offered === served.weights_digest) return; // the same model again, after a pause: what stands in the form stays
  offered = served.weights_digest;
  form.offer(served);
  at("about").textContent = served.about || `This server draws with the model ${served.id}.`;
  const ideas = served.examples ?? [];
  at("ideas-part").hidden = ideas.length === 0;
  at("ideas").replaceChildren(
    ...ideas.slice(0, 12).map(({ prompt }) => {
      const choose = () => {
        form.set({ prompt });
        form.submit();
      };
      return make("li", {}, make("button", { type: "button", onclick: choose }, prompt));
    }),
  );
}

paintLandscape(at("landscape"));
settle();
changed();
connect();
addEventListener("keyless", () => connect());
addEventListener("visibilitychange", () => document.visibilityState === "visible" && connect());
