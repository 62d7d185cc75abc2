// The list of conversations: search, choose, rename, delete, export.

import { $, asDate, download, h, icon, iconButton } from "./dom.js";

export class Sidebar {
  /** `hooks`: {open(id), removed(id), failed(error), renamed(id, title)}. */
  constructor(store, hooks) {
    this.store = store;
    this.hooks = hooks;
    this.items = [];
    this.more = false;
    this.current = null;
    this.turn = 0;
    let wait;
    $("search").addEventListener("input", () => { clearTimeout(wait); wait = setTimeout(() => this.refresh(), 180); });
    $("search").addEventListener("keydown", (e) => {
      if (e.key === "ArrowDown" || e.key === "Enter") { e.preventDefault(); $("list").querySelector(".open")?.[e.key === "Enter" ? "click" : "focus"](); }
      if (e.key === "Escape" && e.target.value) { e.preventDefault(); e.stopPropagation(); e.target.value = ""; this.refresh(); }
    });
    $("list").addEventListener("focusin", (e) => { const row = e.target.closest(".conv"); if (row) this.rove(row); });
    $("list").addEventListener("keydown", (e) => {
      if (e.key !== "ArrowDown" && e.key !== "ArrowUp") return;
      const all = [...$("list").querySelectorAll(".open")], i = all.indexOf(document.activeElement);
      if (i < 0) return;
      e.preventDefault();
      (all[i + (e.key === "ArrowDown" ? 1 : -1)] ?? (e.key === "ArrowUp" ? $("search") : all[i])).focus();
    });
    document.addEventListener("click", (e) => { if (!e.target.closest(".menu, .more")) this.closeMenu(); });
  }

  async refresh(append = false) {
    const turn = ++this.turn;
    try {
      const answer = await this.store.list($("search").value.trim(), append ? this.next : undefined);
      if (turn !== this.turn) return; // a later search has been asked
      this.items = append ? [...this.items, ...answer.data] : answer.data;
      this.more = !!answer.has_more;
      this.next = answer.next;
      this.draw();
    } catch (e) { this.hooks.failed(e); }
  }

  select(id) {
    this.current = id;
    this.draw();
  }

  draw() {
    if ($("list").querySelector(".rename, .menu")) { this.late = true; return; } // not under a person's hands
    this.late = false;
    const focus = document.activeElement?.closest?.("#list .conv")?.dataset.id;
    const nodes = [];
    let group = "";
    for (const item of this.items) {
      const name = groupOf(asDate(item.updated_at));
      if (name !== group) nodes.push(h("h2", {}, (group = name)));
      nodes.push(this.row(item));
    }
    if (this.more) nodes.push(h("button", { type: "button", class: "plain", onclick: () => this.refresh(true) }, "Show more"));
    $("list").replaceChildren(...nodes);
    this.rove(this.rowOf(this.current) ?? $("list").querySelector(".conv"));
    if (focus) this.rowOf(focus)?.querySelector(".open").focus({ preventScroll: true });
    const searched = $("search").value.trim();
    $("list-note").textContent = !this.store.remote
      ? `${this.store.refused ? "This key may not keep conversations" : "This server keeps no conversations"}: chats stay in this tab and end with it.`
      : this.items.length ? "" : searched ? "Nothing found." : "Your conversations will be listed here.";
  }

  /** Tab stops at one row only; the arrow keys go to the others. */
  rove(row) {
    for (const b of $("list").querySelectorAll(".conv > button")) b.tabIndex = b.parentElement === row ? 0 : -1;
  }

  rowOf(id) { return $("list").querySelector(`[data-id="${CSS.escape(id)}"]`); }

  row(item) {
    const title = item.title || "Untitled", here = item.id === this.current;
    return h("div", { class: here ? "conv here" : "conv", role: "listitem", data: { id: item.id } },
      h("button", { type: "button", class: "open", title, "aria-current": here ? "true" : undefined, onclick: () => this.hooks.open(item.id) },
        h("span", {}, title), this.store.chats.get(item.id)?.run ? h("i", { class: "pulse", role: "img", "aria-label": "answering" }) : null),
      h("button", { type: "button", class: "icon more", "aria-label": `More for ${title}`, "aria-haspopup": "menu", "aria-expanded": "false",
        onclick: (e) => this.menu(e.currentTarget, item) }, icon("more")));
  }

  closeMenu() {
    const menu = document.querySelector(".menu");
    if (!menu) return false;
    const owner = document.querySelector('.more[aria-expanded="true"]');
    owner?.setAttribute("aria-expanded", "false");
    if (menu.contains(document.activeElement)) owner?.focus();
    menu.remove();
    if (this.late) this.draw();
    return true;
  }

  menu(owner, item) {
    const was = owner.getAttribute("aria-expanded") === "true";
    this.closeMenu();
    if (was) return;
    const entry = (text, run, cls) => h("button", { type: "button", role: "menuitem", class: cls, onclick: run }, text);
    const remove = entry("Delete", () => {
      if (remove.dataset.sure) { this.closeMenu(); this.remove(item); return; }
      remove.dataset.sure = "yes";
      remove.textContent = "Delete for good";
    }, "danger");
    const menu = h("div", { class: "menu", role: "menu" },
      entry("Rename", () => { this.closeMenu(); this.rename(item); }),
      entry("Export as Markdown", () => this.save(item, "markdown")),
      entry("Export as JSON", () => this.save(item, "json")), remove);
    menu.addEventListener("keydown", (e) => {
      const all = [...menu.children], i = all.indexOf(document.activeElement);
      if (e.key === "Escape" || e.key === "Tab") { e.preventDefault(); e.stopPropagation(); this.closeMenu(); }
      else if (e.key === "ArrowDown") { e.preventDefault(); all[(i + 1) % all.length].focus(); }
      else if (e.key === "ArrowUp") { e.preventDefault(); all[(i + all.length - 1) % all.length].focus(); }
    });
    owner.setAttribute("aria-expanded", "true");
    owner.parentElement.append(menu);
    const below = window.innerHeight - owner.getBoundingClientRect().bottom;
    menu.classList.toggle("up", below < 190);
    menu.firstChild.focus();
  }

  rename(item) {
    const row = this.rowOf(item.id);
    const box = h("input", { class: "rename", "aria-label": "New title", maxlength: 200, value: item.title ?? "" });
    let over = false;
    const end = async (keep) => {
      if (over) return;
      over = true;
      const title = box.value.trim();
      if (keep && title && title !== item.title) {
        try {
          await this.store.rename(item.id, title);
          item.title = title;
          this.hooks.renamed(item.id, title);
        } catch (e) { this.hooks.failed(e); }
      }
      box.remove();
      this.draw();
      this.rowOf(item.id)?.querySelector(".open").focus();
    };
    box.addEventListener("keydown", (e) => {
      if (e.key === "Enter" && !e.isComposing) end(true);
      if (e.key === "Escape") { e.stopPropagation(); end(false); }
    });
    box.addEventListener("blur", () => end(true));
    row.replaceChildren(box);
    box.focus();
    box.select();
  }

  async remove(item) {
    try {
      this.store.chats.get(item.id)?.run?.abort();
      await this.store.remove(item.id);
      this.items = this.items.filter((i) => i.id !== item.id);
      this.draw();
      this.hooks.removed(item.id);
    } catch (e) { this.hooks.failed(e); }
  }

  async save(item, format) {
    this.closeMenu();
    try {
      const name = (item.title || "conversation").replace(/[^\p{L}\p{N} _-]+/gu, "").trim().slice(0, 60) || "conversation";
      download(`${name}.${format === "json" ? "json" : "md"}`, "", await this.store.exported(item.id, format));
    } catch (e) { this.hooks.failed(e); }
  }
}

function groupOf(date) {
  const midnight = new Date().setHours(0, 0, 0, 0), day = 86400000;
  if (date >= midnight) return "Today";
  if (date >= midnight - day) return "Yesterday";
  if (date >= midnight - 7 * day) return "Last week";
  return date.toLocaleDateString("en", { month: "long", year: "numeric" });
}
