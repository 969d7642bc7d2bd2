// What is open is in the address, so that Back closes it: #picture-12, #compare-12-15, #paint, or nothing.

const listeners = [];

/** Returns what the address says is open: its kind and the ids in it. */
export function route() {
  if (location.hash === "#paint") return { kind: "paint", ids: [] };
  const match = /^#(picture|compare)-(-?\d+)(?:-(-?\d+))?$/.exec(location.hash);
  return match ? { kind: match[1], ids: match.slice(2).filter(Boolean).map(Number) } : { kind: null, ids: [] };
}

export function onRoute(listener) {
  listeners.push(listener);
}

export function changed() {
  for (const listener of listeners) listener(route());
}

/** Opens by name; Back closes it again. */
export function open(name) {
  history.pushState({ opened: true }, "", `#${name}`);
  changed();
}

/** Opens in the place of what is open: Back leads out, not through everything that was looked at. */
export function instead(name) {
  history.replaceState(history.state, "", `#${name}`);
  changed();
}

/** Closes what is open: by going back where this page opened it, else (the address was given) in its place. */
export function close() {
  if (route().kind === null) return;
  if (history.state?.opened) {
    history.back();
    return;
  }
  history.replaceState(null, "", location.pathname + location.search);
  changed();
}

addEventListener("popstate", changed);
