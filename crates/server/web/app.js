// The page of `quarrel serve`: which chat is shown, what runs, and what the keys do.
// Data flows one way: the stream fills a message, the message's view draws it; the lists are drawn from the store.

import { ApiError, apiKey, callJson, chatStream } from "./api.js";
import { MessageView, newAnswer, takeChunk } from "./message.js";
import { Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Store } from "./store.js";
import { describeToken } from "./quality.js";
import { $, announce, copyText, flash, h, kept, setIcon, short } from "./dom.js";

const store = new Store();
const options = { tint: kept.get("tint", false) };
const draw = { views: new Map(), stick: true };
let chat = null;       // the chat on the page; null is one that has not begun
let models = [], presets = [];
let opening = 0;

const settings = new Settings({ tint: setTint, changed: () => {} });
const sidebar = new Sidebar(store, {
  open: (id) => { showSide(false); openChat(id); },
  removed: (id) => { if (chat?.id === id) newChat(); },
  renamed: () => showTitle(),
  failed: (e) => failed(e, () => sidebar.refresh()),
});

// ---- what is shown -----------------------------------------------------------------------------------------------

const input = $("input");
const lastOf = (role) => chat?.messages.findLast((m) => m.role === role);

function showTitle() {
  document.title = chat?.title ? `${chat.title} · Quarrel` : "Quarrel";
}

function showChat() {
  draw.views.clear();
  draw.stick = true;
  $("thread").replaceChildren(...(chat?.messages ?? []).map(mount));
  if (!chat?.messages.length) $("thread").append(welcome());
  document.body.classList.toggle("empty", !chat?.messages.length);
  sidebar.select(chat?.id ?? null);
  showTitle();
  showRun();
  showContext();
  toEnd();
}

function mount(m) {
  const view = new MessageView(m, act, options);
  draw.views.set(m, view);
  return view.root;
}

function welcome() {
  const ask = (text) => h("button", { type: "button", class: "idea", onclick: () => send(text) }, text);
  return h("div", { class: "welcome" }, h("img", { src: "icon.svg", alt: "", width: 56, height: 56 }), h("h1", {}, "What is on your mind?"),
    h("div", { class: "ideas" }, ask("Explain how rainbows form"), ask("Write a haiku about autumn rain"),
      ask("Write a Python function that finds primes"), ask("Compare tea and coffee in a table")));
}

/** Send or stop, by whether the chat on the page is being answered. */
function showRun() {
  const busy = !!chat?.run, button = $("send");
  button.classList.toggle("stop", busy);
  button.setAttribute("aria-label", busy ? "Stop" : "Send");
  button.title = busy ? "Stop (Esc)" : "Send (Enter)";
  setIcon(button, busy ? "stop" : "send");
  button.disabled = !busy && !input.value.trim();
}

function showContext() {
  const size = models.find((m) => m.id === $("model").value)?.context_length, usage = lastOf("assistant")?.usage;
  const used = usage ? usage.prompt_tokens + usage.completion_tokens : 0;
  $("context").textContent = used ? `${short(used)}${size ? ` of ${short(size)}` : ""} tokens used` : "";
  $("context").classList.toggle("near", !!size && used > size * 0.85);
}

const scroller = $("scroll");
const toEnd = () => { scroller.scrollTop = scroller.scrollHeight; };
function follow() {
  if (draw.stick) toEnd();
  $("jump").hidden = draw.stick;
}
let seenTop = 0;
scroller.addEventListener("scroll", () => {
  const left = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
  if (left < 40) draw.stick = true;
  else if (scroller.scrollTop < seenTop - 2) draw.stick = false; // only a person scrolls up
  seenTop = scroller.scrollTop;
  $("jump").hidden = left < 160;
}, { passive: true });
$("jump").addEventListener("click", () => { draw.stick = true; toEnd(); input.focus(); });
new ResizeObserver(() => { if (draw.stick) toEnd(); }).observe(scroller);

/** One line above the chat: what went wrong and what to do. Asks for the key where the server wants one. */
function failed(e, again) {
  if (e.name === "AbortError") return;
  const known = e instanceof ApiError;
  if (!known) console.error(e);
  if (known && e.status === 401) { askKey(again); return; }
  const line = known ? e.line : "Something went wrong on this page. Reload it.";
  const note = h("div", { class: "notice", role: "alert" }, h("span", {}, line),
    again && h("button", { type: "button", onclick: () => { note.remove(); again(); } }, "Try again"),
    h("button", { type: "button", onclick: () => note.remove() }, "Dismiss"));
  $("notices").replaceChildren(note);
}

let waitingForKey = [];
function askKey(again) {
  if (again) waitingForKey.push(again);
  if (document.querySelector(".key")) return;
  const box = h("input", { type: "password", autocomplete: "off", spellcheck: "false", "aria-label": "API key", placeholder: "API key", required: true });
  const form = h("form", { class: "notice key" },
    h("span", {}, apiKey.get() ? "The server refused this key. Enter another:" : "This server asks for an API key:"), box,
    h("button", { type: "submit" }, "Use it"), h("small", {}, "Kept until this tab closes."));
  form.addEventListener("submit", (e) => {
    e.preventDefault();
    apiKey.set(box.value.trim());
    form.remove();
    const rest = waitingForKey;
    waitingForKey = [];
    rest.forEach((f) => f());
  });
  $("notices").replaceChildren(form);
  box.focus();
}

// ---- chats -------------------------------------------------------------------------------------------------------

function newChat() {
  opening++;
  chat = null;
  history.replaceState(null, "", location.pathname + location.search);
  $("notices").replaceChildren();
  showChat();
  input.focus();
}

async function openChat(id) {
  const turn = ++opening;
  try {
    const next = await store.open(id);
    if (turn !== opening) return;
    chat = next;
    if (!chat.local) history.replaceState(null, "", `#c=${encodeURIComponent(id)}`);
    if (chat.model && models.some((m) => m.id === chat.model)) $("model").value = chat.model;
    showChat();
    input.focus({ preventScroll: true });
  } catch (e) {
    if (turn !== opening) return;
    if (e instanceof ApiError && e.status === 404) { newChat(); sidebar.refresh(); }
    failed(e, e.status === 404 ? null : () => openChat(id));
  }
}

async function send(text) {
  text = text.trim();
  if (!text || chat?.run || send.starting) return;
  send.starting = true;
  $("notices").replaceChildren();
  try {
    if (!chat) {
      const turn = opening;
      const made = await store.create(text.split("\n")[0].slice(0, 60), $("model").value || undefined);
      if (turn === opening) {
        chat = made;
        if (!chat.local) history.replaceState(null, "", `#c=${encodeURIComponent(chat.id)}`);
        showChat();
      }
    }
    if (chat.unsure) await settle(chat);
    input.value = "";
    grow();
    push(chat, { role: "user", content: text, fresh: true });
    answer(chat);
  } catch (e) {
    failed(e, () => send(text));
  } finally { send.starting = false; }
}

/** After an answer that did not end well: drops it if it is empty, and learns what the server kept of the rest. */
async function settle(to) {
  to.messages = to.messages.filter((m) => m.role !== "assistant" || m.content);
  await store.sync(to);
  for (const m of to.messages) if (!to.local && !m.id) m.fresh = true; else delete m.fresh;
  to.unsure = false;
  if (to === chat) showChat();
}

function push(to, m) {
  to.messages.push(m);
  if (to !== chat) return;
  if (document.body.classList.contains("empty")) { document.body.classList.remove("empty"); $("thread").replaceChildren(); }
  $("thread").append(mount(m));
}

/** What the request holds: in a stored chat the messages that the server does not have yet, else all of them. */
function requestOf(to) {
  const messages = to.messages.filter((m) => to.local || m.fresh).filter((m) => m.role !== "assistant" || m.content)
    .map(({ role, content }) => ({ role, content }));
  if (settings.system.trim()) messages.unshift({ role: "system", content: settings.system.trim() }); // kept by nobody else
  return {
    ...(to.model && { model: to.model }), ...($("preset").value && { preset: $("preset").value }), ...settings.request(),
    messages, stream: true, stream_options: { include_usage: true }, ...(settings.signals && { logprobs: true, top_logprobs: 4 }),
    ...(!to.local && { conversation: to.id }),
  };
}

async function answer(to) {
  if ($("model").value) to.model = $("model").value;
  const body = requestOf(to), m = newAnswer(to.model);
  push(to, m);
  to.run = new AbortController();
  draw.stick = true;
  showRun();
  sidebar.draw();
  announce("Answering");
  const redraw = () => draw.views.get(m)?.schedule(follow);
  follow();
  try {
    for await (const chunk of chatStream(body, to.run.signal)) { takeChunk(m, chunk); redraw(); }
    m.state = "done";
    for (const sent of to.messages) delete sent.fresh;
  } catch (e) {
    to.unsure = true;
    m.state = e.name === "AbortError" ? "stopped" : "error";
    if (m.state === "error") m.error = e instanceof ApiError ? e : new ApiError(-1, { message: String(e.message) });
    if (e.status === 401) askKey(() => act("again", m));
  }
  if (models.find((x) => x.id === to.model)?.loaded === false) loadModels(); // it is now
  to.run = null;
  to.updated_at = Date.now() / 1000;
  if (to === chat) { showRun(); showContext(); }
  draw.views.get(m)?.draw();
  follow();
  announce(m.state === "done" ? `Answer: ${m.content.slice(0, 1500)}` : m.state === "stopped" ? "Stopped" : "");
  sidebar.refresh();
}

/** Goes back to before message `index` and asks again with `text`. */
async function goOn(from, index, text) {
  if (from.run) { from.run.abort(); await new Promise((go) => setTimeout(go, 50)); }
  try {
    await store.cut(from, index);
    await settle(from);
    push(from, { role: "user", content: text, fresh: true });
    answer(from);
  } catch (e) { failed(e, () => goOn(from, index, text)); }
}

function act(name, m) {
  const view = draw.views.get(m), at = chat?.messages.indexOf(m) ?? -1;
  if (at < 0) return;
  if (name === "copy") { copyText(m.content); flash(view.foot.querySelector("button")); }
  if (name === "edit") edit(view, m, at);
  if (name === "again") {
    const asked = chat.messages.slice(0, at + 1).findLastIndex((x) => x.role === "user");
    if (asked >= 0) goOn(chat, asked, chat.messages[asked].content);
  }
}

function edit(view, m, at) {
  if (view.root.querySelector("form")) return;
  const box = h("textarea", { "aria-label": "Edit the message", rows: 2, value: m.content });
  const close = () => { form.remove(); view.root.classList.remove("editing"); input.focus(); };
  const form = h("form", { class: "edit" }, box, h("div", {}, h("small", {}, "The chat goes on from here; what came after is dropped."),
    h("button", { type: "button", class: "plain", onclick: close }, "Cancel"), h("button", { type: "submit", class: "primary" }, "Send")));
  form.addEventListener("submit", (e) => { e.preventDefault(); const text = box.value.trim(); if (text) goOn(chat, at, text); });
  box.addEventListener("keydown", (e) => {
    if (e.key === "Enter" && !e.shiftKey && !e.isComposing) { e.preventDefault(); form.requestSubmit(); }
    if (e.key === "Escape") { e.preventDefault(); e.stopPropagation(); close(); }
  });
  box.addEventListener("input", () => fit(box));
  view.root.classList.add("editing");
  view.root.append(form);
  fit(box);
  box.focus();
  box.setSelectionRange(box.value.length, box.value.length);
}

// ---- composer, keys, chrome ----------------------------------------------------------------------------------------

function fit(box) {
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight + 2, window.innerHeight * 0.4)}px`;
}
const grow = () => { fit(input); showRun(); };
input.addEventListener("input", grow);
$("composer").addEventListener("submit", (e) => {
  e.preventDefault();
  if (chat?.run) stop(); else send(input.value);
});
function stop() { chat?.run?.abort(); }

input.addEventListener("keydown", (e) => {
  if (e.key === "Enter" && !e.shiftKey && !e.isComposing) { e.preventDefault(); if (!chat?.run) send(input.value); }
  if (e.key === "ArrowUp" && !input.value && !chat?.run) {
    const m = lastOf("user");
    if (m) { e.preventDefault(); act("edit", m); }
  }
});
document.addEventListener("keydown", (e) => {
  const ctrl = e.ctrlKey || e.metaKey;
  if (e.key === "Escape") {
    if (!sidebar.closeMenu() && !document.body.classList.contains("side-shown")) stop();
    showSide(false);
  } else if (ctrl && !e.shiftKey && e.key.toLowerCase() === "k") {
    e.preventDefault();
    document.body.classList.remove("side-hidden");
    if (phone.matches) showSide(true);
    $("search").focus();
    $("search").select();
  } else if (ctrl && e.shiftKey && e.key.toLowerCase() === "o") {
    e.preventDefault();
    showSide(false);
    newChat();
  }
});

const phone = matchMedia("(max-width: 760px)");
function showSide(on) { // the drawer of a narrow screen
  document.body.classList.toggle("side-shown", on);
  $("scrim").hidden = !on;
  showSideState();
}
const sideIsShown = () => document.body.classList.contains(phone.matches ? "side-shown" : "side-hidden") === phone.matches;
const showSideState = () => $("side-open").setAttribute("aria-expanded", sideIsShown());
$("side-open").addEventListener("click", () => {
  if (phone.matches) { showSide(true); $("search").focus({ preventScroll: true }); return; }
  kept.set("side", !document.body.classList.toggle("side-hidden"));
  showSideState();
});
$("side-close").addEventListener("click", () => showSide(false));
$("scrim").addEventListener("click", () => showSide(false));
document.body.classList.toggle("side-hidden", !kept.get("side", true));
phone.addEventListener("change", () => showSide(false));
$("new").addEventListener("click", () => { showSide(false); newChat(); });
$("home").addEventListener("click", (e) => { e.preventDefault(); showSide(false); newChat(); });
$("panel-open").addEventListener("click", () => settings.show($("panel").hidden));

const THEMES = { auto: ["auto", "as the system"], light: ["sun", "light"], dark: ["moon", "dark"] };
function setTheme(name) {
  const [icon, words] = THEMES[name];
  if (name === "auto") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = name;
  setIcon($("theme"), icon);
  $("theme").title = `Theme: ${words}`;
  $("theme").setAttribute("aria-label", `Theme: ${words}`);
  kept.set("theme", name);
}
const themeNow = () => document.documentElement.dataset.theme ?? "auto";
setTheme(Object.hasOwn(THEMES, kept.get("theme", "auto")) ? kept.get("theme", "auto") : "auto");
$("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  setTheme(names[(names.indexOf(themeNow()) + 1) % names.length]);
});

function setTint(on) {
  options.tint = on;
  kept.set("tint", on);
  $("tint").setAttribute("aria-pressed", on);
  settings.tintBox.checked = on;
  for (const view of draw.views.values()) if (view.m.track) view.draw();
}
$("tint").addEventListener("click", () => setTint(!options.tint));
setTint(options.tint);

// A token under the pointer tells its probability and what else it could have been.
$("thread").addEventListener("pointerover", (e) => {
  const span = e.target.closest?.(".tok[data-i]"), tip = $("tip");
  const m = span && [...draw.views.values()].find((v) => v.body.contains(span))?.m;
  const token = m?.track?.tokens[Number(span.dataset.i)];
  tip.hidden = !token;
  if (!token) return;
  describeToken(tip, token);
  const box = span.getClientRects()[0], size = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(box.left, window.innerWidth - size.width - 8))}px`;
  tip.style.top = `${box.top > size.height + 12 ? box.top - size.height - 6 : box.bottom + 6}px`;
});
$("thread").addEventListener("pointerleave", () => { $("tip").hidden = true; });
scroller.addEventListener("scroll", () => { $("tip").hidden = true; }, { passive: true });
$("thread").addEventListener("click", (e) => {
  const button = e.target.closest('[data-act="copy-code"]');
  if (!button) return;
  copyText(button.closest("figure").querySelector("code").textContent);
  flash(button);
});

// ---- models and presets --------------------------------------------------------------------------------------------

async function loadModels() {
  try {
    const answered = await callJson("v1/models");
    models = answered.data ?? [];
    const before = $("model").value || kept.get("model", "");
    $("model").replaceChildren(...models.map((m) => h("option", { value: m.id }, m.error ? `${m.id} (did not load)` : m.loaded === false ? `${m.id} (not loaded)` : m.id)));
    if (models.some((m) => m.id === before)) $("model").value = before;
    showModel();
  } catch (e) { failed(e, start); return false; }
  return true;
}

async function loadPresets() {
  try { presets = (await callJson("v1/presets")).data ?? []; } catch (e) { presets = []; if (e.status !== 404) failed(e, loadPresets); }
  $("preset-pick").hidden = !presets.length;
  $("preset").replaceChildren(h("option", { value: "" }, "Default"), ...presets.map((p) =>
    h("option", { value: p.name, title: p.description }, p.name)));
  const before = kept.get("preset", "");
  if (presets.some((p) => p.name === before)) $("preset").value = before;
  showPreset();
}

function showModel() {
  const m = models.find((x) => x.id === $("model").value);
  $("model").title = m?.context_length ? `${m.id}, ${m.context_length.toLocaleString("en")} tokens of context` : m?.id ?? "No model";
  showContext();
}
function showPreset() {
  const p = presets.find((x) => x.name === $("preset").value);
  $("preset").title = p?.description ?? "Preset";
  if (models.some((m) => m.id === p?.settings?.model)) { $("model").value = p.settings.model; showModel(); }
  settings.usePreset(p?.settings ?? {});
}
$("model").addEventListener("change", () => { kept.set("model", $("model").value); showModel(); });
$("preset").addEventListener("change", () => { kept.set("preset", $("preset").value); showPreset(); });

async function start() {
  if (!(await loadModels())) return;
  await Promise.all([loadPresets(), sidebar.refresh()]);
  if (idInAddress() && !chat) await openChat(idInAddress());
}

function idInAddress() {
  try { return decodeURIComponent(/^#c=(.+)$/.exec(location.hash)?.[1] ?? ""); } catch { return ""; }
}
addEventListener("hashchange", () => { // an address that a person typed; the page itself replaces, which is not told here
  if (idInAddress()) openChat(idInAddress()); else newChat();
});

showChat();
grow();
showSideState();
input.focus();
start();
