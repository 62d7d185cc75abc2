// Small helpers for nodes, kept settings and words. Nothing here or elsewhere sets innerHTML.

/** Makes an element: `h("p", {class: "note", onclick}, "text", node)`. */
export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(node.dataset, value);
    else if (name === "value") node.value = value;
    else node.setAttribute(name === "class" ? "class" : name, value === true ? "" : value);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined && c !== false));
  return node;
}

export const $ = (id) => document.getElementById(id);

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

export const setIcon = (button, name) => button.querySelector("use").setAttribute("href", `#i-${name}`);

export const iconButton = (name, label, onclick, data) =>
  h("button", { type: "button", class: "icon", "aria-label": label, title: label, onclick, data }, icon(name));

/** What a screen reader says next. */
export function announce(text) {
  $("live").textContent = "";
  requestAnimationFrame(() => { $("live").textContent = text; });
}

/** Choices kept in the browser; a browser that forbids it keeps them until the page closes. */
export const kept = {
  get(name, otherwise) {
    try { return JSON.parse(localStorage.getItem(`quarrel.${name}`)) ?? otherwise; } catch { return otherwise; }
  },
  set(name, value) {
    try { localStorage.setItem(`quarrel.${name}`, JSON.stringify(value)); } catch { /* not kept */ }
  },
};

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // no permission, or a plain http address: the old way
    const box = h("textarea", { class: "hide", "aria-hidden": "true", value: text });
    document.body.append(box);
    box.select();
    document.execCommand("copy");
    box.remove();
  }
}

/** Says "Copied" on a button for a moment. */
export function flash(button) {
  const use = button.querySelector("use"), before = use ? use.getAttribute("href") : button.textContent;
  if (use) use.setAttribute("href", "#i-check"); else button.textContent = "Copied";
  announce("Copied");
  setTimeout(() => { if (use) use.setAttribute("href", before); else button.textContent = before; }, 1400);
}

export function download(name, type, data) {
  const url = URL.createObjectURL(data instanceof Blob ? data : new Blob([data], { type }));
  const a = h("a", { href: url, download: name });
  document.body.append(a);
  a.click();
  a.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

/** A time of the API (seconds, or an ISO date) as a Date. */
export const asDate = (t) => new Date(typeof t === "number" ? (t < 1e12 ? t * 1000 : t) : t ?? Date.now());

export const count = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
export const short = (n) => (n < 1000 ? String(n) : n < 10000 ? `${(n / 1000).toFixed(1)}k` : `${Math.round(n / 1000)}k`);
export const seconds = (ms) => (ms < 100 ? `${ms.toFixed(0)} ms` : ms < 9950 ? `${(ms / 1000).toFixed(ms < 995 ? 2 : 1)} s` : `${Math.round(ms / 1000)} s`);
