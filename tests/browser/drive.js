// Drives the dashboard in Debian's Chromium and prints a line of JSON for each check:
// {"check": …, "ok": …, "detail": …}. What it is to use comes in the environment:
//
//   DASHBOARD_URL, GOOD_KEY, POOR_KEY (no permission to see it), WRONG_KEY, HOSTILE (a user's name as it has to be shown),
//   LOAD_SECONDS (what to wait for before the pictures), SCREENSHOTS (where they go; none without it)

"use strict";

const path = require("node:path");
const { chromium } = require("playwright-core");

const { DASHBOARD_URL, GOOD_KEY, POOR_KEY, WRONG_KEY, HOSTILE, SCREENSHOTS } = process.env;
const LOAD_MS = Number(process.env.LOAD_SECONDS || 0) * 1000;
const PHONE = { width: 390, height: 844 };
const DESKTOP = { width: 1280, height: 1000 };
// As root Chromium has no sandbox; the rest keeps it from asking anybody anything but us.
const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-dev-shm-usage",
];

function tell(check, ok, detail = "") {
  console.log(JSON.stringify({ check, ok: Boolean(ok), detail: String(detail) }));
}

/** Runs one check: it passes unless it throws; what it returns is told. */
async function check(name, body) {
  try {
    tell(name, true, (await body()) ?? "");
  } catch (error) {
    tell(name, false, error.message);
  }
}

function expect(condition, message) {
  if (!condition) throw new Error(message);
}

/** Returns the number that the page shows at `selector`. */
async function shown(page, selector) {
  return Number((await page.locator(selector).first().innerText()).replace(/[^\d.]/g, ""));
}

async function signIn(page, key) {
  await page.getByLabel("API key").fill(key);
  await page.getByRole("button", { name: "Sign in" }).click();
}

/** Signs in with a key that is to be refused; returns what the page says. */
async function refusedWith(page, key) {
  const answer = page.waitForResponse((each) => each.url().includes("/api/status"));
  await signIn(page, key);
  await answer;
  await page.locator("#signin-error:not(:empty)").waitFor();
  expect(!(await page.locator("#board").isVisible()), "the board shows");
  expect(await page.evaluate(() => sessionStorage.length) === 0, "something was kept");
  return page.locator("#signin-error").innerText();
}

async function fits(page, size) {
  await page.setViewportSize(size);
  await page.waitForTimeout(300);
  const width = await page.evaluate(() => document.scrollingElement.scrollWidth);
  expect(width <= size.width, `the page is ${width} px wide`);
  const cut = await page.evaluate(() => [...document.querySelectorAll("button, select, .figures dd, td.number")]
    .filter((each) => each.offsetParent && each.scrollWidth > each.clientWidth + 1).map((each) => each.textContent));
  expect(cut.length === 0, `cut off: ${cut.slice(0, 5)}`);
}

/** Returns the contrast of the text in `selector` to the panel behind it, as WCAG 2 reckons it. */
function contrast(page, selector) {
  return page.evaluate((wanted) => {
    const light = (color) => {
      const parts = color.match(/[\d.]+/g).slice(0, 3).map((each) => {
        const part = each / 255;
        return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
      });
      return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
    };
    const behind = getComputedStyle(document.querySelector(".panel")).backgroundColor;
    const front = getComputedStyle(document.querySelector(wanted)).color;
    const [low, high] = [light(front), light(behind)].sort((one, other) => one - other);
    return (high + 0.05) / (low + 0.05);
  }, selector);
}

async function main() {
  const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: FLAGS });
  const context = await browser.newContext({ viewport: DESKTOP, colorScheme: "light", reducedMotion: "reduce" });
  const page = await context.newPage();
  const trouble = [];
  const asked = [];
  let outage = false;
  context.on("request", (request) => asked.push(request.url()));
  page.on("pageerror", (error) => trouble.push(error.message));
  page.on("console", (message) => {
    // The browser itself tells of each 401 and 403, which the first two keys get.
    const refused = /status of 40[13]/.test(message.text()) || (outage && /ERR_FAILED/.test(message.text()));
    if (["error", "warning"].includes(message.type()) && !refused) trouble.push(message.text());
  });

  await page.goto(DASHBOARD_URL);
  await check("a wrong key is refused", async () => {
    const said = await refusedWith(page, WRONG_KEY);
    expect(/API key rejected/.test(said), said);
  });
  await check("a key without the permission is refused", async () => {
    const said = await refusedWith(page, POOR_KEY);
    expect(/read:metrics/.test(said), said);
  });
  await check("the right key shows the board", async () => {
    await signIn(page, GOOD_KEY);
    await page.locator("#board").waitFor();
    expect(!(await page.locator("#signin").isVisible()), "the form still shows");
  });
  await check("the key is in sessionStorage alone", async () => {
    const places = await page.evaluate(() => ({
      session: Object.values(sessionStorage), local: Object.values(localStorage), url: location.href,
      cookie: document.cookie, form: document.getElementById("key").value,
    }));
    expect(places.session.join() === GOOD_KEY, "it isn't in sessionStorage");
    expect(!JSON.stringify({ ...places, session: 0 }).includes("ctm_"), "it is elsewhere too");
    expect((await context.cookies()).length === 0, "there are cookies");
    expect(!asked.some((url) => url.includes("ctm_")), "it was in a URL");
  });

  await check("throughput and latency are those of the load", async () => {
    await page.waitForFunction(() => Number(document.querySelector(".figures dd").textContent) > 20, null, { timeout: 20_000 });
    const before = await page.locator("#throughput path.line.first").last().getAttribute("d");
    await page.waitForTimeout(4500);
    expect(before !== await page.locator("#throughput path.line.first").last().getAttribute("d"), "the line stands still");
    expect(/[\d.]+ ms/.test(await page.locator(".figures div", { hasText: "p95" }).innerText()), "no p95");
    expect(await page.locator("#latency path.line").count() >= 3, "no lines of latency");
    return `${await shown(page, ".figures dd")} statements/s`;
  });
  await check("pools and hosts are shown", async () => {
    const hosts = await page.locator("#hosts tbody tr").allInnerTexts();
    expect(hosts.length === 2 && hosts.every((row) => /\bup\b/.test(row)), hosts.join("|"));
    expect(hosts.some((row) => row.includes("primary")) && hosts.some((row) => row.includes("replica")), hosts.join("|"));
    const pools = await page.locator("#pools tbody tr").allInnerTexts();
    expect(pools.some((row) => row.includes("readonly") && row.includes("replica1")), pools.join("|"));
    expect(await page.locator("#multiples [data-pool=readonly] path.line").count() > 0, "no small chart of readonly");
  });
  await check("statements are counted on", async () => {
    const row = page.locator("#statements tbody tr", { hasText: "pgbench_accounts" }).first();
    const number = row.locator("td[data-title=number]");
    await row.waitFor();
    const before = await number.innerText();
    await page.waitForFunction(([cell, old]) => cell.textContent !== old, [await number.elementHandle(), before]);
    const order = page.getByLabel("Order of statements");
    await order.selectOption("count");
    const numbers = await page.locator("#statements td[data-title=number]").allInnerTexts();
    const counts = numbers.map((each) => Number(each.replaceAll(",", "")));
    expect(counts.every((each, index) => !index || counts[index - 1] >= each), `not in order: ${counts}`);
    await order.selectOption("total_ms");
  });
  await check("no literal is shown", async () => {
    const text = await page.locator("body").innerText();
    expect(!text.includes("confidential"), "a literal is shown");
  });
  await check("hostile names are text", async () => {
    await page.locator("#keys tbody tr", { hasText: HOSTILE }).waitFor();
    expect(await page.locator("img[src=x]").count() === 0, "it became an element");
    expect(await page.evaluate(() => window.pwned) === undefined, "it ran");
    const text = await page.locator("#board").innerText();
    expect(!/[\u202a-\u202e\u2066-\u2069\u200b\u001b]/.test(text), "a bidi or control character is there");
    await page.locator("#statements td", { hasText: "<b>bold</b>" }).first().waitFor();
  });
  await check("a denial is shown", async () => {
    await page.locator("#denials tbody tr", { hasText: "INSUFFICIENT_PERMISSIONS" }).first().waitFor();
  });
  await check("the cursor tells an earlier value", async () => {
    await page.locator("#throughput").focus();
    for (const key of ["ArrowLeft", "ArrowLeft"]) await page.keyboard.press(key);
    expect(/^at \d\d:\d\d:\d\d$/.test(await page.locator("#latency .moment").innerText()), "the other chart doesn't follow");
    await page.keyboard.press("Escape");
    await page.locator("#throughput").blur();
    expect(await page.locator("#throughput .moment").innerText() === "", "Escape doesn't end it");
  });

  if (LOAD_MS) await page.waitForTimeout(LOAD_MS);
  const papers = {};
  for (const scheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme: scheme });
    papers[scheme] = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    for (const [name, size] of Object.entries({ desktop: DESKTOP, phone: PHONE })) {
      await check(`nothing is cut off: ${scheme}, ${name}`, () => fits(page, size));
      if (SCREENSHOTS) {
        await page.evaluate(() => window.scrollTo(0, 0));
        await page.screenshot({ path: path.join(SCREENSHOTS, `dashboard-${scheme}-${name}.png`), animations: "disabled" });
      }
      if (SCREENSHOTS && process.env.WHOLE) {
        await page.screenshot({ path: path.join(SCREENSHOTS, `whole-${scheme}-${name}.png`), fullPage: true });
      }
    }
    await check(`texts stand out: ${scheme}`, async () => {
      const found = {};
      for (const selector of ["#statements td.number", ".figures dt", ".chip", "#hosts .is-good"]) {
        found[selector] = await contrast(page, selector);
        expect(found[selector] >= 4.5, `${selector}: ${found[selector]}`);
      }
      return Object.values(found).map((each) => each.toFixed(1)).join(" ");
    });
  }
  await page.setViewportSize(DESKTOP);
  await check("dark is another paper, and the button chooses", async () => {
    expect(papers.light !== papers.dark, JSON.stringify(papers));
    const button = page.getByRole("button", { name: /Theme/ });
    const paper = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    await button.click();
    expect(await paper() === papers.light, "light isn't light");
    await button.click();
    expect(await paper() === papers.dark, "dark isn't dark");
    await button.click();
    expect(/auto/.test(await button.innerText()), await button.innerText());
  });
  await check("a hidden tab asks nothing", async () => {
    const hide = (hidden) => page.evaluate((value) => {
      Object.defineProperty(document, "hidden", { configurable: true, get: () => value });
      document.dispatchEvent(new Event("visibilitychange"));
    }, hidden);
    await hide(true);
    await page.waitForTimeout(500);
    const before = asked.length;
    await page.waitForTimeout(3000);
    expect(asked.length === before, `${asked.length - before} requests`);
    const next = page.waitForRequest((each) => each.url().includes("/api/status"));
    await hide(false);
    await next;
  });
  await check("an outage is told, and its end", async () => {
    outage = true;
    await page.route("**/api/status*", (route) => route.abort());
    await page.locator("#trouble", { hasText: "can't be reached" }).waitFor();
    expect(await page.locator("#statements tbody tr").count() > 0, "what was last heard is gone");
    await page.unroute("**/api/status*");
    await page.locator("#trouble").waitFor({ state: "hidden" });
    outage = false;
  });
  await check("another tab has to sign in, a reload doesn't", async () => {
    await page.reload();
    await page.locator("#board").waitFor();
    const other = await context.newPage();
    await other.goto(DASHBOARD_URL);
    expect(await other.locator("#signin").isVisible() && !(await other.locator("#board").isVisible()), "it shows the board");
    await other.close();
  });
  await check("signing out forgets the key", async () => {
    await page.getByRole("button", { name: "Sign out" }).click();
    await page.locator("#signin").waitFor();
    expect(await page.evaluate(() => sessionStorage.length) === 0, "the key is still there");
  });
  await check("no error on the console", () => expect(trouble.length === 0, trouble.slice(0, 5).join(" | ")));
  await check("no request elsewhere", () => {
    const elsewhere = asked.filter((url) => new URL(url).origin !== new URL(DASHBOARD_URL).origin);
    expect(elsewhere.length === 0, elsewhere.slice(0, 5).join(" "));
    return `${asked.length} requests`;
  });
  await check("markup can't be made of text", async () => {
    const refused = await page.evaluate(() => {
      try {
        document.body.innerHTML = "<b>x</b>";
        return false;
      } catch (error) {
        return error instanceof TypeError;
      }
    });
    expect(refused, "innerHTML works");
  });
  await browser.close();
}

main().catch((error) => {
  tell("the program runs to its end", false, error.stack);
  process.exit(1);
});
