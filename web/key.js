// The key of a server that asks for one: kept for as long as this tab is open, and sent to that server alone.

import { at } from "./dom.js";

const NAME = "latentd-key";
let held = null; // where the browser keeps nothing

/** Returns the headers that show the key, if there is one. */
export function shown() {
  let key = held;
  try {
    key = sessionStorage.getItem(NAME) ?? held;
  } catch {} // storage that is switched off
  return key ? { Authorization: `Bearer ${key}` } : {};
}

function keep(key) {
  held = key;
  try {
    if (key) sessionStorage.setItem(NAME, key);
    else sessionStorage.removeItem(NAME);
  } catch {}
}

let asking = null;

/** Asks for a key until one is given. Who asks meanwhile waits for the same one. */
export function askForKey() {
  asking ??= ask().finally(() => (asking = null));
  return asking;
}

/** Waits while a key is asked for: a dialog that closes has its key a moment later. */
export async function asked() {
  await asking;
}

async function ask() {
  const dialog = at("key"), field = at("key-field"), complaint = at("key-complaint");
  complaint.textContent = Object.keys(shown()).length ? "The server does not take this key: it is wrong, or no longer counts." : "";
  keep(null);
  field.value = "";
  do {
    if (!dialog.open) dialog.showModal();
    await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
    const key = field.value.trim();
    // What fetch refuses to send is no key either.
    complaint.textContent = /^[!-~]*$/.test(key) ? "" : "A key has no spaces, and no letters beyond A to Z.";
    if (key && !complaint.textContent) keep(key);
  } while (!Object.keys(shown()).length);
  field.value = "";
}
