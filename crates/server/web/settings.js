// The settings panel: sampling (a field left empty is not sent, so the preset or the model decides), system prompt, signals.

import { $, h, iconButton, kept } from "./dom.js";

const SLIDERS = [
  ["temperature", "Temperature", 0, 2, 0.05, "Higher is more varied, 0 always takes the likeliest token"],
  ["top_p", "Top p", 0, 1, 0.01, "Keeps the likeliest tokens up to this share of probability"],
  ["top_k", "Top k", 0, 200, 1, "Keeps this many of the likeliest tokens; 0 keeps all"],
  ["min_p", "Min p", 0, 0.5, 0.01, "Drops tokens less likely than this share of the likeliest"],
  ["repetition_penalty", "Repetition penalty", 1, 1.5, 0.01, "Makes tokens that were there already less likely"],
];
const NUMBERS = [
  ["max_tokens", "Longest answer", 1, 1000000, "tokens"],
  ["seed", "Seed", 0, Number.MAX_SAFE_INTEGER, "random"],
];

export class Settings {
  /** `hooks`: {tint(on), changed()}. */
  constructor(hooks) {
    this.values = kept.get("settings", {});
    this.system = kept.get("system", "");
    this.signals = kept.get("signals", true);
    this.effort = kept.get("effort", "");
    this.hooks = hooks;
    this.preset = {};
    this.fields = new Map();
    this.build();
  }

  /** What goes into a request: only what was set here. */
  request() {
    const out = {};
    for (const [name, value] of Object.entries(this.values)) if (value !== null && value !== undefined) out[name] = value;
    if (this.effort) out.reasoning_effort = this.effort;
    return out;
  }

  /** The preset's values become what an empty field shows. */
  usePreset(settings = {}) {
    this.preset = settings;
    $("system").placeholder = settings.system || "How the model should answer";
    this.drawFields();
  }

  set(name, value) {
    if (value === null) delete this.values[name]; else this.values[name] = value;
    kept.set("settings", this.values);
    this.drawFields();
    this.hooks.changed();
  }

  drawFields() {
    for (const [name, { box, range, row }] of this.fields) {
      // Six digits: a number of 32 bits, written with those of 64, is 0.8999999761581421.
      const own = this.values[name], given = typeof this.preset[name] === "number" ? Number(this.preset[name].toPrecision(6)) : null;
      if (document.activeElement !== box) box.value = own ?? "";
      box.placeholder = given !== null ? String(given) : box.dataset.none;
      if (range) {
        range.value = own ?? given ?? range.dataset.rest;
        range.setAttribute("aria-valuetext", own ?? (given !== null ? `${given}, by the preset` : "left to the model"));
      }
      row.classList.toggle("own", own !== undefined);
    }
    $("panel").querySelector(".reset")?.toggleAttribute("disabled", !Object.keys(this.values).length && !this.effort);
  }

  slider([name, label, min, max, step, help]) {
    const rest = { temperature: 1, top_p: 1, repetition_penalty: 1 }[name] ?? 0;
    const range = h("input", { type: "range", min, max, step, "aria-label": label, data: { rest }, oninput: () => this.set(name, Number(range.value)) });
    const box = this.number(name, label, min, name === "repetition_penalty" ? 2 : max, step, "auto");
    const row = h("div", { class: "field", title: help }, h("span", {}, label), box, range);
    this.fields.set(name, { box, range, row });
    return row;
  }

  number(name, label, min, max, step, none) {
    const box = h("input", { type: "number", inputmode: "decimal", min, max, step: "any", "aria-label": `${label}, number`, data: { none } });
    box.addEventListener("input", () => {
      if (box.value === "") { box.removeAttribute("aria-invalid"); this.set(name, null); return; }
      const v = Number(box.value), good = Number.isFinite(v) && v >= min && v <= max && (step !== 1 || Number.isInteger(v));
      box.setAttribute("aria-invalid", !good);
      box.title = good ? "" : `From ${min} to ${max}`;
      if (good) this.set(name, v);
    });
    return box;
  }

  toggle(label, help, on, change) {
    const box = h("input", { type: "checkbox", role: "switch", onchange: () => change(box.checked) });
    box.checked = on;
    return [h("label", { class: "switch" }, h("span", {}, label, h("small", {}, help)), box), box];
  }

  build() {
    const stop = h("input", { type: "text", placeholder: "none", "aria-label": "Stop at, separated by commas", data: { none: "none" },
      oninput: () => { const list = stop.value.split(",").map((s) => s.trim()).filter(Boolean).slice(0, 4); this.set("stop", list.length ? list : null); } });
    stop.value = (this.values.stop ?? []).join(", ");
    const effort = h("select", { "aria-label": "Reasoning", onchange: () => { this.effort = effort.value; kept.set("effort", this.effort); this.drawFields(); } },
      ...[["", "auto"], ["low", "low"], ["medium", "medium"], ["high", "high"]].map(([v, t]) => h("option", { value: v }, t)));
    effort.value = this.effort;
    const system = h("textarea", { rows: 3, id: "system", placeholder: "How the model should answer", maxlength: 20000,
      oninput: () => { this.system = system.value; kept.set("system", this.system); } });
    system.value = this.system;
    const [signals] = this.toggle("Quality signals", "Confidence and perplexity of each answer", this.signals,
      (on) => { this.signals = on; kept.set("signals", on); });
    const [tint, tintBox] = this.toggle("Colour by confidence", "Lays a tint under doubtful tokens", false, (on) => this.hooks.tint(on));
    this.tintBox = tintBox;
    const numbers = NUMBERS.map(([name, label, min, max, none]) => {
      const box = this.number(name, label, min, max, 1, none), row = h("div", { class: "field" }, h("span", {}, label), box);
      this.fields.set(name, { box, row });
      return row;
    });
    const reset = h("button", { type: "button", class: "plain reset", onclick: () => {
      this.values = {};
      this.effort = effort.value = "";
      stop.value = "";
      kept.set("settings", {});
      kept.set("effort", "");
      for (const { box } of this.fields.values()) { box.value = ""; box.removeAttribute("aria-invalid"); }
      this.drawFields();
      this.hooks.changed();
    } }, "Back to the preset");
    const keys = [["Enter", "send"], ["Shift Enter", "new line"], ["Esc", "stop"], ["↑", "edit the last message"], ["Ctrl K", "search"],
      ["Ctrl Shift O", "new chat"]];
    $("panel").append(
      h("div", { class: "panel-top" }, h("h2", {}, "Settings"), iconButton("close", "Close settings", () => this.show(false))),
      h("section", {}, h("h3", {}, "Sampling"), ...SLIDERS.map((s) => this.slider(s)), ...numbers,
        h("div", { class: "field" }, h("span", {}, "Stop at"), stop), h("div", { class: "field" }, h("span", {}, "Reasoning"), effort), reset),
      h("section", {}, h("h3", {}, h("label", { for: "system" }, "System prompt")), system, h("p", { class: "note" }, "Sent before the messages, each time.")),
      h("section", {}, h("h3", {}, "Signals"), signals, tint),
      h("section", { class: "keys" }, h("h3", {}, "Keys"), h("dl", {}, ...keys.flatMap(([k, what]) => [h("dt", {}, h("kbd", {}, k)), h("dd", {}, what)]))));
    $("panel").addEventListener("keydown", (e) => { if (e.key === "Escape") { e.stopPropagation(); this.show(false); } });
    this.drawFields();
  }

  show(on) {
    $("panel").hidden = !on;
    $("panel-open").setAttribute("aria-expanded", on);
    document.body.classList.toggle("panel-shown", on);
    if (on) $("panel").querySelector("button").focus({ preventScroll: true }); else $("panel-open").focus();
  }
}
