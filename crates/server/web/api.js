// The server as the page sees it: requests with the key, errors as one sentence with what to do, and the event stream.

const KEY = "quarrel.key";
export const apiKey = {
  get: () => { try { return sessionStorage.getItem(KEY) ?? ""; } catch { return memoryKey; } },
  set: (key) => { memoryKey = key; try { key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY); } catch { /* kept in memory */ } },
};
let memoryKey = "";

/** What went wrong: `status` 0 is no answer at all, -1 a stream that ended too early. */
export class ApiError extends Error {
  constructor(status, error = {}, retryAfter = null) {
    super(oneLine(error.message) || (status > 0 ? `The server answered with status ${status}.` : "The server did not answer."));
    this.status = status;
    this.code = error.code ?? null;
    this.type = error.type ?? null;
    this.param = error.param ?? null;
    this.retryAfter = retryAfter;
  }

  /** One line: what went wrong and what to do. */
  get line() {
    const { message, advice } = this;
    return advice ? `${/[.!?]$/.test(message) ? message : `${message}.`} ${advice}` : message;
  }

  /** What a person can do about it. */
  get advice() {
    if (this.status === 0) return "Check that quarrel serve is running, then try again.";
    if (this.status === -1) return "What arrived is kept. Try again to get a whole answer.";
    if (this.status === 401) return "Enter the API key.";
    if (this.status === 403) return "This key may not do that; ask for one with the scope it names.";
    if (/context|too_long/.test(`${this.code} ${this.type}`)) return "Start a new chat, shorten the message, or edit an earlier one.";
    if (this.status === 404 && /model/i.test(`${this.code} ${this.param} ${this.message}`)) return "Choose another model above.";
    if (this.status === 404 && /conversation/i.test(this.message)) return "It may have been deleted; start a new chat.";
    if (this.status === 413) return "Send a shorter message.";
    if (this.status === 429) return this.retryAfter ? `Wait ${this.retryAfter} s, then try again.` : "Wait a moment, then try again.";
    if (this.status === 503) return "The server is starting or stopping; try again soon.";
    if (this.status === 400 && this.param) return `Change ${this.param} in the settings, then try again.`;
    if (this.status >= 500) return "Try again; if it stays, look at the server's log.";
    return "";
  }
}

const oneLine = (s) => (typeof s === "string" ? s.replace(/\s+/g, " ").trim().slice(0, 400) : "");

/** Sends a request and gives the response if it is a success. Paths are relative, so a proxy's prefix is kept. */
export async function call(path, { method = "GET", body, signal, headers = {} } = {}) {
  const key = apiKey.get();
  let response;
  try {
    response = await fetch(path, {
      method, signal, cache: "no-store",
      headers: { ...(body && { "content-type": "application/json" }), ...(key && { authorization: `Bearer ${key}` }), ...headers },
      body: body && JSON.stringify(body),
    });
  } catch (e) {
    if (e.name === "AbortError") throw e;
    throw new ApiError(0);
  }
  if (response.ok) return response;
  let error = {};
  try {
    const answer = await response.json();
    error = typeof answer.error === "string" ? { message: answer.error } : answer.error ?? {};
  } catch { /* not JSON: the status says what there is to say */ }
  throw new ApiError(response.status, error, parseInt(response.headers.get("retry-after"), 10) || null);
}

export const callJson = async (path, options) => (await call(path, options)).json();

/** The `data:` payloads of an event stream, comments and other fields left out. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      let from = 0;
      for (let end; (end = rest.indexOf("\n", from)) >= 0; from = end + 1) {
        const line = rest.slice(from, rest[end - 1] === "\r" ? end - 1 : end);
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) { yield data.join("\n"); data = []; }
      }
      rest = rest.slice(from);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** The chunks of a streamed chat completion. Throws ApiError on an error in the stream, or an end without `[DONE]`. */
export async function* chatStream(body, signal) {
  const response = await call("v1/chat/completions", { method: "POST", body, signal });
  try {
    for await (const data of events(response.body)) {
      if (data.trim() === "[DONE]") return;
      let chunk;
      try { chunk = JSON.parse(data); } catch { throw new ApiError(-1, { message: "The server sent an event that is not JSON." }); }
      if (chunk.error) throw new ApiError(chunk.error.status ?? 500, typeof chunk.error === "string" ? { message: chunk.error } : chunk.error);
      yield chunk;
    }
  } catch (e) {
    if (e instanceof ApiError || e.name === "AbortError") throw e;
    throw new ApiError(-1, { message: "The connection broke in the middle of the answer." });
  }
  throw new ApiError(-1, { message: "The connection broke in the middle of the answer." });
}
