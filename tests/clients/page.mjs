// Uses the web page of a running Monsoon in headless Chromium, as a person would.
//
//     node page.mjs http://127.0.0.1:8000 http://127.0.0.1:8001 SECRET FOLDER
//
// The second server asks for the key SECRET. Screenshots are put into FOLDER. Ends with status 1 at
// the first thing that is not as it should be.

import axe from "axe-core";
import { chromium } from "playwright-core";
import { existsSync } from "node:fs";

const [open, locked, secret, folder] = process.argv.slice(2);
const BROWSERS = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
/** For one answer of a real model in a build for tests. */
const PATIENCE = { timeout: 120_000 };
const WIDE = { width: 1200, height: 800 };
const PHONE = { width: 375, height: 740 };

const ARABIC = "مرحبا بالعالم، كيف حالك اليوم؟";
const THAI = "สวัสดีชาวโลก วันนี้เป็นอย่างไรบ้าง";
const HEBREW = "שלום";

function check(condition, what) {
  if (!condition) throw new Error(`FAILED: ${what}`);
}

/** A page that remembers what it must not do: errors, breaches of its policy, other hosts. */
async function visit(browser, url, options = {}) {
  const context = await browser.newContext({ viewport: WIDE, ...options });
  const page = await context.newPage();
  page.wrong = [];
  // The browser itself writes a line for each answer that is an error: those a scene counts.
  page.refused = 0;
  page.on("console", (message) => {
    if (!["error", "warning"].includes(message.type())) return;
    if (message.text().startsWith("Failed to load resource")) page.refused++;
    else page.wrong.push(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => page.wrong.push(`error: ${error.message}`));
  page.on("request", (request) => {
    const { protocol, origin } = new URL(request.url());
    if (protocol !== "data:" && origin !== url) page.wrong.push(`asks ${request.url()}`);
  });
  await page.addInitScript(() => {
    globalThis.breaches = [];
    document.addEventListener("securitypolicyviolation", (event) => {
      globalThis.breaches.push(`${event.violatedDirective} ${event.blockedURI}`);
    });
  });
  await page.goto(`${url}/`);
  return page;
}

async function leave(page, refused = 0) {
  const breaches = await page.evaluate(() => globalThis.breaches);
  check(breaches.length === 0, `the policy holds, not ${breaches}`);
  check(page.wrong.length === 0, page.wrong.join("; "));
  check(page.refused === refused, `${page.refused} answers are errors, not ${refused}`);
  await page.context().close();
}

const ready = (page) => page.waitForFunction(() => !document.getElementById("model").disabled);
const ended = (page) => page.waitForSelector("#send:not([hidden])", PATIENCE);
const lastText = (page) => page.locator("article .text").last();

async function say(page, text) {
  await page.getByLabel("Message", { exact: true }).fill(text);
  await page.keyboard.press("Enter");
}

async function set(page, label, value) {
  await page.getByLabel(label, { exact: true }).fill(value);
}

/** The text of an answer grows while it comes, and its numbers stand below it. */
async function typeAndStream(browser) {
  const page = await visit(browser, open);
  await ready(page);
  check(await page.evaluate(() => document.activeElement.id === "message"), "one can type at once");
  await page.keyboard.type("Count from 1 to 20.");
  await page.keyboard.press("Shift+Enter");
  await page.keyboard.type("Only numbers.");
  const typed = await page.inputValue("#message");
  check(typed === "Count from 1 to 20.\nOnly numbers.", `a new line in ${JSON.stringify(typed)}`);
  await set(page, "Temperature", "0");
  await set(page, "Max tokens", "40");
  await page.focus("#message");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelectorAll("article .text")[1]?.textContent);
  const early = await lastText(page).textContent();
  await ended(page);
  const whole = await lastText(page).textContent();
  check(whole.length > early.length, `streamed: ${early.length} characters, then ${whole.length}`);
  const foot = await page.locator("article .foot").last().textContent();
  const numbers = /\d+ tokens after \d+ · first after .* · [\d.]+ tokens\/s/;
  check(numbers.test(foot), `numbers in ${foot}`);
  // The live view has seen it.
  await page.waitForFunction(() => document.getElementById("ttft").textContent !== "–");
  await page.waitForFunction(() => document.getElementById("itl").textContent !== "–");
  // A line has two points, each of them seen at another moment.
  await page.waitForFunction(() => {
    const points = document.querySelector("#trend polyline").getAttribute("points");
    return points.split(" ").length > 1;
  });
  // Equal seeds give equal answers; the conversation goes on.
  await set(page, "Temperature", "1");
  await set(page, "Seed", "7");
  await set(page, "Max tokens", "8");
  await page.getByRole("button", { name: "New chat" }).click();
  check(await page.locator("article").count() === 0, "a new chat is empty");
  const texts = [];
  for (let i = 0; i < 2; i++) {
    await say(page, "Write one word.");
    await ended(page);
    texts.push(await lastText(page).textContent());
    await page.getByRole("button", { name: "New chat" }).click();
  }
  check(texts[0] === texts[1], `one seed, two texts: ${texts}`);
  await leave(page);
}

/** Esc, and the button, end an answer on the server too; what had come stays. */
async function stop(browser) {
  const page = await visit(browser, open);
  await ready(page);
  for (const how of ["Escape", "button"]) {
    await say(page, "Write a very long story about the sea.");
    await page.waitForFunction(() =>
      [...document.querySelectorAll("article .text")].at(-1).textContent);
    await page.waitForFunction(() => document.getElementById("running").textContent === "1");
    if (how === "Escape") await page.keyboard.press("Escape");
    else await page.getByRole("button", { name: "Stop" }).click();
    await ended(page);
    check((await page.locator("article .foot").last().textContent()).startsWith("stopped"), how);
    check(await lastText(page).textContent(), "what had come stays");
    await page.waitForFunction(() => document.getElementById("running").textContent === "0");
    check(await page.evaluate(() => document.activeElement.id === "message"), "one can type on");
  }
  await leave(page);
}

/** Each paragraph has its own direction; no glyph is missing; the model's own text too. */
async function scripts(browser) {
  for (const colorScheme of ["light", "dark"]) {
    const page = await visit(browser, open, { colorScheme });
    await ready(page);
    await set(page, "Temperature", "0");
    await set(page, "Max tokens", "32");
    await say(page, `Repeat this sentence, and nothing else: ${ARABIC}`);
    await ended(page);
    const own = await lastText(page).locator("> *").evaluateAll((all) =>
      all.filter((p) => /^\P{L}*\p{Script=Arabic}/u.test(p.textContent))
        .map((p) => getComputedStyle(p).direction));
    const isRight = own.length > 0 && own.every((direction) => direction === "rtl");
    check(isRight, `the model's Arabic runs ${own}`);
    await set(page, "Max tokens", "64");
    await say(page, `${ARABIC}\n\n${THAI}\n\n${HEBREW} Monsoon`);
    await ended(page);
    const paragraphs = await page.locator(".own").last().locator(".text p").evaluateAll((all) =>
      all.map((p) => [getComputedStyle(p).direction, p.textContent, p.offsetHeight]));
    const [arabic, thai, hebrew] = paragraphs;
    check(arabic[0] === "rtl" && arabic[1] === ARABIC, `Arabic runs right to left: ${arabic}`);
    check(thai[0] === "ltr" && thai[1] === THAI && thai[2] > 10, `Thai is there: ${thai}`);
    check(hebrew[0] === "rtl", `a paragraph that begins in Hebrew: ${hebrew}`);
    for (const text of await page.locator("article .text").allTextContents()) {
      check(!text.includes("\ufffd"), `whole characters in ${text}`);
    }
    for (const text of [ARABIC, THAI]) {
      check(await page.evaluate(isDrawn, text), `the machine has a font for ${text}`);
    }
    const ground = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    const lightness = Math.max(...ground.match(/\d+/g).map(Number));
    check(colorScheme === "dark" ? lightness < 60 : lightness > 200, `${colorScheme}: ${ground}`);
    const found = await accessibility(page);
    check(found.length === 0, `${colorScheme}: ${found.join("; ")}`);
    await page.locator(".side").evaluate((side) => { side.scrollTop = 0; });
    await page.screenshot({ path: `${folder}/page-${colorScheme}.png` });
    await leave(page);
  }
}

/** Whether each letter has a shape other than the box that stands for missing ones. */
function isDrawn(text) {
  const canvas = new OffscreenCanvas(40, 40);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.font = getComputedStyle(document.body).font;
  const shape = (letter) => {
    context.clearRect(0, 0, 40, 40);
    context.fillText(letter, 10, 25);
    return context.getImageData(0, 0, 40, 40).data.join();
  };
  const missing = shape("\u{10fffe}");
  return [...text].every((letter) => !/\p{L}/u.test(letter) || shape(letter) !== missing);
}

async function accessibility(page) {
  await page.evaluate(axe.source);
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  return violations.map(({ id, nodes }) => `${id} at ${nodes.map((n) => n.target).join(", ")}`);
}

/** On a phone nothing is wider than the screen and the settings can be reached. */
async function phone(browser) {
  const page = await visit(browser, open, { viewport: PHONE, hasTouch: true, isMobile: true });
  await ready(page);
  await page.getByText("Settings", { exact: true }).click();
  await set(page, "Temperature", "0");
  await set(page, "Max tokens", "24");
  await page.getByText("Settings", { exact: true }).click();
  await say(page, `${THAI}: supercalifragilisticexpialidocious${"long".repeat(40)}`);
  await ended(page);
  const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
  check(!wide, "nothing is wider than the screen");
  const found = await accessibility(page);
  check(found.length === 0, `phone: ${found.join("; ")}`);
  await page.screenshot({ path: `${folder}/page-phone.png` });
  await leave(page);
}

/** By keyboard alone: the order of focus is that of the eye, and focus is seen. */
async function keyboard(browser) {
  const page = await visit(browser, open);
  await ready(page);
  await page.focus(".skip");
  await page.keyboard.press("Shift");
  const order = [];
  for (let i = 0; i < 15; i++) {
    const [name, seen] = await page.evaluate(() => {
      const element = document.activeElement;
      const name = element.id || element.textContent.trim().slice(0, 40);
      return [name, getComputedStyle(element).outlineStyle];
    });
    await page.keyboard.press("Tab");
    check(seen !== "none", `focus on ${name} is seen`);
    order.push(name);
  }
  const expected = ["To the message field", "model", "new", "Live", "Settings", "key", "system",
    "temperature", "top_p", "max_tokens", "seed", "thinking", "log", "message", "send"];
  check(order.join() === expected.join(), `the order is ${order}`);
  await leave(page);
}

/** What a model writes is text, whatever it looks like. The answer is made up here, since no model
 * can be relied on to write this; the reasoning stands apart from it. */
async function hostileAnswer(browser) {
  const page = await visit(browser, open);
  await ready(page);
  const markup = "<img src=x onerror=alert(1)><script>alert(2)</script>[x](javascript:alert(3))";
  const chunk = (delta, finish = null) =>
    `data: ${JSON.stringify({ choices: [{ index: 0, delta, finish_reason: finish }] })}\n\n`;
  const body = [
    chunk({ role: "assistant", content: "" }), chunk({ reasoning_content: `Hm. ${markup}` }),
    chunk({ content: `# ${markup}\n\n- ${markup}\n- **bold** ${HEBREW}\n\n\`\`\`html\n${markup}` }),
    chunk({ content: `\n\`\`\`\n\nplain *a* \`${markup}\`\n\n> ${ARABIC}` }), chunk({}, "stop"),
    "data: [DONE]\n\n",
  ].join("");
  await page.route("**/v1/chat/completions", (route) =>
    route.fulfill({ status: 200, contentType: "text/event-stream", body }));
  await say(page, markup);
  await ended(page);
  const shown = await page.locator("#log").evaluate((log) =>
    [...log.querySelectorAll("*")].map((element) => element.localName));
  for (const tag of ["img", "script", "a", "iframe"]) check(!shown.includes(tag), `no ${tag}`);
  for (const tag of ["h3", "li", "strong", "pre", "em", "code", "blockquote"]) {
    check(shown.includes(tag), `${tag} in ${shown}`);
  }
  check((await page.locator("pre").textContent()) === markup, "code is as it was written");
  const reasoning = page.locator("details.reasoning");
  check((await reasoning.textContent()).includes("Hm. <img"), "the reasoning stands apart");
  check(!(await lastText(page).textContent()).includes("Hm."), "and not in the answer");
  const quotation = page.locator("blockquote");
  const direction = await quotation.evaluate((element) => getComputedStyle(element).direction);
  check(direction === "rtl", "a quotation in Arabic");
  await leave(page);
}

/** A key that is missing or wrong is asked for; the right one is kept for the tab alone. */
async function keys(browser) {
  const page = await visit(browser, locked);
  await page.getByText("This server wants an API key.").waitFor();
  await set(page, "API key", "wrong");
  await page.keyboard.press("Tab");
  await page.getByText("The API key is not known.").waitFor();
  check(await page.getAttribute("#key", "aria-invalid") === "true", "the field is marked");
  await say(page, "Hello");
  await page.getByRole("alert").waitFor();
  check(await page.inputValue("#message") === "Hello", "what was not answered is still there");
  await set(page, "API key", secret);
  await page.keyboard.press("Tab");
  await ready(page);
  await set(page, "Max tokens", "4");
  await page.focus("#message");
  await page.keyboard.press("Enter");
  await ended(page);
  check(await page.locator("article .foot").last().textContent(), "the right key is served");
  await page.waitForFunction(() => document.getElementById("running").textContent !== "–");
  const kept = await page.evaluate(() =>
    [localStorage.length, document.cookie, sessionStorage.length]);
  check(kept.join() === "0,,1", `kept for the tab alone, not ${kept}`);
  await page.reload();
  await ready(page);
  // No key, the wrong one, the chat with it, and the models asked for after that.
  await leave(page, 4);
}

/** A setting out of its range is told where it stands; what the server refuses is shown. */
async function refusals(browser) {
  const page = await visit(browser, open);
  await ready(page);
  await set(page, "Top p", "2");
  await say(page, "Hello");
  const alert = page.getByRole("alert");
  await alert.waitFor();
  check((await alert.textContent()).startsWith("Top p:"), await alert.textContent());
  await set(page, "Top p", "");
  await set(page, "Max tokens", "100000000");
  await page.focus("#message");
  await page.keyboard.press("Enter");
  await page.getByText("'max_tokens' is 100000000").waitFor();
  await leave(page, 1);
}

const SCENES = [
  typeAndStream, stop, scripts, phone, keyboard, hostileAnswer, keys, refusals,
];
const executablePath = BROWSERS.find(existsSync);
if (!executablePath) throw new Error(`no Chromium: none of ${BROWSERS.join(", ")}`);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
try {
  for (const scene of SCENES) {
    await scene(browser);
    console.log("ok:", scene.name);
  }
} finally {
  await browser.close();
}
