// A small server with the routes that the page uses, for its tests: it streams with delays, fails, thinks, calls tools and
// breaks off, by what the last message says. `node mock.mjs [PORT] [--no-store] [--key KEY]` runs it by hand; with `--to URL`
// the page is served from this folder and everything else by a real server, so that the page can be changed without a build.

import { createServer, request } from "node:http";
import { readFile } from "node:fs/promises";
import { extname, join } from "node:path";
import { fileURLToPath } from "node:url";

const WEB = fileURLToPath(new URL("..", import.meta.url));
const TYPES = { ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml" };
const CSP = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const sleep = (ms) => new Promise((go) => setTimeout(go, ms));
const seconds = () => Date.now() / 1000;

const PRESETS = [
  { name: "precise", description: "One best answer", settings: { temperature: 0, top_k: 1 } },
  { name: "balanced", description: "A little variety", settings: { temperature: 0.7, top_p: 0.8999999761581421, min_p: 0.05 } },
  { name: "creative", description: "Much variety", settings: { temperature: 1.1, top_p: 0.98 } },
];

export const ANSWERS = {
  rich: `## Why the sky is blue

Sunlight is a **mix of colours**. Air scatters the *short* waves about \`λ⁻⁴\` as much as the long ones, so blue reaches you from everywhere. See [Rayleigh scattering](https://en.wikipedia.org/wiki/Rayleigh_scattering).

1. Light meets a molecule.
   - Blue is scattered most.
   - Red goes on.
2. Your eye adds it all up.

| colour | wavelength | scattered |
|:-------|-----------:|:---------:|
| violet | 400 nm | 9.4 |
| blue | 450 nm | 5.9 |
| red | 700 nm | 1.0 |

> At sunset the path is longer, so the blue is gone before it arrives.

\`\`\`python
# How much more one wavelength scatters than another
def scattering(a: float, b: float = 700.0) -> float:
    """Rayleigh: the inverse fourth power."""
    return (b / a) ** 4

print(f"{scattering(450):.1f}")  # 5.9
\`\`\`

- [x] blue sky
- [ ] green flash
`,
  xss: `<script>window.pwned = 1</script><img src=x onerror="window.pwned = 2">

[click](javascript:window.pwned=3) [data](data:text/html,<script>1</script>) [ok](https://example.org/a_(b)) <javascript:window.pwned=4>

![picture](https://example.org/leak.png) [ tricky](JaVaScRiPt:alert(1)) [vb](vbscript:x) https://example.org/plain.

<svg onload="window.pwned=5"></svg> <iframe srcdoc="<script>parent.pwned=6</script>"></iframe>

| <b>bold</b> | \`<i>\` |
|---|---|
| <script>window.pwned=7</script> | "><img src=x onerror=window.pwned=8> |

\`\`\`"><script>window.pwned=9</script>
</code></pre><script>window.pwned=10</script>
\`\`\`
`,
  unclosed: "Here is code that never ends:\n\n```js\nconst a = 1;\nconst b = `two`;\n",
  plain: "A short and calm answer, with a few words in it.",
};

function answerTo(text) {
  text = text.replace(/^slow /, "");
  const n = Number(/(\d+)$/.exec(text)?.[1] ?? 0);
  if (text.startsWith("long text")) return Array.from({ length: 1600 }, (_, i) => `Paragraph ${i} has **some bold** and \`code\` and goes on for a while, as models do when asked for very much text.\n\n`).join("");
  if (text.startsWith("long line")) return "word ".repeat(40000);
  if (text.startsWith("long code")) return "```js\n" + "const value = compute(1, 'two'); // three\n".repeat(4800) + "```\nAnd then the end.";
  if (text.startsWith("long list")) return Array.from({ length: 4500 }, (_, i) => `- item ${i} of a list with **words** in it\n`).join("");
  if (text.startsWith("huge table")) return "| a | b | c | d |\n|---|---|---|---|\n" + Array.from({ length: 4000 }, (_, i) => `| row ${i} | **two** | \`three\` | ${"x".repeat(i % 7)} four |\n`).join("") + "\nThe end of the table.";
  if (text.startsWith("hostile")) return "*_`[".repeat(12000) + "\n\n" + "> ".repeat(5000) + "deep\n\n" + "[](".repeat(9000) + "\n\n" + "(".repeat(9000) + "\n\n" + " ".repeat(20000) + "x|\n" + " ".repeat(20000) + "-x\n\n# " + " ".repeat(20000) + "x\n\n" + "- ".repeat(4000) + "\n\n[a](" + "(\\a".repeat(600);
  if (text.startsWith("words")) return "word ".repeat(n || 50);
  if (text.startsWith("Why is the sky blue")) return ANSWERS.rich;
  return ANSWERS[text.split(" ")[0]] ?? ANSWERS.plain;
}

/** Starts the server on the loopback; gives {url, seen, close}. `seen` holds the chat requests that came. */
export async function start({ port = 0, store = true, key = null, to = null } = {}) {
  const conversations = new Map(), seen = [];
  let made = 0;
  const error = (res, status, message, more = {}, headers = {}) => {
    res.writeHead(status, { "content-type": "application/json", ...headers });
    res.end(JSON.stringify({ error: { message, type: "invalid_request_error", param: null, code: null, ...more } }));
  };
  const json = (res, body, status = 200) => { res.writeHead(status, { "content-type": "application/json" }); res.end(JSON.stringify(body)); };
  const outline = ({ messages, ...c }) => ({ ...c, message_count: messages.length });
  const keep = (c, role, content, more = {}) => {
    c.messages.push({ id: `m${++made}`, role, content, created_at: seconds(), ...more });
    c.updated_at = seconds();
  };

  let held = null; // long answers wait for it before they end

  async function chat(req, res, body) {
    seen.push(body);
    const known = ["model", "preset", "messages", "stream", "stream_options", "logprobs", "top_logprobs", "conversation", "temperature", "top_p",
      "top_k", "min_p", "repetition_penalty", "max_tokens", "seed", "stop", "reasoning_effort"];
    const odd = Object.keys(body).find((k) => !known.includes(k));
    if (odd) return error(res, 400, `Unknown field \`${odd}\`.`, { param: odd });
    const c = body.conversation && conversations.get(body.conversation);
    if (body.conversation && !c) return error(res, 404, `No conversation \`${body.conversation}\`.`);
    if (!body.messages?.length) return error(res, 400, "`messages` is empty.", { param: "messages" });
    const text = body.messages.at(-1).content;
    if (text.startsWith("busy")) return error(res, 429, "The queue is full (64 requests wait).", { type: "rate_limit_error" }, { "retry-after": "2" });
    if (text.startsWith("too long")) return error(res, 400, "The prompt has 9000 tokens, the model takes 8192.", { code: "context_length_exceeded" });
    if (text.startsWith("broken")) return error(res, 500, "The step failed: NaN in blk.3.ffn_down.");
    if (c) for (const m of body.messages) if (m.role !== "system") keep(c, m.role, m.content); // a system prompt is for the request
    let gone = false;
    res.on("close", () => { gone = true; });
    res.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" });
    const id = `chatcmpl-${++made}`;
    let event = 0;
    const put = (value) => res.write(`id: ${id}:${event++}\ndata: ${typeof value === "string" ? value : JSON.stringify(value)}\n\n`);
    const base = { id, object: "chat.completion.chunk", created: Math.floor(seconds()), model: body.model };
    const delta = (d, more = {}) => put({ ...base, choices: [{ index: 0, delta: d, finish_reason: null, ...more }] });
    const slow = text.includes("slow");
    res.write(": ping\n\n");
    await sleep(slow ? 120 : 15);
    if (c) base.conversation = { id: c.id, left_out: { messages: text.startsWith("left") ? 12 : 0, tokens: 0, summarised: text.startsWith("left") ? 9 : 0, ids: [] } };
    delta({ role: "assistant", content: "" });
    delete base.conversation;
    let reasoning = "";
    if (text.startsWith("think")) {
      for (const w of "The person asks a simple thing. I weigh two ways, and take the **short** one.".split(/(?<= )/)) {
        delta({ reasoning_content: w });
        reasoning += w;
        await sleep(25);
      }
    }
    if (text.startsWith("tool")) {
      delta({ tool_calls: [{ index: 0, id: "call_1", type: "function", function: { name: "get_weather", arguments: "" } }] });
      for (const part of ['{"city": "', "Oslo", '", "days": 3}']) { delta({ tool_calls: [{ index: 0, function: { arguments: part } }] }); await sleep(10); }
      delta({ tool_calls: [{ index: 1, id: "call_2", type: "function", function: { name: "get_time", arguments: '{"zone":"<b>CET</b>"}' } }] });
    }
    const answer = answerTo(text);
    const big = answer.length > 20000;
    const tokens = big ? answer.match(/[^]{1,60}/gu) : answer.match(/\s?[^\s]{1,7}|\s/gu);
    let random = 7, sent = 0, said = "";
    const next = () => (random = (random * 48271) % 2147483647) / 2147483647;
    for (const token of tokens) {
      if (gone) break;
      const u = next(), logprob = Math.log(u < 0.7 ? 0.97 + u * 0.03 : Math.max(0.08, u * next()));
      const other = Math.log(Math.max(1e-4, (1 - Math.exp(logprob)) * 0.7));
      const entry = { token, logprob, bytes: [...Buffer.from(token)], top_logprobs: [{ token, logprob }, { token: " other", logprob: other }].slice(0, body.top_logprobs) };
      delta({ content: token }, body.logprobs ? { logprobs: { content: [entry] } } : {});
      said += token;
      if (text.startsWith("cut") && sent === 4) { res.destroy(); return; }
      if (text.startsWith("midway") && sent === 4) { put({ error: { message: "The request was preempted too often.", type: "server_error", param: null, code: null } }); res.end(); return; }
      if (!big || sent % 4 === 0) await sleep(slow ? 40 : big ? 1 : 3);
      if (++sent % 20 === 0) res.write(": ping\n\n");
      if (big && sent === Math.floor(tokens.length * 0.9)) await held;
    }
    if (c && said) keep(c, "assistant", said, { reasoning: reasoning || undefined, model: body.model });
    if (gone) return;
    put({ ...base, choices: [{ index: 0, delta: {}, finish_reason: text.startsWith("tool") ? "tool_calls" : "stop" }] });
    if (body.stream_options?.include_usage) {
      put({ ...base, choices: [], usage: { prompt_tokens: 120, completion_tokens: sent, total_tokens: 120 + sent, prompt_tokens_details: { cached_tokens: 96 } },
        timings: { prompt_ms: 31.5, first_token_ms: 48.2, decode_tokens_per_s: 212.4 } });
    }
    put("[DONE]");
    res.end();
  }

  async function route(req, res) {
    const url = new URL(req.url, "http://mock");
    const path = url.pathname;
    if (!path.startsWith("/v1/")) {
      const file = path === "/" ? "index.html" : path.slice(1);
      if (!/^[\w.-]+$/.test(file) || !TYPES[extname(file)]) return error(res, 404, "No such page.");
      try {
        const data = await readFile(join(WEB, file));
        res.writeHead(200, { "content-type": TYPES[extname(file)], "content-security-policy": CSP, "x-content-type-options": "nosniff" });
        return res.end(data);
      } catch { return error(res, 404, "No such page."); }
    }
    if (to) {
      const on = request(new URL(req.url, to), { method: req.method, headers: { ...req.headers, host: new URL(to).host } }, (answer) => {
        res.writeHead(answer.statusCode, answer.headers);
        answer.pipe(res);
      });
      on.on("error", () => res.destroy());
      res.on("close", () => on.destroy());
      return req.pipe(on);
    }
    if (key && req.headers.authorization !== `Bearer ${key}`) return error(res, 401, "The API key is missing or wrong.", { type: "authentication_error", code: "invalid_api_key" });
    let body = {};
    if (req.method === "POST" || req.method === "PATCH") {
      let text = "";
      for await (const part of req) text += part;
      body = JSON.parse(text);
    }
    if (path === "/v1/models") {
      return json(res, { object: "list", data: [{ id: "smollm2:135m", object: "model", owned_by: "local", context_length: 8192, loaded: true },
        { id: "gemma3:270m", object: "model", owned_by: "local", context_length: 32768, loaded: false }] });
    }
    if (path === "/v1/presets") return json(res, { data: PRESETS });
    if (path === "/v1/chat/completions") return chat(req, res, body);
    const m = /^\/v1\/conversations(?:\/([^/]+))?(?:\/(export|messages)(?:\/([^/]+))?)?$/.exec(path);
    if (!m || !store) return error(res, 404, "No such route.");
    const [, id, what, message] = m;
    if (!id) {
      if (req.method === "POST") {
        const c = { id: `conv-${++made}`, title: body.title ?? "", model: body.model ?? null, created_at: seconds(), updated_at: seconds(), messages: [] };
        conversations.set(c.id, c);
        return json(res, outline(c), 201);
      }
      const q = (url.searchParams.get("q") ?? "").toLowerCase(), limit = Number(url.searchParams.get("limit") ?? 20), before = url.searchParams.get("before");
      let all = [...conversations.values()].sort((a, b) => b.updated_at - a.updated_at);
      all = all.filter((c) => `${c.title}\n${c.messages.map((x) => x.content).join("\n")}`.toLowerCase().includes(q));
      if (before) all = all.slice(all.findIndex((c) => c.id === before) + 1);
      return json(res, { data: all.slice(0, limit).map(outline), has_more: all.length > limit });
    }
    const c = conversations.get(decodeURIComponent(id));
    if (!c) return error(res, 404, `No conversation \`${id}\`.`);
    if (what === "export") {
      if (url.searchParams.get("format") === "json") return json(res, c);
      res.writeHead(200, { "content-type": "text/markdown" });
      return res.end(`# ${c.title}\n\n${c.messages.map((x) => `**${x.role}**: ${x.content}\n`).join("\n")}`);
    }
    if (what === "messages" && req.method === "DELETE") {
      const at = c.messages.findIndex((x) => x.id === message);
      if (at < 0) return error(res, 404, "No such message.");
      c.messages.length = at;
      return json(res, outline(c));
    }
    if (req.method === "PATCH") { c.title = body.title; return json(res, outline(c)); }
    if (req.method === "DELETE") { conversations.delete(c.id); return json(res, { id: c.id, deleted: true }); }
    return json(res, c);
  }

  const server = createServer((req, res) => route(req, res).catch((e) => { console.error(e); if (!res.headersSent) error(res, 500, String(e)); }));
  await new Promise((go) => server.listen(port, "127.0.0.1", go));
  /** Keeps long answers from ending until what it returns is called, however slow the machine is. */
  const hold = () => {
    let go;
    held = new Promise((done) => { go = done; });
    return () => { held = null; go(); };
  };
  /** Fills the list, for pictures. */
  const seed = (title, ageDays, messages = []) => {
    const t = seconds() - ageDays * 86400;
    const c = { id: `conv-${++made}`, title, model: "smollm2:135m", created_at: t, updated_at: t, messages: [] };
    for (const [role, content] of messages) keep(c, role, content);
    c.updated_at = t;
    conversations.set(c.id, c);
  };
  return { url: `http://127.0.0.1:${server.address().port}/`, seen, conversations, seed, hold, close: () => { server.closeAllConnections(); server.close(); } };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const args = process.argv.slice(2), after = (name) => (args.includes(name) ? args[args.indexOf(name) + 1] : null);
  const mock = await start({ port: Number(args.find((a) => /^\d+$/.test(a)) ?? 8099), store: !args.includes("--no-store"), key: after("--key"), to: after("--to") });
  console.log(mock.url);
}
