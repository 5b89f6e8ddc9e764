// The dashboard: asks /api/status each two seconds while anybody looks, and shows what it says.
//
// The key is held in this tab's sessionStorage and sent in a header: never in a URL, never in a cookie.

import { Chart } from "./chart.js";
import { DENIALS, HOSTS, KEYS, POOLS, STATEMENTS, Table } from "./tables.js";
import { clock, count, element, put, rate, time } from "./text.js";

const KEY = "pgsluice-key";
const EVERY = 2000;
const TIMEOUT = 10_000;
const SAMPLES = 450;
const SPAN = 900;
const ROWS = 15;
const ALL = "";

const by = (id) => document.getElementById(id);
const cursor = { index: null, listeners: [] };

// ---- what is known

let past = null;

/** Forgets the samples: another database, or a server that has started anew. */
function forget() {
  past = { last: 0, at: [], clients: [], pools: new Map() };
  cursor.index = null;
}

/** Adds new samples; returns false where they aren't of the process that the known ones are of. */
function remember({ history, at, uptime }) {
  const started = at - uptime;
  if (history.last < past.last || Math.abs(started - (past.started ?? started)) > 5) return false;
  past.started = started;
  const had = past.at.length;
  past.last = history.last;
  past.at.push(...history.at);
  past.clients.push(...history.clients);
  for (const [name, columns] of Object.entries(history.pools)) {
    if (!past.pools.has(name)) past.pools.set(name, {});
    const kept = past.pools.get(name);
    for (const [column, values] of Object.entries(columns)) {
      kept[column] ??= Array(had).fill(null);
      kept[column].push(...values);
    }
  }
  const excess = past.at.length - SAMPLES;
  for (const columns of past.pools.values()) {
    for (const values of Object.values(columns)) {
      while (values.length < past.at.length) values.push(null);
      if (excess > 0) values.splice(0, excess);
    }
  }
  if (excess > 0) {
    past.at.splice(0, excess);
    past.clients.splice(0, excess);
  }
  return true;
}

// ---- what is shown

const percent = [
  { name: "p50", style: "first", value: time },
  { name: "p95", style: "second", value: time },
  { name: "p99", style: "third", value: time },
];
const throughput = new Chart(
  by("throughput"),
  [
    { name: "statements/s", style: "first", area: true, value: rate },
    { name: "errors/s", style: "bad", value: rate },
  ],
  { title: "Throughput", height: 190, least: 10, span: SPAN, cursor },
);
const latency = new Chart(by("latency"), percent, { title: "Latency, log scale", height: 190, log: true, span: SPAN, cursor });
const tables = {
  pools: new Table(by("pools"), "Pools", POOLS, "No pools."),
  hosts: new Table(by("hosts"), "Hosts", HOSTS, "No hosts."),
  statements: new Table(by("statements"), "Slowest statements", STATEMENTS, "No statements in the last five minutes."),
  keys: new Table(by("keys"), "Busiest keys", KEYS, "No key was used in the last five minutes."),
  denials: new Table(by("denials"), "Recent denials", DENIALS, "Nothing was denied."),
};
const figures = Object.fromEntries(
  ["statements/s", "errors/s", "p50", "p95", "p99", "clients", "waiting"].map((name) => {
    const value = element("dd");
    by("figures").append(element("div", {}, element("dt", {}, name), value));
    return [name, value];
  }),
);
const multiples = new Map();

/** Returns the small charts of a pool; they are made when it is first seen. */
function multiple(name) {
  if (!multiples.has(name)) {
    const speed = element("figure");
    const wait = element("figure");
    const card = element("div", { class: "panel small", "data-pool": visibleName(name) }, element("h3", {}, name), speed, wait);
    by("multiples").append(card);
    const small = { height: 46, small: true, span: SPAN, cursor };
    multiples.set(name, {
      card,
      speed: new Chart(speed, [{ name: "", style: "first", area: true, value: (each) => `${rate(each)}/s` }],
        { ...small, title: "statements" }),
      wait: new Chart(wait, [{ name: "", style: "second", value: time }], { ...small, title: "p95", least: 1 }),
    });
  }
  return multiples.get(name);
}

function visibleName(name) {
  return name.replace(/\W/g, "_");
}

let latest = null;

function draw() {
  const status = latest;
  const all = past.pools.get(ALL);
  const now = (column) => all?.[column]?.at(-1);
  put(by("version"), status.version);
  put(by("state"), status.state);
  by("state").className = `chip is-${status.state === "ready" ? "good" : "bad"}`;
  put(figures["statements/s"], rate(now("statements")));
  put(figures["errors/s"], rate(now("errors")));
  figures["errors/s"].classList.toggle("bad", now("errors") > 0);
  for (const { name } of percent) put(figures[name], time(now(`${name}_ms`)));
  put(figures.clients, `${count(status.clients)} of ${count(status.max_clients)}`);
  const waiting = status.pools.reduce((sum, pool) => sum + pool.waiting, status.stranded);
  put(figures.waiting, count(waiting));
  figures.waiting.classList.toggle("bad", waiting > 0);

  const names = [...new Set(status.pools.map((pool) => pool.pool))];
  if (all) {
    throughput.set(past.at, [all.statements, all.errors]);
    latency.set(past.at, percent.map(({ name }) => all[`${name}_ms`]));
    for (const [name, { card }] of multiples) card.hidden = !names.includes(name);
    for (const name of names) {
      const columns = past.pools.get(name);
      if (!columns) continue;
      multiple(name).speed.set(past.at, [columns.statements]);
      multiple(name).wait.set(past.at, [columns.p95_ms]);
    }
  }
  for (const pool of status.pools) pool.idle_now = !(pool.statements || pool.active || pool.waiting);
  tables.pools.set([...status.pools].sort((one, other) => names.indexOf(one.pool) - names.indexOf(other.pool)));
  tables.hosts.set(status.hosts);
  drawRecent(status.recent);
  const sinks = status.access_log.map((sink) => {
    const lost = sink.dropped ? `, ${count(sink.dropped)} lost` : "";
    return `${sink.sink}: ${count(sink.written)} written, ${count(sink.waiting)} waiting${lost}${sink.error ? ` (${sink.error})` : ""}`;
  });
  put(by("sinks"), `Access log: ${sinks.join("; ") || "off"}. Up for ${time(status.uptime * 1000)}.`);
}

function drawRecent(recent) {
  const off = recent.enabled ? "" : "The access log is off (access_log.sinks), so nothing is known of statements, keys and denials.";
  const minutes = Math.max(1, Math.round(recent.seconds / 60));
  const share = recent.share < 1 ? `; of the last, ${Math.max(1, Math.round(recent.share * 100))}% were read and stand for all` : "";
  put(by("window"), recent.enabled ? `the last ${minutes === 1 ? "minute" : `${minutes} minutes`}${share}` : "");
  const whole = recent.statements.reduce((sum, row) => sum + row.total_ms, 0) || 1;
  for (const row of recent.statements) row.share = row.total_ms / whole;
  for (const name of ["statements", "keys"]) {
    const order = by(`${name}-order`).value;
    const rows = [...recent[name]].sort((one, other) => other[order] - one[order]);
    tables[name].set(rows.slice(0, ROWS), off);
  }
  tables.denials.set(recent.denials, off);
}

// ---- asking

let timer = 0;
let asking = null;

function key() {
  return sessionStorage.getItem(KEY);
}

/** Asks once; returns the answer's JSON. Throws { code, message } where there is none. */
async function ask(whole, database, since) {
  const parameters = new URLSearchParams({ since });
  if (database) parameters.set("database", database);
  asking?.abort();
  const own = (asking = new AbortController());
  const limit = setTimeout(() => own.abort(), TIMEOUT);
  try {
    const answer = await fetch(`/api/status?${parameters}`, {
      headers: { Authorization: `Bearer ${whole}` }, signal: own.signal, cache: "no-store", credentials: "omit",
    });
    const body = await answer.json();
    if (!answer.ok) throw { code: answer.status, ...body.error, status: answer.status };
    return body;
  } catch (error) {
    if (error.status) throw error;
    throw { status: 0, superseded: asking !== own, message: "pgsluice can't be reached" };
  } finally {
    clearTimeout(limit);
  }
}

function isKeyRefused(error) {
  return error.status === 401 || error.status === 403;
}

async function refresh() {
  clearTimeout(timer);
  const whole = key();
  if (!whole || document.hidden) return;
  try {
    const status = await ask(whole, by("database").value, past.last);
    if (key() !== whole) return;
    take(status);
  } catch (error) {
    if (error.superseded || key() !== whole) return;
    if (isKeyRefused(error)) return signOut(error.message);
    // Who is gone while the key's database changes may ask for one that isn't there any more.
    if (error.status === 404) by("database").replaceChildren();
    trouble(`${error.message}: trying again.`);
  }
  timer = setTimeout(refresh, EVERY);
}

function take(status) {
  if (!remember(status)) {
    forget();
    refresh();
    return;
  }
  choices(status);
  latest = status;
  draw();
  trouble("");
  put(by("freshness"), `as of ${clock(status.at)}`);
}

function choices({ database, databases }) {
  const select = by("database");
  if (databases.join("\n") !== [...select.options].map((each) => each.value).join("\n")) {
    select.replaceChildren(...databases.map((name) => element("option", { value: name }, name)));
    select.value = database;
  }
  by("database-choice").hidden = databases.length < 2;
}

function trouble(text) {
  put(by("trouble"), text);
  by("trouble").hidden = !text;
  document.body.classList.toggle("stale", Boolean(text));
}

// ---- signing in and out

function show(signedIn) {
  by("signin").hidden = signedIn;
  by("board").hidden = !signedIn;
  if (!signedIn) by("key").focus();
}

async function signIn(event) {
  event.preventDefault();
  const whole = by("key").value.trim();
  const button = event.target.querySelector("button");
  put(by("signin-error"), "");
  if (!whole || button.disabled) return;
  button.disabled = true;
  try {
    forget();
    const status = await ask(whole, "", 0);
    sessionStorage.setItem(KEY, whole);
    by("key").value = "";
    show(true);
    take(status);
    timer = setTimeout(refresh, EVERY);
  } catch (error) {
    put(by("signin-error"), `${error.message}.`);
    by("key").select();
  } finally {
    button.disabled = false;
  }
}

function signOut(why = "") {
  clearTimeout(timer);
  asking?.abort();
  sessionStorage.removeItem(KEY);
  by("database").replaceChildren();
  latest = null;
  for (const table of Object.values(tables)) table.set([]);
  forget();
  show(false);
  put(by("signin-error"), why && `${why}.`);
}

const THEMES = ["auto", "light", "dark"];

function theme(chosen) {
  if (chosen === "auto") {
    delete document.documentElement.dataset.theme;
    localStorage.removeItem("pgsluice-theme");
  } else {
    document.documentElement.dataset.theme = chosen;
    localStorage.setItem("pgsluice-theme", chosen);
  }
  put(by("theme"), `Theme: ${chosen}`);
}

by("signin-form").addEventListener("submit", signIn);
by("signout").addEventListener("click", () => signOut());
by("theme").addEventListener("click", () => {
  const now = document.documentElement.dataset.theme ?? "auto";
  theme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
});
by("database").addEventListener("change", () => {
  forget();
  refresh();
});
for (const name of ["statements", "keys"]) {
  by(`${name}-order`).addEventListener("change", () => latest && drawRecent(latest.recent));
}
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    clearTimeout(timer);
    put(by("freshness"), "paused");
  } else refresh();
});

put(by("theme"), `Theme: ${document.documentElement.dataset.theme ?? "auto"}`);
forget();
show(Boolean(key()));
refresh();
