// What the log-probabilities of an answer say: each token laid under the text it made, the mean confidence (the mean
// probability of the chosen tokens) and the perplexity (the exponential of the mean surprise, in nats).

/** Upper bounds of probability for the classes t0 (doubtful) to t3; what is above needs no colour. */
const STEPS = [0.25, 0.5, 0.75, 0.9];

export class TokenTrack {
  constructor() {
    this.tokens = [];  // {end: offset in the answer, p, logprob, text, top}: sorted; a token covers the text from the end before
    this.held = [];    // tokens whose text has not come yet (part of a character, or held back for a stop string)
    this.length = 0;   // characters of the answer so far
    this.count = 0;
    this.sumLogprob = 0;
    this.sumP = 0;
  }

  /** Takes the text and the tokens of one chunk (`logprobs.content`, may be absent). */
  push(text, entries) {
    for (const e of entries ?? []) {
      if (typeof e?.logprob !== "number" || Number.isNaN(e.logprob)) continue;
      const logprob = Math.min(0, Math.max(e.logprob, -100));
      const p = Math.exp(logprob);
      this.count++;
      this.sumLogprob += logprob;
      this.sumP += p;
      this.held.push({ end: 0, p, logprob, text: String(e.token ?? ""), top: e.top_logprobs ?? [] });
    }
    if (!text) return;
    const from = this.length;
    this.length += text.length;
    if (!this.held.length) return;
    const own = this.spelling(text);
    if (own) {
      let end = this.length;
      for (let i = own.length - 1; i >= 0; end -= own[i--].text.length) own[i].end = end;
      this.tokens.push(...own);
    } else { // parts of one character: together they have the probability of all of them
      const logprob = this.held.reduce((sum, t) => sum + t.logprob, 0);
      const only = this.held.length === 1 ? this.held[0] : { logprob, p: Math.exp(logprob), text, top: [] };
      only.end = this.length;
      this.tokens.push(only);
    }
    this.held.length = 0;
  }

  /** The last of the held tokens that make up the text. Those before them made none, such as the end of a reasoning; and
   *  the space before an answer may have been cut off. */
  spelling(text) {
    let said = "";
    for (let i = this.held.length - 1; i >= 0 && said.trimStart().length < text.length; i--) {
      said = this.held[i].text + said;
      if (said === text || said.trimStart() === text) return this.held.slice(i);
    }
    return null;
  }

  get confidence() { return this.count ? this.sumP / this.count : null; }
  get perplexity() { return this.count ? Math.exp(-this.sumLogprob / this.count) : null; }

  /** Index of the first token that ends behind `offset`. */
  at(offset) {
    let a = 0, b = this.tokens.length;
    while (a < b) {
      const mid = (a + b) >> 1;
      if (this.tokens[mid].end > offset) b = mid; else a = mid + 1;
    }
    return a;
  }

  /** The function that markdown.js calls to add text: cut at the tokens, each in a span of its class. */
  ink() {
    return (parent, source, a, b) => {
      for (let i = this.at(a); a < b; i++) {
        const t = this.tokens[i];
        const to = t ? Math.min(b, t.end) : b;
        if (to <= a) continue;
        for (; a < to && source[a] === " "; a++) parent.append(" "); // the tint hugs the word
        if (to <= a) continue;
        const step = t ? STEPS.findIndex((s) => t.p < s) : -1;
        const span = document.createElement("span");
        span.className = step < 0 ? "tok" : `tok t${step}`;
        if (t) span.dataset.i = i;
        span.textContent = source.slice(a, to);
        parent.append(span);
        a = to;
      }
    };
  }
}

const percent = (p) => (p >= 0.9995 ? "100%" : p < 0.001 ? "<0.1%" : p < 0.1 ? `${(p * 100).toFixed(1)}%` : `${Math.round(p * 100)}%`);
const visible = (s) => s.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "·") || "∅";

/** Fills the tooltip of a token: its probability, and what else it could have been. */
export function describeToken(tip, t) {
  const rows = t.top.length ? t.top : [{ token: t.text, logprob: t.logprob }];
  tip.replaceChildren(...rows.slice(0, 5).map((r) => {
    const row = document.createElement("div"), name = document.createElement("code"), bar = document.createElement("meter"),
      p = Math.exp(Math.min(0, r.logprob));
    row.className = r.token === t.text ? "chosen" : "";
    name.textContent = visible(String(r.token)).slice(0, 24);
    bar.value = p;
    const value = document.createElement("span");
    value.textContent = percent(p);
    row.append(name, bar, value);
    return row;
  }));
}

export { percent };
