// One message on the page: its text, reasoning, tool calls, error, figures and buttons. A running answer is drawn at
// most once per frame, and less often when a frame costs much, so that the page stays quick however long it grows.

import { MarkdownView } from "./markdown.js";
import { TokenTrack, percent } from "./quality.js";
import { count, h, icon, iconButton, seconds } from "./dom.js";

/** A fresh answer that a run fills. */
export const newAnswer = (model) => ({
  role: "assistant", content: "", reasoning: "", tools: [], model, state: "waiting", track: new TokenTrack(),
  stats: { sentAt: performance.now(), firstAt: 0, lastAt: 0, chunks: 0 },
});

/** Takes one chunk of the stream into the answer. */
export function takeChunk(m, chunk) {
  const choice = chunk.choices?.[0], delta = choice?.delta ?? {};
  const reasoning = delta.reasoning_content ?? delta.reasoning ?? "";
  const content = typeof delta.content === "string" ? delta.content : "";
  if (content || reasoning || delta.tool_calls?.length) {
    const t = performance.now();
    m.stats.firstAt ||= t;
    m.stats.lastAt = t;
    m.stats.chunks += Math.max(1, choice.logprobs?.content?.length ?? 1);
    m.state = "running";
  }
  if (reasoning) { m.reasoning += reasoning; m.stats.thinkingAt ||= performance.now(); }
  if (content) { m.content += content; if (m.reasoning) m.stats.thoughtAt ||= performance.now(); }
  if (reasoning) m.track.held.length = 0; // tokens between the reasoning and the answer belong to neither
  else m.track.push(content, choice?.logprobs?.content);
  for (const call of delta.tool_calls ?? []) {
    const tool = (m.tools[call.index ?? 0] ??= { name: "", arguments: "" });
    tool.name += call.function?.name ?? "";
    tool.arguments += call.function?.arguments ?? "";
  }
  if (choice?.finish_reason) m.finish = choice.finish_reason;
  if (chunk.conversation?.left_out?.messages) m.leftOut = chunk.conversation.left_out;
  if (chunk.usage) m.usage = chunk.usage;
  if (chunk.timings) m.timings = chunk.timings;
  if (chunk.model) m.model = chunk.model;
}

export class MessageView {
  /** `act(name, message)` is told which button was pressed; `options.tint` says whether tokens are coloured. */
  constructor(m, act, options) {
    this.m = m;
    this.act = act;
    this.options = options;
    const who = { user: "You", system: "System prompt", tool: "Tool result" }[m.role] ?? "Answer";
    this.root = h("article", { class: `msg ${m.role}`, "aria-label": who });
    this.build();
    this.draw();
  }

  build() {
    const { m } = this;
    if (m.role === "user") {
      this.body = h("div", { class: "bubble" });
      this.foot = h("footer", {}, iconButton("copy", "Copy", () => this.act("copy", m)), iconButton("edit", "Edit", () => this.act("edit", m)));
    } else if (m.role === "assistant") {
      this.summary = h("span");
      this.thoughts = h("div", { class: "md" });
      this.fold = h("details", { class: "reasoning", ontoggle: () => this.drawThoughts() }, h("summary", {}, icon("fold"), this.summary), this.thoughts);
      this.body = h("div", { class: "md" });
      this.tools = h("div", { class: "tools" });
      this.error = h("p", { class: "error", role: "alert" });
      this.figures = h("span", { class: "figures" });
      this.foot = h("footer", {}, this.figures, iconButton("copy", "Copy", () => this.act("copy", m)),
        iconButton("again", "Regenerate", () => this.act("again", m)));
      this.text = new MarkdownView(this.body);
      this.thoughtText = new MarkdownView(this.thoughts);
    } else {
      this.body = h("div", { class: "pre" });
      this.fold = h("details", { class: "aside" }, h("summary", {}, icon("fold"), m.role === "system" ? "System prompt" : "Tool result"), this.body);
    }
    this.root.append(...[this.fold, m.role === "user" || m.role === "assistant" ? this.body : null, this.tools, this.error, this.foot].filter(Boolean));
  }

  draw() {
    const { m } = this;
    if (m.role !== "assistant") { this.body.textContent = m.content; return; }
    const busy = m.state === "waiting" || m.state === "running";
    this.root.classList.toggle("busy", busy);
    this.root.classList.toggle("waiting", m.state === "waiting");
    this.root.setAttribute("aria-busy", busy);
    this.fold.hidden = !m.reasoning;
    if (m.reasoning) this.drawThoughts(busy);
    this.text.update(m.content, this.options.tint && m.track?.tokens.length ? m.track.ink() : null, !busy);
    this.drawTools();
    this.drawError();
    this.drawFigures(busy);
  }

  drawThoughts(busy = this.m.state === "running") {
    const { m } = this, s = m.stats;
    const thinking = busy && !m.content;
    const ms = s?.thinkingAt ? (s.thoughtAt ?? (thinking ? performance.now() : s.lastAt)) - s.thinkingAt : 0;
    this.summary.textContent = thinking ? "Thinking" : ms > 500 ? `Thought for ${seconds(ms)}` : "Thoughts";
    this.fold.classList.toggle("thinking", thinking);
    if (this.fold.open) this.thoughtText.update(m.reasoning, null, !busy);
  }

  drawTools() {
    const tools = (this.m.tools ?? []).filter(Boolean);
    while (this.tools.children.length > tools.length) this.tools.lastChild.remove();
    tools.forEach((t, i) => {
      const card = this.tools.children[i] ?? this.tools.appendChild(
        h("details", { class: "tool" }, h("summary", {}, icon("tool"), h("span", {}, "Calls "), h("code"), icon("fold")), h("pre", { tabindex: 0 })));
      card.querySelector("code").textContent = t.name || "a tool";
      let shown = t.arguments;
      try { shown = JSON.stringify(JSON.parse(t.arguments), null, 2); } catch { /* still arriving: as it is */ }
      const pre = card.querySelector("pre");
      if (pre.textContent !== shown) pre.textContent = shown;
    });
  }

  drawError() {
    const { m } = this;
    const said = m.error ? m.error.line : notes(m);
    this.root.classList.toggle("failed", !!m.error);
    if (this.error.dataset.said === said) return;
    this.error.dataset.said = said;
    this.error.replaceChildren(...(said ? [h("span", {}, said)] : []),
      ...(m.error ? [h("button", { type: "button", onclick: () => this.act("again", m) }, "Try again")] : []));
  }

  drawFigures(busy) {
    const { m } = this, s = m.stats;
    if (!s) { this.figures.textContent = ""; return; }
    const out = [];
    const tokens = m.usage?.completion_tokens ?? s.chunks;
    const span = s.lastAt - s.firstAt;
    const rate = m.timings?.decode_tokens_per_s ?? (s.chunks > 1 && span > 0 ? ((s.chunks - 1) * 1000) / span : null);
    const first = m.timings?.first_token_ms ?? (s.firstAt ? s.firstAt - s.sentAt : null);
    if (rate) out.push(["rate", `${rate < 100 ? rate.toFixed(1) : Math.round(rate)} tokens/s`, "Speed of decoding"]);
    if (first !== null) out.push(["ttft", `first ${seconds(first)}`, "Time to the first token"]);
    if (tokens && !busy) out.push(["count", count(tokens, "token"), cached(m.usage)]);
    if (m.track?.count) {
      out.push(["confidence", `confidence ${percent(m.track.confidence)}`, "Mean probability of the tokens of this answer"]);
      out.push(["perplexity", `perplexity ${m.track.perplexity.toFixed(2)}`, "Exponential of the mean surprise: 1 is certain"]);
    }
    // The spans stay, their text changes: nothing moves or is read again.
    while (this.figures.children.length > out.length) this.figures.lastChild.remove();
    out.forEach(([name, text, title], i) => {
      const node = this.figures.children[i] ?? this.figures.appendChild(h("span"));
      if (node.textContent !== text) node.textContent = text;
      node.className = name;
      node.title = title;
    });
  }

  /** Draws at the next good moment. `after` runs each time it was drawn. */
  schedule(after) {
    if (this.planned) return;
    this.planned = true;
    const frame = () => {
      this.planned = false;
      if (!this.root.isConnected) return;
      const t = performance.now();
      this.draw();
      after();
      const cost = performance.now() - t; // with the layout that `after` asks for
      this.rest = cost > 6 ? Math.min(1000, cost * 3) : 0;
    };
    // A hidden page gets no frames; it is drawn when it is seen again.
    setTimeout(() => requestAnimationFrame(frame), this.rest ?? 0);
  }
}

/** What else there is to say under an answer. */
function notes(m) {
  const out = [];
  if (m.state === "stopped") out.push("Stopped.");
  if (m.state === "done" && m.finish === "length") out.push("The answer reached the longest length allowed. Raise “Longest answer” in the settings for more.");
  if (m.leftOut) {
    const { messages, summarised } = m.leftOut;
    out.push(`${count(messages, "earlier message")} did not fit into the model's window${summarised ? `; a summary stands for ${summarised} of them` : ""}.`);
  }
  return out.join(" ");
}

const cached = (usage) => {
  if (!usage) return "Tokens of this answer";
  const n = usage.prompt_tokens_details?.cached_tokens ?? 0;
  return `Prompt ${count(usage.prompt_tokens, "token")}${n ? `, of them ${n.toLocaleString("en")} from the cache` : ""}`;
};
