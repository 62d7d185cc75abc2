// Drives the page in a real headless Chromium by what a person does: types, clicks, presses keys, looks.
//   node browser.mjs                      against the mock server, with everything that only it can stage
//   node browser.mjs URL [--key KEY]      against a running `quarrel serve`
//   --shots DIR                           also takes pictures;  --only WORD runs the tests whose name has it
// Needs Chromium (Debian's `chromium`, or its path in CHROMIUM) and `npm install` in this folder.

import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { chromium } from "playwright-core";
import { start } from "./mock.mjs";

const args = process.argv.slice(2);
const option = (name) => { const i = args.indexOf(name); return i >= 0 ? args.splice(i, 2)[1] : null; };
const shots = option("--shots"), key = option("--key"), only = option("--only") ?? "";
const real = args[0] ?? null;
const executablePath = [process.env.CHROMIUM, "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find((p) => p && existsSync(p));
if (!executablePath) { console.error("No Chromium found: install it, or set CHROMIUM to its path."); process.exit(2); }
if (shots) mkdirSync(shots, { recursive: true });

const mock = real ? null : await start();
const base = real ?? mock.url;
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu"] });
let passed = 0;
const failures = [];

function ok(condition, message) { if (!condition) throw new Error(message); }
function same(a, b, message) { ok(JSON.stringify(a) === JSON.stringify(b), `${message}: ${JSON.stringify(a)} is not ${JSON.stringify(b)}`); }

/** Runs one test in a fresh browser profile; a console error, a page error or a request elsewhere fails it too. */
async function test(name, run, { url = base, allow = /^$/, ...context } = {}) {
  if (!name.includes(only)) return;
  const profile = await browser.newContext({ viewport: { width: 1280, height: 820 }, acceptDownloads: true, ...context });
  const page = await profile.newPage();
  page.setDefaultTimeout(real ? 60000 : 8000);
  const wrong = [];
  page.on("pageerror", (e) => wrong.push(`page error: ${e.message}`));
  page.on("console", (m) => { if (m.type() === "error" && !allow.test(m.text())) wrong.push(`console: ${m.text()}`); });
  page.on("request", (r) => { if (!r.url().startsWith(new URL(url).origin) && !/^(?:blob|data):/.test(r.url())) wrong.push(`asked ${r.url()}`); });
  await profile.addInitScript((k) => {
    if (k.key) sessionStorage.setItem("quarrel.key", k.key);
    if (k.real && !localStorage.getItem("quarrel.settings")) localStorage.setItem("quarrel.settings", '{"max_tokens":24,"temperature":0}');
    document.addEventListener("securitypolicyviolation", (e) => console.error(`CSP: ${e.violatedDirective} ${e.blockedURI}`));
  }, { key: url === base ? key : null, real: !!real });
  try {
    await page.goto(url);
    await run(page, profile);
    if (wrong.length) throw new Error(wrong.join("; "));
    passed++;
    console.log(`ok    ${name}`);
  } catch (e) {
    failures.push(name);
    console.log(`FAIL  ${name}\n      ${String(e.message).split("\n").slice(0, 6).join("\n      ")}`);
    if (shots) await page.screenshot({ path: `${shots}/failed-${failures.length}.png` }).catch(() => {});
  }
  await profile.close();
}

// ---- what a person does --------------------------------------------------------------------------------------------

const ready = (page) => page.waitForSelector("#model option", { state: "attached" });
const LAST = ".msg.assistant:last-child";
const sendText = async (page, text) => { await page.fill("#input", text); await page.press("#input", "Enter"); };
const answered = async (page, timeout) => { await page.waitForSelector(`${LAST}:not(.busy)`, { timeout }); };
const ask = async (page, text, timeout) => { await ready(page); await sendText(page, text); await page.waitForSelector(LAST); await answered(page, timeout); };
const askAgain = async (page, button) => { await Promise.all([page.waitForRequest(/chat\/completions/), page.click(button)]); await answered(page); };
const text = (page, selector) => page.locator(selector).last().innerText();
const answer = (page) => text(page, `${LAST} > .md`);
const focused = (page) => page.evaluate(() => document.activeElement.id);
const titles = (page) => page.locator("#list .open").allInnerTexts();
const picture = async (page, name) => { if (shots) { await page.waitForTimeout(350); await page.screenshot({ path: `${shots}/${name}.png` }); } };
const LONG = real ? "Tell me a very long story about a ship." : "slow words 400";
const roomFor = (page, n) => page.evaluate((max_tokens) => localStorage.setItem("quarrel.settings", JSON.stringify({ max_tokens, temperature: 0 })), n).then(() => page.reload());

await test("opens: models, presets, focus in the message field, nothing fetched from elsewhere", async (page) => {
  await ready(page);
  ok((await page.locator("#model option").count()) >= 1, "no models");
  await page.waitForFunction(() => !document.getElementById("preset-pick").hidden && document.querySelectorAll("#preset option").length > 1);
  same(await focused(page), "input", "focus");
  same(await page.title(), "Quarrel", "title");
  ok(await page.locator("#send").isDisabled(), "an empty message can be sent");
  await picture(page, "empty-light");
});

await test("asks and answers: Enter sends, the answer streams, figures and signals are shown", async (page) => {
  await ready(page);
  await sendText(page, "Why is the sky blue?");
  // A model may be done before anybody looks; the mock takes its time.
  await page.waitForSelector(`${LAST}${real ? "" : ".busy"} .confidence`);
  ok(/tokens\/s|first/.test(await text(page, `${LAST} .figures`)), "no live figures");
  await answered(page);
  ok((await answer(page)).length > 10, "the answer is empty");
  const figures = await text(page, `${LAST} .figures`);
  for (const part of [/[\d.]+ tokens\/s/, /first [\d.]+ m?s/, /\d+ tokens/, /confidence [\d.<]+%/, /perplexity [\d.]+/]) ok(part.test(figures), `no ${part} in: ${figures}`);
  ok(/\d.* tokens used/.test(await text(page, "#context")), "no use of the context");
  same(await page.inputValue("#input"), "", "the field is not emptied");
  await page.evaluate(() => { document.getElementById("scroll").scrollTop = 0; });
  await picture(page, "answer-light");
});

await test("Shift Enter starts a new line; a lone space is not sent", async (page) => {
  await ready(page);
  await page.type("#input", "one");
  await page.keyboard.press("Shift+Enter");
  await page.type("#input", "two");
  same(await page.inputValue("#input"), "one\ntwo", "two lines");
  await page.fill("#input", "  ");
  await page.keyboard.press("Enter");
  same(await page.locator(".msg").count(), 0, "messages");
});

await test("stops: Esc and the button keep what arrived, and the chat goes on", async (page) => {
  await ready(page);
  await roomFor(page, 600);
  for (const how of ["Escape", "button"]) {
    await ready(page);
    await sendText(page, LONG);
    await page.waitForFunction((s) => document.querySelector(s)?.innerText.split(" ").length > 3, `${LAST}.busy > .md`);
    same(await page.getAttribute("#send", "aria-label"), "Stop", "the button");
    if (how === "Escape") await page.keyboard.press("Escape"); else await page.click("#send");
    await answered(page);
    ok((await text(page, `${LAST} .error`)).includes("Stopped."), "does not say that it stopped");
    ok((await answer(page)).length > 3, "what arrived is gone");
    same(await page.getAttribute("#send", "aria-label"), "Send", "the button");
  }
  await roomFor(page, 16);
  await ask(page, "And now a short one, please.");
  same(await page.locator(".msg.user").count(), 3, "user messages");
  if (mock) same(mock.conversations.get(decodeURIComponent(page.url().split("#c=")[1])).messages.filter((m) => m.role === "user").length, 3, "kept user messages");
});

await test("regenerates: the last answer is replaced, the server keeps one exchange", async (page) => {
  await ask(page, "Name a colour.");
  await page.hover(LAST);
  await askAgain(page, `${LAST} [aria-label="Regenerate"]`);
  same(await page.locator(".msg").count(), 2, "messages");
  await page.reload();
  await page.waitForSelector(LAST);
  same(await page.locator(".msg").count(), 2, "messages after a reload");
});

await test("edits: arrow up opens the last message, and the chat goes on from there", async (page) => {
  await ask(page, "First question");
  await ask(page, "Second question");
  await page.focus("#input");
  await page.keyboard.press("ArrowUp");
  same(await page.inputValue(".edit textarea"), "Second question", "the edited text");
  await page.keyboard.press("Escape");
  same(await page.locator(".edit").count(), 0, "Esc closes the edit");
  await page.locator(".msg.user").first().hover();
  await page.locator('.msg.user [aria-label="Edit"]').first().click();
  await page.fill(".edit textarea", "A better first question");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelectorAll(".msg.user").length === 1);
  await answered(page);
  same(await page.locator(".bubble").allInnerTexts(), ["A better first question"], "the chat");
  await page.reload();
  await page.waitForSelector(LAST);
  same(await page.locator(".bubble").allInnerTexts(), ["A better first question"], "the chat after a reload");
});

await test("conversations: listed, reopened, searched, renamed, exported, deleted", async (page) => {
  const word = `zebra${Date.now()}`;
  await ask(page, `${word} is a word`);
  await page.waitForFunction((w) => [...document.querySelectorAll("#list .open")].some((b) => b.innerText.includes(w)), word);
  await page.reload();
  await page.waitForSelector(LAST);
  ok((await answer(page)).length > 3, "the answer is gone after a reload");
  await page.keyboard.press("Control+Shift+O");
  await page.waitForSelector(".welcome");
  ok(!page.url().includes("#c="), "the address still names the chat");
  await page.keyboard.press("Control+k");
  same(await focused(page), "search", "focus");
  await page.keyboard.type(word);
  await page.waitForFunction(() => document.querySelectorAll("#list .open").length === 1);
  await page.keyboard.press("Enter");
  await page.waitForSelector(LAST);
  await page.hover("#list .conv");
  await page.click("#list .more");
  await page.click('.menu >> text="Rename"');
  await page.fill(".rename", `${word} renamed`);
  await page.keyboard.press("Enter");
  await page.waitForFunction((w) => document.querySelector("#list .open")?.innerText === `${w} renamed`, word);
  ok((await page.title()).startsWith(`${word} renamed`), "the title of the page");
  for (const [entry, ending] of [["Export as JSON", ".json"], ["Export as Markdown", ".md"]]) {
    await page.hover("#list .conv");
    await page.click("#list .more");
    const [file] = await Promise.all([page.waitForEvent("download"), page.click(`.menu >> text="${entry}"`)]);
    ok(file.suggestedFilename().endsWith(ending), file.suggestedFilename());
    const saved = readFileSync(await file.path(), "utf8");
    ok(saved.includes(`${word} is a word`), `the export lacks the message: ${saved.slice(0, 200)}`);
    if (ending === ".json") JSON.parse(saved);
  }
  await page.hover("#list .conv");
  await page.click("#list .more");
  await page.keyboard.press("Escape");
  same(await page.locator(".menu").count(), 0, "Esc closes the menu");
  await page.click("#list .more");
  await page.click('.menu >> text="Delete"');
  await page.click('.menu >> text="Delete for good"');
  await page.waitForFunction(() => document.querySelectorAll("#list .open").length === 0);
  await page.waitForSelector(".welcome");
  same(await text(page, "#list-note"), "Nothing found.", "the note");
});

await test("settings and preset: sent with the next message, kept over a reload", async (page, profile) => {
  await ready(page);
  await page.waitForFunction(() => document.querySelectorAll("#preset option").length > 1);
  const preset = await page.locator("#preset option").nth(1).getAttribute("value");
  await page.selectOption("#preset", preset);
  await page.click("#panel-open");
  await page.fill('[aria-label="Temperature, number"]', "0.35");
  await page.fill('[aria-label="Seed, number"]', "7");
  await page.fill('[aria-label="Longest answer, number"]', "12");
  await page.fill('[aria-label="Top p, number"]', "3");
  same(await page.getAttribute('[aria-label="Top p, number"]', "aria-invalid"), "true", "a value out of range");
  await page.fill("#system", "Answer in one word.");
  await picture(page, "settings-light");
  await page.click('[aria-label="Close settings"]');
  const [request] = await Promise.all([page.waitForRequest(/chat\/completions/), ask(page, "words 5")]);
  const body = request.postDataJSON();
  same([body.temperature, body.seed, body.max_tokens, body.top_p, body.preset], [0.35, 7, 12, undefined, preset], "the request");
  same(body.messages.map((m) => m.role), ["system", "user"], "the messages");
  const [second] = await Promise.all([page.waitForRequest(/chat\/completions/), ask(page, "words 6")]);
  if (body.conversation) same(second.postDataJSON().messages, [{ role: "system", content: "Answer in one word." }, { role: "user", content: "words 6" }], "the second request");
  const again = await profile.newPage();
  await again.goto(base);
  await ready(again);
  await again.waitForFunction((p) => document.getElementById("preset").value === p, preset);
  same(await again.inputValue('[aria-label="Temperature, number"]'), "0.35", "temperature in a new tab");
});

await test("a preset's values are shown in the empty fields", async (page) => {
  await ready(page);
  await page.click("#panel-open");
  const places = await page.evaluate(async () => {
    const presets = (await (await fetch("v1/presets", { headers: { authorization: `Bearer ${sessionStorage.getItem("quarrel.key")}` } })).json()).data;
    const select = document.getElementById("preset"), out = [];
    for (const p of presets) {
      select.value = p.name;
      select.dispatchEvent(new Event("change"));
      const shown = document.querySelector('[aria-label="Top p, number"]').placeholder;
      out.push(p.settings.top_p === undefined ? shown === "auto" : Math.abs(Number(shown) - p.settings.top_p) < 1e-5 && shown.length < 8);
    }
    return out;
  });
  ok(places.length > 2 && places.every(Boolean), JSON.stringify(places));
});

await test("colours tokens by confidence, tells about the one under the pointer", async (page) => {
  await ask(page, "Why is the sky blue?");
  const plain = await answer(page);
  same(await page.locator(".tok").count(), 0, "tokens before");
  await page.click("#tint");
  ok((await page.locator(`${LAST} .tok`).count()) > 3, "no tokens");
  same(await answer(page), plain, "the text with and without colour");
  ok((await page.locator(".t0, .t1, .t2, .t3").count()) > 0, "no colour");
  await page.locator(`${LAST} .tok`).first().hover();
  ok(/%/.test(await text(page, "#tip")), "the tooltip has no probability");
  await picture(page, "confidence-light");
  await page.click("#tint");
  same(await page.locator(".tok").count(), 0, "tokens after");
});

await test("theme: system, light, dark; kept", async (page) => {
  const paper = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const dark = await paper();
  await page.click("#theme");
  const light = await paper();
  ok(dark !== light, "the system's dark is not used");
  await page.click("#theme");
  same(await paper(), dark, "dark by choice");
  await page.reload();
  same(await paper(), dark, "dark after a reload");
  await ask(page, "Why is the sky blue?");
  await page.click("#tint");
  await page.evaluate(() => { document.getElementById("scroll").scrollTop = 0; });
  await picture(page, "answer-dark");
}, { colorScheme: "dark" });

await test("colours have the contrast of WCAG AA in both themes", async (page) => {
  for (const theme of ["light", "dark"]) {
    const bad = await page.evaluate((name) => {
      document.documentElement.dataset.theme = name;
      const probe = document.body.appendChild(document.createElement("i")), css = getComputedStyle(document.documentElement);
      const rgb = (v) => { probe.style.color = css.getPropertyValue(v); return getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).map(Number); };
      const light = (c) => c.map((x) => ((x /= 255) <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)).reduce((s, x, i) => s + x * [0.2126, 0.7152, 0.0722][i], 0);
      const ratio = (a, b) => { const [x, y] = [light(rgb(a)), light(rgb(b))].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
      const pairs = ["paper", "side", "raised", "sunk"].flatMap((b) => ["ink", "quiet", "accent"].map((a) => [a, b]))
        .concat([["faint", "paper"], ["faint", "side"], ["faint", "raised"], ["bad", "bad-soft"], ["bad", "raised"], ["accent-ink", "accent"], ["accent", "accent-soft"], ["ink", "accent-soft"]])
        .concat(["t0", "t1", "t2", "t3", "code"].map((b) => ["ink", b])).concat(["word", "string", "number", "comment", "call"].map((a) => [`c-${a}`, "code"]));
      const out = pairs.map(([a, b]) => [a, b, ratio(`--${a}`, `--${b}`)]).filter((p) => p[2] < 4.5).map(([a, b, r]) => `${a} on ${b} ${r.toFixed(2)}`);
      probe.remove();
      return out;
    }, theme);
    same(bad, [], theme);
  }
});

await test("can be used without seeing or pointing: names, landmarks, focus, announcements", async (page) => {
  await ask(page, "words 5");
  const nameless = await page.evaluate(() => [...document.querySelectorAll("button, input, select, textarea, summary, a")].filter((n) => n.offsetParent &&
    !(n.getAttribute("aria-label") || n.textContent.trim() || n.labels?.length || n.title)).map((n) => n.outerHTML.slice(0, 90)));
  same(nameless, [], "without a name");
  for (const s of ["main", "nav[aria-label]", 'article[aria-label="You"]', 'article[aria-label="Answer"]']) ok((await page.locator(s).count()) === 1, `no ${s}`);
  ok((await page.textContent("#live")).startsWith("Answer:"), "the answer is not announced");
  await page.evaluate(() => document.activeElement.blur());
  const seen = new Set();
  for (let i = 0; i < 30; i++) {
    await page.keyboard.press("Tab");
    const here = await page.evaluate(() => {
      const n = document.activeElement, ring = getComputedStyle(n).outlineStyle !== "none" || n.closest(".search, #composer, .edit");
      return { id: n.id || n.getAttribute("aria-label") || n.className, ring: !!ring };
    });
    if (here.id === "") continue; // the browser's own bar, behind the last element
    ok(here.ring, `no focus ring on ${here.id}`);
    seen.add(here.id);
  }
  for (const id of ["new", "search", "model", "tint", "theme", "panel-open", "input", "Regenerate", "Edit"]) ok(seen.has(id), `Tab does not reach ${id}`);
});

await test("fits a phone: nothing wider than the screen, the list is a drawer", async (page) => {
  await ask(page, "Why is the sky blue?");
  const wide = () => page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  ok((await wide()) <= 0, "the page scrolls sideways");
  await page.evaluate(() => { document.getElementById("scroll").scrollTop = 0; });
  await picture(page, "answer-phone");
  ok(!(await page.locator("#side").isVisible()), "the list is in the way");
  await page.tap("#side-open");
  await page.waitForFunction(() => document.getElementById("side").getBoundingClientRect().left === 0);
  await picture(page, "list-phone");
  await page.tap("#list .open >> nth=0");
  await page.waitForFunction(() => getComputedStyle(document.getElementById("side")).visibility === "hidden");
  await page.tap("#panel-open");
  ok((await wide()) <= 0, "the settings are wider than the screen");
  await picture(page, "settings-phone");
}, { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true });

// ---- what only the mock can stage ------------------------------------------------------------------------------------

if (mock) {
  await test("Markdown becomes elements", async (page) => {
    await ask(page, "rich");
    const count = async (s, n) => same(await page.locator(`${LAST} > .md ${s}`).count(), n, s);
    for (const [s, n] of [["h2", 1], ["strong", 1], ["em", 1], ["p > code", 1], ["ol > li", 2], ["ol ul > li", 2], ["table", 1], ["th", 3], ["td.right", 3],
      ["td.center", 3], ["blockquote p", 1], ["figure.code", 1], [".c-word", 5], ["li.task input[disabled]", 2]]) await count(s, n);
    same(await page.getAttribute(`${LAST} a`, "rel"), "noopener noreferrer nofollow", "rel");
    await page.click(`${LAST} .copy`);
    const copied = await page.evaluate(() => navigator.clipboard.readText());
    ok(copied.startsWith("# How much more") && copied.includes('print(f"{scattering(450):.1f}")'), copied);
  }, { permissions: ["clipboard-read", "clipboard-write"] });

  await test("a model's HTML, scripts and odd links stay text", async (page) => {
    for (const tint of [false, true]) {
      if (tint) await page.click("#tint");
      await ask(page, "xss");
      const found = await page.evaluate(() => ({
        pwned: window.pwned ?? null, bad: document.querySelectorAll("#thread script, #thread img, #thread iframe, #thread svg:not(:has(use)), #thread [onerror], #thread [onload], #thread [style]").length,
        links: [...document.querySelectorAll("article:last-child .md a")].map((a) => a.href),
      }));
      same(found, { pwned: null, bad: 0, links: ["https://example.org/a_(b)", "https://example.org/leak.png", "https://example.org/plain"] }, "the page");
      ok((await answer(page)).includes("<script>window.pwned = 1</script>"), "the source is not shown");
    }
  });

  await test("an unclosed code fence is a code block up to the end", async (page) => {
    await ask(page, "unclosed");
    same((await page.locator(`${LAST} figure code`).innerText()).trim(), "const a = 1;\nconst b = `two`;", "the code");
  });

  for (const [name, check] of [
    ["long text", ["p", 1600]], ["long line", ["p", 1]], ["long code", ["figure", 1]], ["long list", ["li", 4500]], ["huge table", ["tr", 4001]]]) {
    for (const tint of [false, true]) {
      await test(`stays quick: ${name}${tint ? ", coloured" : ""}`, async (page) => {
        await ready(page);
        if (tint) await page.click("#tint");
        await page.evaluate(() => {
          window.frames_ = 0;
          window.longest = 0;
          let before = performance.now();
          const tick = (t) => { window.frames_++; window.longest = Math.max(window.longest, t - before); before = t; requestAnimationFrame(tick); };
          requestAnimationFrame(tick);
        });
        const release = mock.hold();
        try {
          await sendText(page, name);
          await page.waitForSelector(`${LAST}.busy:not(.waiting)`);
          await page.type("#input", "typed while it streams");
          ok(await page.locator(`${LAST}.busy`).count(), "the answer ended before a person could type");
          same(await page.inputValue("#input"), "typed while it streams", "the typed text");
        } finally { release(); }
        await answered(page, 60000);
        const [n, ms] = await page.evaluate(() => [window.frames_, Math.round(window.longest)]);
        console.log(`      ${n} frames, longest ${ms} ms`);
        same(await page.locator(`${LAST} > .md ${check[0]}`).count(), check[1], check[0]);
        // What grew bit by bit is what one rendering of the whole gives.
        const equal = await page.evaluate(async () => {
          const { MarkdownView } = await import("./markdown.js");
          const id = decodeURIComponent(location.hash.slice(3));
          const kept = (await (await fetch(`v1/conversations/${id}`)).json()).messages.at(-1).content;
          const once = document.createElement("div"), bits = document.createElement("div");
          new MarkdownView(once).update(kept, null, true);
          const view = new MarkdownView(bits);
          for (let n = 0; n < kept.length; n += 9973) view.update(kept.slice(0, n), null, false);
          view.update(kept, null, true);
          const shown = document.querySelector("article:last-child > .md");
          return [shown.textContent === once.textContent, bits.innerHTML === once.innerHTML];
        });
        same(equal, [true, true], "streamed text and structure equal those of the whole");
      });
    }
  }

  await test("hostile Markdown is drawn and the page lives", async (page) => {
    await ask(page, "hostile", 60000);
    ok((await page.locator(`${LAST} > .md`).textContent()).length > 50000, "the text is gone");
    await ask(page, "words 5");
  });

  await test("streamed letter by letter, Markdown ends as if drawn at once", async (page) => {
    const differ = await page.evaluate(async (sources) => {
      const { MarkdownView } = await import("./markdown.js");
      const out = [];
      for (const [name, source] of sources) {
        const once = document.createElement("div"), bits = document.createElement("div");
        new MarkdownView(once).update(source, null, true);
        const view = new MarkdownView(bits);
        for (let n = 1; n <= source.length; n++) view.update(source.slice(0, n), null, false);
        view.update(source, null, true);
        if (once.innerHTML !== bits.innerHTML) out.push(name);
      }
      return out;
    }, Object.entries({ ...(await import("./mock.mjs")).ANSWERS, setext: "Title\n---\n\ntext\n===\n\na | b\n-|-\n1 | 2\n", nested: "1. a\n   ```sh\n   ls\n   ```\n2. b\n\n   c\n\n> - q\n>   - r\n",
      long: "- item **x**\n".repeat(300) + "\nend", code: "```js\n" + "let x = 1; // y\n".repeat(300) + "```\nend", table: "|a|b|\n|-|-|\n" + "|1|2|\n".repeat(400) + "\nend" }));
    same(differ, [], "different");
  });

  await test("Markdown, case by case", async (page) => {
    const cases = [
      ["a *b **c** d* e", "<p>a <em>b <strong>c</strong> d</em> e</p>"], ["snake_case_name and 2 * 3 * 4", "<p>snake_case_name and 2 * 3 * 4</p>"],
      ["***x***", "<p><em><strong>x</strong></em></p>"], ["~~old~~ ~", "<p><del>old</del> ~</p>"], ["`a *b*` \\*c\\*", "<p><code>a *b*</code> *c*</p>"],
      ["`` a ` b ``", "<p><code>a ` b</code></p>"], ["# A #\n## B", "<h1>A</h1><h2>B</h2>"], ["a  \nb<br>c", "<p>a<br>b<br>c</p>"], ["---", "<hr>"],
      ["- a\n  - b\n    - c\n- d", "<ul><li>a<ul><li>b<ul><li>c</li></ul></li></ul></li><li>d</li></ul>"],
      ["3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'], ["1. a\n  - b\n    - c", "<ol><li>a<ul><li>b<ul><li>c</li></ul></li></ul></li></ol>"],
      ["* a\n\n* b", "<ul><li>a</li><li>b</li></ul>"], ["> a\n> b\n\nc", "<blockquote><p>a\nb</p></blockquote><p>c</p>"],
      ["[x](javascript:alert(1)) [y](/z)", "<p>x y</p>"], ["text\n- a", "<p>text</p><ul><li>a</li></ul>"], ["[a [b](c) d](e)", "<p>[a b d](e)</p>"],
      ["<b>x</b> &amp;", "<p>&lt;b&gt;x&lt;/b&gt; &amp;amp;</p>"], ["a | b", "<p>a | b</p>"], ["**open", "<p>**open</p>"], ["```\nx", null], ["", ""], ["\n\n\n", ""],
    ];
    const bad = await page.evaluate(async (list) => {
      const { MarkdownView } = await import("./markdown.js");
      return list.map(([source, wanted]) => {
        const div = document.createElement("div");
        new MarkdownView(div).update(source, null, true);
        const got = div.innerHTML.replace(/ (?:href|rel|target)="[^"]*"/g, "");
        return wanted === null || got === wanted ? null : `${source} => ${got}`;
      }).filter(Boolean);
    }, cases);
    same(bad, [], "cases");
  });

  await test("tokens find their text: parts of a character, text held back, two at once", async (page) => {
    const found = await page.evaluate(async () => {
      const { TokenTrack } = await import("./quality.js");
      const track = new TokenTrack(), lp = (token, p) => ({ token, logprob: Math.log(p), top_logprobs: [] });
      track.push("Hi", [lp("Hi", 1)]);
      track.push("", [lp("\ufffd", 0.5)]);
      track.push("😀", [lp("\ufffd", 0.5)]);
      track.push("", [lp(" a", 0.8)]);
      track.push(" ab", [lp("b", 0.4)]);
      track.push(" no logprobs", null);
      const after = new TokenTrack(); // the end of a reasoning and line breaks that are not shown come before the answer
      for (const t of ["</think>", "\n\n"]) after.push("", [lp(t, 0.9)]);
      after.push("So", [lp(" So", 0.3)]);
      after.push(" it", [lp(" it", 0.9)]);
      const div = document.createElement("div");
      track.ink()(div, "Hi😀 ab no logprobs", 0, 19);
      return [track.tokens.map((t) => [t.end, Number(t.p.toFixed(2))]), [...div.children].map((n) => [n.textContent, n.className]), div.textContent, Number(track.confidence.toFixed(2)), track.count, after.tokens.map((t) => [t.end, t.text])];
    });
    same(found, [[[2, 1], [4, 0.25], [6, 0.8], [7, 0.4]], [["Hi", "tok"], ["😀", "tok t1"], ["a", "tok t3"], ["b", "tok t1"], ["no logprobs", "tok"]], "Hi😀 ab no logprobs", 0.64, 5, [[2, " So"], [5, " it"]]], "the tokens");
  });

  await test("reasoning is folded, told as it runs, opened by a click", async (page) => {
    await ready(page);
    await sendText(page, "think slow about it");
    await page.waitForSelector(`${LAST} .reasoning.thinking`);
    same(await text(page, `${LAST} .reasoning summary`), "Thinking", "the fold");
    ok(!(await page.locator(`${LAST} .reasoning .md`).isVisible()), "not folded");
    await answered(page);
    await page.click(`${LAST} .reasoning summary`);
    same(await page.locator(`${LAST} .reasoning strong`).innerText(), "short", "the thoughts");
    await picture(page, "reasoning-light");
    await page.reload();
    await page.click(`${LAST} .reasoning summary`);
    await page.waitForFunction((s) => document.querySelector(s)?.innerText.includes("two ways"), `${LAST} .reasoning .md`);
  });

  await test("what did not fit into the window is told", async (page) => {
    await ask(page, "left out");
    same(await text(page, `${LAST} .error`), "12 earlier messages did not fit into the model's window; a summary stands for 9 of them.", "the note");
  });

  await test("tool calls are shown with their arguments", async (page) => {
    await ask(page, "tool");
    same(await page.locator(`${LAST} .tool code`).allInnerTexts(), ["get_weather", "get_time"], "the calls");
    await page.click(`${LAST} .tool summary >> nth=0`);
    same(JSON.parse(await page.locator(`${LAST} .tool pre`).first().innerText()), { city: "Oslo", days: 3 }, "the arguments");
  });

  const quiet = /Failed to load resource|ERR_INCOMPLETE_CHUNKED/;
  for (const [ask_, line] of [
    ["busy", "The queue is full (64 requests wait). Wait 2 s, then try again."],
    ["too long", "The prompt has 9000 tokens, the model takes 8192. Start a new chat, shorten the message, or edit an earlier one."],
    ["broken", "The step failed: NaN in blk.3.ffn_down. Try again; if it stays, look at the server's log."],
    ["midway", "The request was preempted too often. Try again; if it stays, look at the server's log."],
    ["cut", "The connection broke in the middle of the answer. What arrived is kept. Try again to get a whole answer."]]) {
    await test(`an error is one line with what to do: ${ask_}`, async (page) => {
      await ask(page, `${ask_} first`);
      same(await text(page, `${LAST} .error span`), line, "the line");
      if (ask_ === "cut" || ask_ === "midway") ok((await answer(page)).length > 3, "what arrived is gone");
      await askAgain(page, `${LAST} .error button`);
      same(await page.locator(".msg.user").count(), 1, "user messages after another try");
      await ask(page, "words 5");
      const c = mock.conversations.get(decodeURIComponent(page.url().split("#c=")[1]));
      same(c.messages.filter((m) => m.role === "user").map((m) => m.content), [`${ask_} first`, "words 5"], "what the server keeps");
    }, { allow: quiet });
  }

  await test("an unknown chat in the address is said, and a new one begins", async (page) => {
    await ready(page);
    await page.goto("about:blank");
    await page.goto(`${base}#c=nothing`);
    await page.waitForSelector(".notice");
    ok((await text(page, ".notice")).includes("nothing"), "the notice");
    await page.waitForSelector(".welcome");
  }, { allow: quiet });

  await test("chats run side by side: leaving one does not stop it", async (page) => {
    await ready(page);
    await sendText(page, "slow words 150");
    await page.waitForSelector(`${LAST}.busy:not(.waiting)`);
    await page.click("#new");
    await ask(page, "words 5");
    ok((await page.locator(".pulse").count()) === 1, "the running chat is not marked");
    await page.click('#list .open:has(.pulse)');
    await page.waitForSelector(`${LAST}.busy`);
    await answered(page);
    same((await answer(page)).trim().split(/\s+/).length, 150, "words");
  });

  await test("follows the end, lets a person scroll up, and comes back", async (page) => {
    await ready(page);
    await sendText(page, "words 3500");
    await page.waitForFunction(() => { const s = document.getElementById("scroll"); return s.scrollHeight > s.clientHeight + 60; });
    const atEnd = () => page.evaluate(() => { const s = document.getElementById("scroll"); return s.scrollHeight - s.scrollTop - s.clientHeight < 45; });
    ok(await atEnd(), "does not follow");
    await page.mouse.move(640, 300);
    await page.mouse.wheel(0, -400);
    await page.waitForTimeout(400);
    const top = await page.evaluate(() => document.getElementById("scroll").scrollTop);
    await page.waitForTimeout(400);
    same(await page.evaluate(() => document.getElementById("scroll").scrollTop), top, "it moves under the reader");
    await page.keyboard.press("Escape");
  });

  const lone = await start({ store: false });
  await test("without a store the chat stays in the tab, and the page says so", async (page) => {
    await ask(page, "words 5");
    ok((await text(page, "#list-note")).includes("keeps no conversations"), "the note");
    await ask(page, "words 6");
    same(lone.seen.at(-1).messages.map((m) => m.role), ["user", "assistant", "user"], "the whole chat is sent");
    ok(!("conversation" in lone.seen.at(-1)), "a conversation is named");
    await page.hover(LAST);
    await askAgain(page, `${LAST} [aria-label="Regenerate"]`);
    same(await page.locator(".msg").count(), 4, "messages");
    await page.click("#new");
    await ask(page, "words 7");
    same((await titles(page)).sort(), ["words 5", "words 7"], "the list");
    await page.click('#list .open >> text="words 5"');
    await page.waitForFunction(() => document.querySelectorAll(".msg").length === 4);
    await page.hover("#list .conv.here");
    await page.click("#list .conv.here .more");
    const [file] = await Promise.all([page.waitForEvent("download"), page.click('.menu >> text="Export as Markdown"')]);
    ok(readFileSync(await file.path(), "utf8").includes("words 6"), "the export");
  }, { url: lone.url, allow: quiet });
  lone.close();

  const locked = await start({ key: "sesame" });
  await test("asks for the API key on 401, keeps it for the tab only", async (page, profile) => {
    await page.waitForSelector(".notice.key");
    await page.fill(".key input", "wrong");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => document.querySelector(".key span")?.innerText.includes("refused"));
    await picture(page, "key-light");
    await page.fill(".key input", "sesame");
    await page.keyboard.press("Enter");
    await ask(page, "words 5");
    same(await page.locator(".key").count(), 0, "the form is gone");
    same(await page.evaluate(() => [sessionStorage.getItem("quarrel.key"), JSON.stringify(localStorage).includes("sesame")]), ["sesame", false], "where it is kept");
    await page.reload();
    await ready(page);
    const other = await profile.newPage();
    await other.goto(locked.url);
    await other.waitForSelector(".notice.key");
  }, { url: locked.url, allow: quiet });
  locked.close();

  const falls = await start();
  await test("a server that is gone is said in one line, and the message is not lost", async (page) => {
    await ready(page);
    falls.close();
    await page.waitForTimeout(100);
    await sendText(page, "are you there");
    await page.waitForSelector(".notice");
    same(await text(page, ".notice span"), "The server did not answer. Check that quarrel serve is running, then try again.", "the notice");
    same(await page.inputValue("#input"), "are you there", "the message");
  }, { url: falls.url, allow: /Failed to load resource/ });
}

await browser.close();
mock?.close();
console.log(`\n${passed} passed, ${failures.length} failed`);
process.exit(failures.length ? 1 : 0);
