// The official `openai` client for JavaScript against a running server: node openai_client.mjs BASE_URL MODEL.
import OpenAI from "openai";

const [base, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of France? Answer in one word." }];
let passed = 0, failed = 0;
const check = (ok, what) => { if (!ok) throw new Error(what); };
const run = async (name, f) => {
  try { await f(); passed++; } catch (e) { failed++; console.log(`FAIL ${name}: ${e}`); }
};

await run("chat", async () => {
  const a = await client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 12 });
  check(a.choices[0].message.content.includes("Paris"), JSON.stringify(a));
});
await run("stream", async () => {
  let text = "", usage = null;
  const stream = await client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 12, stream: true, stream_options: { include_usage: true } });
  for await (const chunk of stream) { text += chunk.choices[0]?.delta?.content ?? ""; usage = chunk.usage ?? usage; }
  check(text.includes("Paris") && usage.completion_tokens > 0, text);
});
await run("abort", async () => {
  const stream = await client.chat.completions.create({ model, messages: [{ role: "user", content: "Count to a thousand." }], max_tokens: 2000, stream: true });
  for await (const _ of stream) { stream.controller.abort(); }
});
await run("tools", async () => {
  const tools = [{ type: "function", function: { name: "add", parameters: { type: "object", properties: { a: { type: "integer", minimum: 0, maximum: 99 }, b: { type: "integer", minimum: 0, maximum: 99 } }, required: ["a", "b"] } } }];
  const a = await client.chat.completions.create({ model, messages: [{ role: "user", content: "Add 2 and 3." }], tools, tool_choice: "required", parallel_tool_calls: false, max_tokens: 80, temperature: 0 });
  const call = a.choices[0].message.tool_calls[0];
  check(call.function.name === "add" && Number.isInteger(JSON.parse(call.function.arguments).a), JSON.stringify(a));
});
await run("embeddings", async () => {
  const a = await client.embeddings.create({ model: "minilm", input: ["The cat sat on the mat.", "A kitten lay on a rug.", "Interest rates rose again."] });
  const v = a.data.map((d) => d.embedding), dot = (x, y) => x.reduce((s, n, i) => s + n * y[i], 0);
  check(Math.abs(dot(v[0], v[0]) - 1) < 1e-4 && dot(v[0], v[1]) > dot(v[0], v[2]) && a.usage.total_tokens > 10, JSON.stringify(a.usage));
});
await run("errors", async () => {
  const e = await client.chat.completions.create({ model: "nothing", messages }).catch((e) => e);
  check(e instanceof OpenAI.NotFoundError && e.code === "model_not_found", String(e));
});
await run("models", async () => {
  const ids = (await client.models.list()).data.map((m) => m.id);
  check(ids.includes(model), ids.join());
});

console.log(`openai for JavaScript: ${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
