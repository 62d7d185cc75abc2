// Markdown to DOM nodes, made for text that arrives bit by bit and comes from a model, so is not trusted.
// Safe by construction: text only ever becomes text nodes, tags come from this file, links only from three schemes,
// and pictures stay links, so that a page never fetches what a model names. HTML in the source is shown as text.
// Every character keeps its offset in the source, so that tokens can be laid under the words they made.

const NEST_MAX = 10;        // lists in quotes in lists; deeper text is a paragraph
const EMPHASIS_MAX = 12;    // open elements within one line
const COLUMNS_MAX = 64;
const LINK_MAX = 2048;
const HIGHLIGHT_MAX = 20000; // characters of a code block that are still coloured
const RESUME_FROM = 2000;   // a list, table or code block past this grows at its end instead of being built again

const TABLE_FREEZE = 60;    // rows from which the widths of columns stay as they are

const el = (tag, className) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  return node;
};

// ---- lines: {s: text, at: offset of its first character} -------------------------------------------------------

function splitLines(source, from) {
  const lines = [];
  for (let at = from; at <= source.length;) {
    let end = source.indexOf("\n", at);
    if (end < 0) end = source.length;
    const cut = source[end - 1] === "\r" && end > at ? end - 1 : end;
    lines.push({ s: source.slice(at, cut), at });
    at = end + 1;
  }
  return lines;
}

const blank = (line) => /^\s*$/.test(line.s);
const drop = (line, n) => ({ s: line.s.slice(n), at: line.at + n });
/** Drops up to `n` columns of indentation. */
function outdent(line, n) {
  let i = 0;
  for (let col = 0; i < line.s.length && col < n; i++) {
    if (line.s[i] === " ") col++;
    else if (line.s[i] === "\t") col += 4;
    else break;
  }
  return drop(line, i);
}
const indentOf = (s) => /^[ \t]*/.exec(s)[0].replace(/\t/g, "    ").length;

const FENCE = /^([ \t]*)(`{3,}|~{3,})[ \t]*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+|$)/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}>[ ]?/;
const ITEM = /^([ \t]*)([-*+]|\d{1,9}[.)])(?:[ \t]+|$)/;
const DELIMITER_ROW = /^\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?$/; // on a trimmed, short line: see isDelimiterRow
const isDelimiterRow = (s) => s.length < 2000 && s.includes("-") && DELIMITER_ROW.test(s.trim());

const startsBlock = (s) => FENCE.test(s) || HEADING.test(s) || RULE.test(s) || QUOTE.test(s) || ITEM.test(s);

// ---- blocks ------------------------------------------------------------------------------------------------------

/** Parses lines to blocks; each says at which offset it starts. `depth` bounds the nesting. */
function parse(lines, depth = 0) {
  const blocks = [];
  for (let i = 0; i < lines.length;) {
    if (blank(lines[i])) { i++; continue; }
    const made = depth < NEST_MAX ? block(lines, i, depth) : paragraph(lines, i, true);
    made.block.at = lines[i].at;
    blocks.push(made.block);
    i = made.next;
  }
  return blocks;
}

function block(lines, i, depth) {
  const { s } = lines[i];
  let m;
  if ((m = FENCE.exec(s))) return fence(lines, i, m);
  if ((m = HEADING.exec(s))) {
    const line = drop(lines[i], m[0].length);
    line.s = line.s.trimEnd().replace(/(?:^|[ \t])#+$/, "");
    return { block: { kind: "heading", level: m[1].length, lines: [line] }, next: i + 1 };
  }
  if (RULE.test(s)) return { block: { kind: "rule" }, next: i + 1 };
  if (QUOTE.test(s)) {
    const inner = [];
    for (; i < lines.length && (m = QUOTE.exec(lines[i].s)); i++) inner.push(drop(lines[i], m[0].length));
    return { block: { kind: "quote", blocks: parse(inner, depth + 1) }, next: i };
  }
  if (ITEM.test(s)) return list(lines, i, depth);
  if (s.includes("|") && i + 1 < lines.length && isDelimiterRow(lines[i + 1].s)) {
    const head = cells(lines[i]);
    const aligns = cells(lines[i + 1]).map((c) => align(c.s));
    if (head.length === aligns.length) {
      const { rows, next } = tableRows(lines, i + 2);
      return { block: { kind: "table", head, aligns, rows, resume: lines[Math.max(i + 2, next - 1)]?.at }, next };
    }
  }
  return paragraph(lines, i, false);
}

function fence(lines, i, m) {
  const indent = indentOf(m[1]), body = [];
  const close = new RegExp(`^[ \\t]*${m[2][0] === "`" ? "`" : "~"}{${m[2].length},}[ \\t]*$`);
  let closed = false, next = i + 1;
  for (; next < lines.length && !closed; next++) {
    if (close.test(lines[next].s)) closed = true;
    else body.push(outdent(lines[next], indent));
  }
  return { block: { kind: "code", lang: m[3].trim().split(/\s/)[0].slice(0, 30), body, closed, close, indent }, next };
}

function list(lines, i, depth) {
  const first = ITEM.exec(lines[i].s);
  const base = indentOf(first[1]), sort = first[2].slice(-1);
  const block = { kind: "list", ordered: /\d/.test(first[2]), start: parseInt(first[2], 10), items: [], resume: 0 };
  let item = null, width = 0, gap = false;
  const close = () => { if (item) block.items.push({ loose: item.loose, blocks: parse(item.lines, depth + 1) }); };
  for (; i < lines.length; i++) {
    const line = lines[i], indent = indentOf(line.s);
    if (blank(line)) { gap = true; item.lines.push({ s: "", at: line.at }); continue; }
    const m = ITEM.exec(line.s);
    // Models often indent a nested list by two columns, whatever the width of the number before it.
    const inside = item && indent >= Math.min(width, base + 2) && (indent >= width || m || !gap);
    if (m && !inside && indent >= base - 1 && indent < base + 4 && m[2].slice(-1) === sort && !RULE.test(line.s)) {
      close();
      const spaces = indentOf(line.s.slice(m[1].length + m[2].length));
      width = indent + m[2].length + (spaces >= 1 && spaces <= 4 ? spaces : 1);
      const text = drop(line, Math.min(line.s.length, m[1].length + m[2].length + Math.min(spaces, 4)));
      item = { lines: [text], loose: false };
      block.resume = line.at;
    } else if (inside) {
      if (gap && indent <= width && !m) item.loose = true;
      if (m && indent < width) item.strip ??= indent; // keeps what is nested below it at its own depth
      item.lines.push(outdent(line, item.strip ?? width));
    } else if (!gap && !startsBlock(line.s)) {
      item.lines.push(outdent(line, width)); // the rest of a paragraph, less indented
    } else break;
    gap = false;
  }
  close();
  return { block, next: i };
}

const align = (s) => (/^\s*:-+:\s*$/.test(s) ? "center" : /-:\s*$/.test(s) ? "right" : "");

function cells(line) {
  const out = [];
  let a = /^\s*\|?/.exec(line.s)[0].length;
  const end = line.s.trimEnd().length;
  for (let i = a; i <= end && out.length < COLUMNS_MAX; i++) {
    if (line.s[i] === "\\" && i < end) { i++; continue; }
    if (i < end && line.s[i] !== "|") continue;
    if (i === end && line.s.slice(a, i).trim() === "" && out.length) break; // after the closing bar
    const raw = line.s.slice(a, i), lead = raw.length - raw.trimStart().length;
    out.push({ s: raw.trim(), at: line.at + a + lead });
    a = i + 1;
  }
  return out;
}

function tableRows(lines, i) {
  const rows = [];
  for (; i < lines.length && !blank(lines[i]) && (lines[i].s.includes("|") || !startsBlock(lines[i].s)); i++) {
    rows.push(cells(lines[i]));
  }
  return { rows, next: i };
}

function paragraph(lines, i, deep) {
  const own = [];
  for (; i < lines.length && !blank(lines[i]); i++) {
    const { s } = lines[i];
    if (own.length) {
      if (/^ {0,3}=+\s*$/.test(s)) return { block: { kind: "heading", level: 1, lines: own }, next: i + 1 };
      if (/^ {0,3}--+\s*$/.test(s)) return { block: { kind: "heading", level: 2, lines: own }, next: i + 1 };
      if (!deep && startsBlock(s) && !/^\s*\d+[.)]/.test(s)) break;
      if (!deep && /^ {0,3}1[.)] /.test(s)) break;
    }
    own.push({ s: s.trimStart(), at: lines[i].at + s.length - s.trimStart().length });
  }
  return { block: { kind: "paragraph", lines: own }, next: i };
}

// ---- inline ------------------------------------------------------------------------------------------------------

const SPACE = /\s/, PUNCTUATION = /[\p{P}\p{S}]/u;
const BARE_URL = /https?:\/\/[^\s<>"`]{1,2000}/y;

/** The address if its scheme is one a reader may follow, else null. */
export function safeHref(text) {
  if (text.length > LINK_MAX || !/^(?:https?:\/\/|mailto:)/i.test(text)) return null;
  try {
    const url = new URL(text);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch { return null; }
}

/** Cuts text into pieces: text, code, break, link start and end, and runs of emphasis marks with what they open and close. */
function pieces(s, open) {
  const out = [], marks = [], brackets = [], noCode = new Set();
  let from = 0;
  const flush = (to) => { if (to > from) out.push({ k: "text", a: from, b: to }); };
  const put = (piece, a, b) => { flush(a); out.push(piece); from = b; };
  for (let i = 0; i < s.length;) {
    const c = s[i];
    if (c === "\\" && i + 1 < s.length && /[!-/:-@[-`{-~]/.test(s[i + 1])) { flush(i); from = i + 1; i += 2; continue; }
    if (c === "`") {
      let n = 1;
      while (s[i + n] === "`") n++;
      const end = noCode.has(n) ? -1 : closingTicks(s, i + n, n);
      if (end < 0) { noCode.add(n); i += n; continue; }
      const trim = s[i + n] === " " && s[end - 1] === " " && end - i - n > 2 ? 1 : 0;
      put({ k: "code", a: i + n + trim, b: end - trim }, i, i = end + n);
      continue;
    }
    if (c === "\n") {
      const hard = /(?: {2,}|\\)$/.exec(s.slice(Math.max(from, i - 4), i));
      put({ k: "break", a: i, hard: !!hard }, i - (hard ? hard[0].length : 0), ++i);
      continue;
    }
    if (c === "<") {
      const br = /^<br\s*\/?>/i.exec(s.slice(i, i + 8));
      if (br) { put({ k: "break", a: i, hard: true }, i, i += br[0].length); continue; }
      const auto = /^<(https?:\/\/[^\s<>]{1,2000}|mailto:[^\s<>]{1,500})>/i.exec(s.slice(i, i + 2050));
      const href = auto && safeHref(auto[1]);
      if (href) {
        flush(i);
        out.push({ k: "link", href }, { k: "text", a: i + 1, b: i + 1 + auto[1].length }, { k: "end" });
        from = i += auto[0].length;
        continue;
      }
    }
    if (c === "h" && (i === 0 || !/[\w]/.test(s[i - 1]))) {
      BARE_URL.lastIndex = i;
      let url = BARE_URL.exec(s)?.[0].replace(/[.,:;!?'"*_~\]]+$/, "");
      for (let n = 0; n < 9 && url?.endsWith(")") && url.split(")").length > url.split("(").length; n++) url = url.slice(0, -1);
      const href = url && !brackets.some((b) => b.active) && safeHref(url);
      if (href) {
        flush(i);
        out.push({ k: "link", href }, { k: "text", a: i, b: i + url.length }, { k: "end" });
        from = i += url.length;
        continue;
      }
    }
    if (c === "*" || c === "_" || c === "~") {
      let n = 1;
      while (s[i + n] === c) n++;
      const mark = flanks(s, i, n);
      put(mark, i, i += n);
      marks.push(mark);
      continue;
    }
    if (c === "[" || (c === "!" && s[i + 1] === "[")) {
      const n = c === "!" ? 2 : 1;
      if (brackets.length < 200) {
        const piece = { k: "text", a: i, b: i + n };
        put(piece, i, i + n);
        brackets.push({ piece, marks: marks.length, active: true });
      }
      i += n;
      continue;
    }
    if (c === "]" && brackets.length) {
      const b = brackets.pop();
      const dest = b.active && destination(s, i + 1);
      const href = dest && safeHref(dest.href);
      if (dest) {
        flush(i);
        emphasise(marks.splice(b.marks), false);
        if (href) { Object.assign(b.piece, { k: "link", href }); out.push({ k: "end" }); } // else: the label alone
        else b.piece.b = b.piece.a;
        for (const other of brackets) other.active = false;
        from = i = dest.next;
        continue;
      }
    }
    i++;
  }
  flush(s.length);
  emphasise(marks, open);
  return out;
}

function closingTicks(s, i, n) {
  for (i = s.indexOf("`", i); i >= 0; i = s.indexOf("`", i)) {
    let m = 1;
    while (s[i + m] === "`") m++;
    if (m === n) return i;
    i += m;
  }
  return -1;
}

/** Reads `(address "title")`; the title is dropped. */
function destination(s, i) {
  if (s[i] !== "(") return null;
  const m = /^\(\s*(?:<([^<>\n]*)>|((?:[^\s()\\]|\\.|\((?:[^\s()\\]|\\.)*\))*))(?:\s+(?:"[^"\n]*"|'[^'\n]*'))?\s*\)/.exec(s.slice(i, i + LINK_MAX));
  return m && { href: (m[1] ?? m[2] ?? "").replace(/\\([!-/:-@[-`{-~])/g, "$1"), next: i + m[0].length };
}

function flanks(s, a, n) {
  const before = s[a - 1] ?? " ", after = s[a + n] ?? " ", c = s[a];
  const left = !SPACE.test(after) && (!PUNCTUATION.test(after) || SPACE.test(before) || PUNCTUATION.test(before));
  const right = !SPACE.test(before) && (!PUNCTUATION.test(before) || SPACE.test(after) || PUNCTUATION.test(after));
  const opens = c === "_" ? left && (!right || PUNCTUATION.test(before)) : left;
  const closes = c === "_" ? right && (!left || PUNCTUATION.test(after)) : right;
  return { k: "mark", c, a, n, left: n, opens, closes, starts: [], ends: 0 };
}

/** Pairs runs of `*`, `_` and `~` as CommonMark does. `open`: text still arrives, so bold that is not closed yet is bold. */
function emphasise(marks, open) {
  const stack = [], bottom = new Map();
  for (const mark of marks) {
    const key = mark.c + mark.opens + (mark.n % 3);
    while (mark.closes && mark.left > 0) {
      let j = stack.length - 1;
      const low = bottom.get(key) ?? 0;
      while (j >= low && !pairs(stack[j], mark)) j--;
      if (j < low) { bottom.set(key, stack.length); break; }
      const n = mark.left >= 2 && stack[j].left >= 2 ? 2 : 1;
      stack[j].starts.unshift(mark.c === "~" ? "del" : n === 2 ? "strong" : "em");
      stack[j].left -= n;
      mark.left -= n;
      mark.ends++;
      stack.length = stack[j].left ? j + 1 : j;
      for (const [k, v] of bottom) if (v > stack.length) bottom.set(k, stack.length);
    }
    if (mark.opens && mark.left > 0) stack.push(mark);
  }
  if (open) for (const mark of stack) if (mark.c === "*" && mark.left === 2) { mark.starts.unshift("strong"); mark.left = 0; }
}

function pairs(a, b) {
  if (a.c !== b.c) return false;
  if (a.c === "~") return a.left === b.left && b.left <= 2;
  return !((a.closes || b.opens) && (a.n + b.n) % 3 === 0 && (a.n % 3 || b.n % 3));
}

// ---- DOM ---------------------------------------------------------------------------------------------------------

/** Builds the nodes of blocks. `ink` (see quality.js) cuts text at its tokens and colours it; without one text is text. */
class Builder {
  constructor(source, ink, open) {
    this.source = source;
    this.ink = ink;
    this.open = open; // more text may come: the last block is not closed
  }

  text(parent, a, b) {
    if (this.ink) this.ink(parent, this.source, a, b);
    else if (b > a) parent.append(this.source.slice(a, b));
  }

  inline(parent, lines, last) {
    const s = lines.map((l) => l.s).join("\n");
    const starts = [];
    lines.reduce((j, l) => (starts.push(j), j + l.s.length + 1), 0);
    let line = 0;
    const put = (to, a, b) => { // a..b of the joined text, which no line break is within
      while (line + 1 < starts.length && starts[line + 1] <= a) line++;
      while (starts[line] > a) line--;
      this.text(to, lines[line].at + a - starts[line], lines[line].at + b - starts[line]);
    };
    const putAll = (to, a, b) => { // the same, over line breaks (code)
      for (let i; a < b; a = i + 1) {
        i = s.indexOf("\n", a);
        if (i < 0 || i >= b) i = b;
        put(to, a, i);
        if (i < b) to.append(" ");
      }
    };
    const stack = [parent];
    const top = () => stack[stack.length - 1];
    const push = (node) => {
      if (stack.length <= EMPHASIS_MAX) { top().append(node); stack.push(node); } else stack.push(top());
    };
    const pop = () => { if (stack.length > 1) stack.pop(); };
    for (const p of pieces(s, last && this.open)) {
      if (p.k === "text") put(top(), p.a, p.b);
      else if (p.k === "code") { const code = el("code"); top().append(code); putAll(code, p.a, p.b); }
      else if (p.k === "break") { if (p.hard) top().append(el("br")); else top().append("\n"); }
      else if (p.k === "link") {
        const a = el("a");
        a.href = p.href;
        a.rel = "noopener noreferrer nofollow";
        a.target = "_blank";
        push(a);
      } else if (p.k === "end") pop();
      else {
        for (let n = p.ends; n > 0; n--) pop();
        if (p.left) put(top(), p.a, p.a + p.left);
        for (const tag of p.starts) push(el(tag));
      }
    }
  }

  blocks(parent, blocks, last) {
    blocks.forEach((b, i) => parent.append(this.block(b, last && i === blocks.length - 1)));
  }

  block(b, last) {
    if (b.kind === "rule") return el("hr");
    if (b.kind === "code") return this.code(b);
    if (b.kind === "table") return this.table(b, last);
    if (b.kind === "list") {
      const node = el(b.ordered ? "ol" : "ul");
      if (b.ordered && b.start !== 1) node.start = b.start;
      this.items(node, b.items, last);
      return node;
    }
    if (b.kind === "quote") { const node = el("blockquote"); this.blocks(node, b.blocks, last); return node; }
    const node = el(b.kind === "heading" ? `h${b.level}` : "p");
    this.inline(node, b.lines, last);
    return node;
  }

  items(node, items, last) {
    items.forEach((item, i) => {
      const li = el("li");
      const end = last && i === items.length - 1;
      item.blocks.forEach((b, k) => {
        const endBlock = end && k === item.blocks.length - 1;
        if (b.kind !== "paragraph" || item.loose || k > 0) { li.append(this.block(b, endBlock)); return; }
        this.task(li, b);
        this.inline(li, b.lines, endBlock);
      });
      node.append(li);
    });
  }

  task(li, b) {
    const m = /^\[([ xX])\] /.exec(b.lines[0].s);
    if (!m) return;
    b.lines[0] = drop(b.lines[0], 4);
    const box = el("input");
    box.type = "checkbox";
    box.disabled = true;
    box.checked = m[1] !== " ";
    box.setAttribute("aria-label", box.checked ? "done" : "to do");
    li.className = "task";
    li.append(box, " ");
  }

  table(b, last) {
    const wrap = el("div", "table"), table = el("table"), head = el("thead"), body = el("tbody");
    wrap.tabIndex = 0; // scrolls sideways, so must be reachable by keyboard
    wrap.setAttribute("role", "group");
    wrap.setAttribute("aria-label", "Table");
    head.append(this.row(b.head, b.aligns, "th", false));
    table.append(head, body);
    wrap.append(table);
    this.rows(body, b.rows, b.aligns, last);
    return wrap;
  }

  rows(body, rows, aligns, last) {
    rows.forEach((r, i) => body.append(this.row(r, aligns, "td", last && i === rows.length - 1)));
  }

  row(row, aligns, tag, last) {
    const tr = el("tr");
    aligns.forEach((a, i) => {
      const cell = el(tag, a);
      if (tag === "th") cell.scope = "col";
      if (row[i]) this.inline(cell, [row[i]], last && i === row.length - 1);
      tr.append(cell);
    });
    return tr;
  }

  code(b) {
    const figure = el("figure", "code"), bar = el("figcaption"), pre = el("pre"), code = el("code");
    const copy = el("button", "copy");
    copy.type = "button";
    copy.textContent = "Copy";
    copy.dataset.act = "copy-code";
    const name = el("span");
    name.textContent = b.lang || "text";
    bar.append(name, copy);
    pre.tabIndex = 0;
    pre.setAttribute("aria-label", `Code${b.lang ? ` in ${b.lang}` : ""}`);
    pre.append(code);
    figure.append(bar, pre);
    this.codeLines(code, b.body, b.lang);
    return figure;
  }

  codeLines(code, body, lang) {
    const size = body.reduce((n, l) => n + l.s.length + 1, 0);
    if (this.ink || size > HIGHLIGHT_MAX) {
      const text = this.ink ? null : body.map((l) => l.s).join("\n");
      if (text !== null) code.append(text);
      else body.forEach((l, i) => { if (i) code.append("\n"); this.text(code, l.at, l.at + l.s.length); });
    } else highlight(code, body.map((l) => l.s).join("\n"), lang);
  }

  /** A block that grew as plain text, once it is whole. */
  recolour(figure, lang) {
    const code = figure.querySelector("code"), text = code.textContent;
    if (text.length > HIGHLIGHT_MAX) return;
    code.replaceChildren();
    highlight(code, text, lang);
  }
}

const WORDS = new Set(("abstract and as assert async auto await begin bool boolean break byte case catch char class const constexpr " +
  "continue crate def default defer del delete do double dyn elif else elsif end enum except export extends extern false final " +
  "finally float fn for foreach from func function go if impl implements import in include instanceof int interface is lambda let " +
  "long loop match mod module mut namespace new nil none not null of or override package pass private protected pub public raise " +
  "ref return self short signed sizeof static struct super switch template then this throw throws trait true try type typedef " +
  "typeof union unless unsafe unsigned until use using var virtual void where while with yield select insert update create table " +
  "join on group by order limit set values into echo fi done local").split(" "));
const HASH_COMMENTS = /^(?:py|python|sh|bash|shell|zsh|rb|ruby|r|yaml|yml|toml|make|makefile|dockerfile|perl|pl|conf|ini|nix|elixir)$/i;

/** A light colouring that knows comments, strings, numbers and common keywords, of no language in particular. */
function highlight(code, text, lang) {
  if (!lang || /^(?:text|txt|plain|markdown|md|console|output)$/i.test(lang)) { code.append(text); return; }
  const hash = HASH_COMMENTS.test(lang) ? "#[^\\n]*|" : "";
  const dashes = /^(?:sql|lua|haskell|hs|ada|elm)$/i.test(lang) ? "--[^\\n]*|" : "";
  const re = new RegExp(`(${hash}${dashes}//[^\\n]*|/\\*[^]*?(?:\\*/|$)|<!--[^]*?(?:-->|$))|` +
    "(\"(?:[^\"\\\\\\n]|\\\\.)*\"?|'(?:[^'\\\\\\n]|\\\\.)*'|`(?:[^`\\\\]|\\\\.)*`)|" +
    "\\b(\\d[\\w.]*)|([A-Za-z_]\\w*)", "g");
  let from = 0;
  const add = (m, name) => {
    if (m.index > from) code.append(text.slice(from, m.index));
    const span = el("span", name);
    span.textContent = m[0];
    code.append(span);
    from = m.index + m[0].length;
  };
  for (const m of text.matchAll(re)) {
    if (m[1] !== undefined) add(m, "c-comment");
    else if (m[2] !== undefined) add(m, "c-string");
    else if (m[3] !== undefined) add(m, "c-number");
    else if (WORDS.has(/^sql$/i.test(lang) ? m[4].toLowerCase() : m[4])) add(m, "c-word");
    else if (text[m.index + m[4].length] === "(") add(m, "c-call");
  }
  code.append(text.slice(from));
}

/** Keeps the widths of a long table's columns: else the browser measures every cell again for each row that comes. */
function freeze(wrap) {
  const table = wrap.firstElementChild;
  if (table.classList.contains("frozen") || !table.offsetWidth) return;
  const heads = [...table.tHead.rows[0].cells], widths = heads.map((c) => c.getBoundingClientRect().width);
  heads.forEach((c, i) => { c.style.width = `${Math.ceil(widths[i])}px`; });
  table.style.width = `${Math.ceil(widths.reduce((a, b) => a + b, 0))}px`;
  table.classList.add("frozen");
}

// ---- the growing document ----------------------------------------------------------------------------------------

/** One text in one element. `update` again and again with the text so far: only what is not settled is built anew. */
export class MarkdownView {
  constructor(root) {
    this.root = root;
    this.reset();
  }

  reset() {
    this.root.replaceChildren();
    this.stable = 0;   // offset up to which blocks are final
    this.tail = [];    // the nodes of the last blocks, which may still change
    this.grow = null;  // a long last block that grows at its end
    this.length = 0;
    this.inked = false;
  }

  /** `ink` may be null; a change from one to none builds the document again. */
  update(source, ink, done) {
    if (source.length < this.length || !!ink !== this.inked) this.reset();
    this.length = source.length;
    this.inked = !!ink;
    const build = new Builder(source, ink, !done);
    let lines = splitLines(source, this.stable);
    if (this.grow) {
      lines = this.extend(build, lines, done);
      if (!lines) return;
    }
    for (const node of this.tail) node.remove();
    this.tail = [];
    const blocks = parse(lines), end = blocks.length - 1;
    // A line of one or two marks may yet turn the block before it into a heading or a table.
    const unsure = end > 0 && source.length - blocks[end].at < 4 && !source.includes("\n", blocks[end].at) ? 1 : 0;
    blocks.forEach((b, i) => {
      const node = build.block(b, i === end);
      this.root.append(node);
      if (done || i < end - unsure) return;
      if (!this.tail.length) this.stable = b.at;
      this.tail.push(node);
      if (i === end && !unsure && source.length - b.at > RESUME_FROM) this.startGrowing(b, node, source, build);
    });
    if (done) this.stable = source.length;
  }

  startGrowing(b, node, source, build) {
    if (b.kind === "list" && b.items.length > 1) this.stable = b.resume;
    else if (b.kind === "table" && b.rows.length > 1) this.stable = b.resume;
    else if (b.kind === "code" && !b.closed && b.body.length > 1) {
      // What is there becomes one text node up to the last line; the last line is built again each time.
      const code = node.querySelector("code");
      this.stable = source.lastIndexOf("\n") + 1;
      const last = b.body.pop();
      code.replaceChildren();
      build.codeLines(code, b.body, "");
      code.append("\n", last.s);
    } else return;
    this.grow = { b, node };
  }

  /** Adds to the growing block; gives the lines behind its end, or null if there are none yet. */
  extend(build, lines, done) {
    const { b, node } = this.grow;
    let next;
    if (b.kind === "list") {
      const made = list(lines, 0, 0);
      node.lastElementChild.remove();
      next = made.next;
      build.items(node, made.block.items, next === lines.length);
      this.stable = made.block.resume;
    } else if (b.kind === "table") {
      const made = tableRows(lines, 0), body = node.querySelector("tbody");
      body.lastElementChild.remove();
      next = made.next;
      build.rows(body, made.rows, b.aligns, next === lines.length);
      this.stable = lines[Math.max(0, next - 1)].at;
      if (body.childElementCount > TABLE_FREEZE) freeze(node);
    } else {
      const code = node.querySelector("code");
      code.lastChild.remove();
      for (next = 0; next < lines.length; next++) {
        if (b.close.test(lines[next].s)) { b.closed = true; break; }
        if (next) code.append("\n");
        const holder = next === lines.length - 1 ? el("span") : code;
        if (holder !== code) code.append(holder);
        const line = outdent(lines[next], b.indent);
        build.text(holder, line.at, line.at + line.s.length);
      }
      if (!b.closed) this.stable = lines[lines.length - 1].at;
      else if (code.lastChild?.data === "\n") code.lastChild.remove();
      if (b.closed) next++;
    }
    const waits = next === lines.length || (next === lines.length - 1 && lines[next].s === ""); // nothing is behind it yet
    if (waits && !b.closed && !done) return null;
    this.grow = null;
    this.tail = []; // the block is final: the rest comes after it
    if (b.kind === "code" && !this.inked) build.recolour(node, b.lang);
    const rest = lines.slice(next);
    this.stable = rest[0]?.at ?? this.length;
    return rest;
  }
}
