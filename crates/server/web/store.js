// Conversations: kept by the server, or, where its store is switched off, in this tab until it closes.
// A chat is {id, local, title, model, created_at, updated_at, messages, run}; a message {id, role, content, reasoning, ...}.

import { ApiError, call, callJson } from "./api.js";

const PAGE = 40;
const path = (id, rest = "") => `v1/conversations/${encodeURIComponent(id)}${rest}`;
const now = () => Date.now() / 1000;

export class Store {
  constructor() {
    this.remote = true;     // until the server says 404, or 403: a key without the right to it
    this.refused = false;
    this.chats = new Map(); // id -> chat, those opened in this tab
    this.made = 0;
  }

  /** One page of {id, title, updated_at}, newest first. */
  async list(q, before) {
    if (this.remote) {
      try {
        const query = new URLSearchParams({ limit: PAGE, ...(before && { before }), ...(q && { q }) });
        const { data, has_more, next } = await callJson(`v1/conversations?${query}`);
        return { data, has_more, next: next ?? data.at(-1)?.id };
      } catch (e) {
        if (!(e instanceof ApiError && [403, 404, 501].includes(e.status))) throw e;
        this.remote = false;
        this.refused = e.status === 403;
      }
    }
    const wanted = q.toLowerCase();
    const data = [...this.chats.values()]
      .filter((c) => `${c.title}\n${c.messages.map((m) => m.content).join("\n")}`.toLowerCase().includes(wanted))
      .sort((a, b) => b.updated_at - a.updated_at);
    return { data, has_more: false };
  }

  async create(title, model) {
    const chat = this.remote
      ? { ...(await callJson("v1/conversations", { method: "POST", body: { title, model } })), local: false }
      : { id: `tab-${++this.made}`, local: true, title, created_at: now(), updated_at: now() };
    Object.assign(chat, { title: chat.title || title, model: chat.model || model, messages: [], run: null });
    this.chats.set(chat.id, chat);
    return chat;
  }

  async open(id) {
    const had = this.chats.get(id);
    if (had) return had;
    const chat = await callJson(path(id));
    Object.assign(chat, { local: false, run: null, messages: (chat.messages ?? []).map(fromServer) });
    this.chats.set(id, chat);
    return chat;
  }

  async rename(id, title) {
    const chat = this.chats.get(id);
    if (!chat?.local) await callJson(path(id), { method: "PATCH", body: { title } });
    if (chat) chat.title = title;
  }

  async remove(id) {
    if (!this.chats.get(id)?.local) await call(path(id), { method: "DELETE" });
    this.chats.delete(id);
  }

  /** Learns which of the chat's messages the server has, under which ids. */
  async sync(chat) {
    if (chat.local) return;
    const kept = (await callJson(path(chat.id))).messages ?? [];
    chat.messages.forEach((m, i) => { m.id = kept[i]?.role === m.role ? kept[i].id : null; });
  }

  /** Drops message `index` and all behind it. */
  async cut(chat, index) {
    await this.sync(chat);
    const first = chat.messages.slice(index).find((m) => m.id);
    if (first && !chat.local) await call(path(chat.id, `/messages/${encodeURIComponent(first.id)}`), { method: "DELETE" });
    chat.messages.length = index;
  }

  async exported(id, format) {
    const chat = this.chats.get(id);
    if (!chat?.local) return (await call(path(id, `/export?format=${format}`))).blob();
    const messages = chat.messages.map(({ role, content, reasoning }) => ({ role, content, ...(reasoning && { reasoning }) }));
    const text = format === "json"
      ? JSON.stringify({ title: chat.title, model: chat.model, messages }, null, 2)
      : `# ${chat.title}\n\n${messages.map((m) => `## ${NAMES[m.role] ?? m.role}\n\n${m.content}\n`).join("\n")}`;
    return new Blob([text], { type: format === "json" ? "application/json" : "text/markdown" });
  }
}

const NAMES = { user: "You", assistant: "Answer", system: "System prompt", tool: "Tool result" };

function fromServer(m) {
  return {
    id: m.id, role: m.role, content: textOf(m.content), reasoning: m.reasoning ?? m.reasoning_content ?? "", model: m.model ?? null,
    tools: (m.tool_calls ?? []).map((t) => ({ name: t.function?.name ?? "", arguments: t.function?.arguments ?? "" })),
    state: "done",
  };
}

/** A message's text, whether it is a string or a list of parts. */
const textOf = (content) => (Array.isArray(content) ? content.map((p) => p.text ?? "").join("") : content ?? "");
