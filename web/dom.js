// Elements by id, and new ones with their attributes, listeners and children.

export const at = (id) => document.getElementById(id);

/** Makes an element. A key that begins with "on" is a listener; null and false leave an attribute out. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const shown = new WeakMap();

/** Shows a blob in an <img>, and lets the one before go when this one is there. */
export function show(image, blob) {
  const before = shown.get(image);
  const url = URL.createObjectURL(blob);
  shown.set(image, url);
  image.src = url;
  image
    .decode()
    .catch(() => {}) // another blob came meanwhile, or the element has gone
    .finally(() => before && URL.revokeObjectURL(before));
}

/** Lets the blob of an <img> go that is not shown any more. */
export function forget(image) {
  if (shown.has(image)) URL.revokeObjectURL(shown.get(image));
  shown.delete(image);
  image.removeAttribute("src");
}

/** Tells a screen reader what a glance would see. */
export function say(text) {
  at("said").textContent = text;
}
