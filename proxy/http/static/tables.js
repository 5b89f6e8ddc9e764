// The tables. Rows are filled anew in place, so that what a reader has selected, or scrolled to, stays.

import { bytes, clock, count, element, put, rate, time } from "./text.js";

// What a pgsluice without samples, statements or denials says instead of a table.
const EVENTS = { denied: "denied", login_failed: "login failed", revoked: "revoked" };

/**
 * A table in a panel. columns: [{ title, text(row), kind, fill(cell, row) }]: kind is "" for text, "number", "name" (the
 * row's name) or "wide" (a line of its own on a phone).
 */
export class Table {
  constructor(panel, title, columns, nothing) {
    this.columns = columns;
    this.body = element("tbody", { role: "rowgroup" });
    const heads = columns.map((column) => {
      const kind = column.kind ?? "";
      return element("th", { scope: "col", role: "columnheader", class: kind }, column.title);
    });
    this.table = element(
      "table", { role: "table", "aria-label": title },
      element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, ...heads)), this.body,
    );
    this.nothing = element("p", { class: "nothing" }, nothing);
    panel.append(this.table, this.nothing);
  }

  /** Shows rows; where there are none, `nothing`, or why. */
  set(rows, why) {
    while (this.body.rows.length > rows.length) this.body.deleteRow(-1);
    while (this.body.rows.length < rows.length) this.body.append(this.row());
    rows.forEach((row, index) => {
      const cells = this.body.rows[index].cells;
      this.body.rows[index].classList.toggle("idle", row.idle_now === true);
      this.columns.forEach((column, place) => {
        if (column.fill) column.fill(cells[place], row);
        else put(cells[place], column.text(row));
        // On a phone what says nothing has no place.
        cells[place].classList.toggle("empty", ["", "0", "–"].includes(cells[place].textContent));
      });
    });
    this.table.hidden = rows.length === 0;
    this.nothing.hidden = rows.length !== 0;
    if (why) put(this.nothing, why);
  }

  row() {
    const cells = this.columns.map((column) =>
      element("td", { role: "cell", class: column.kind ?? "", "data-title": column.title }));
    return element("tr", { role: "row" }, ...cells);
  }
}

function number(title, text) {
  return { title, text, kind: "number" };
}

/** Fills a cell with a text and a bar below it, of so many parts of one. */
function barred(cell, text, share) {
  if (!cell.firstChild) {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    bar.setAttribute("class", "bar-line");
    bar.setAttribute("aria-hidden", "true");
    for (const name of ["rest", "part"]) {
      const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      rect.setAttribute("class", name);
      rect.setAttribute("width", "100%");
      rect.setAttribute("height", "3");
      rect.setAttribute("rx", "1.5");
      bar.append(rect);
    }
    cell.append(element("span"), bar);
  }
  put(cell.firstChild, text);
  cell.lastChild.lastChild.setAttribute("width", `${(100 * Math.min(share, 1)).toFixed(1)}%`);
}

function marked(cell, text, mark) {
  if (!cell.firstChild) cell.append(element("span", { class: "mark-dot" }), element("span"));
  cell.className = `${cell.className.split(" is-")[0]} is-${mark}`;
  put(cell.lastChild, text);
}

export const POOLS = [
  { title: "pool", kind: "name", text: (row) => row.pool },
  { title: "host", text: (row) => row.host },
  {
    title: "connections", kind: "meter",
    fill: (cell, row) => {
      const busy = row.active + row.busy;
      barred(cell, `${busy} of ${row.maximum} busy, ${row.idle} idle`, row.maximum ? busy / row.maximum : 0);
    },
  },
  number("waiting", (row) => count(row.waiting)),
  number("pinned", (row) => count(row.pinned)),
  number("statements/s", (row) => rate(row.statements)),
  number("errors/s", (row) => rate(row.errors)),
  number("p50", (row) => time(row.p50_ms)),
  number("p95", (row) => time(row.p95_ms)),
  number("p99", (row) => time(row.p99_ms)),
];

export const HOSTS = [
  { title: "host", kind: "name", text: (row) => row.host },
  { title: "role", text: (row) => row.role },
  {
    title: "state",
    fill: (cell, row) => {
      const open = row.breaker !== "closed";
      marked(cell, `${row.connected ? "up" : "down"}${open ? `, breaker ${row.breaker}` : ""}`, row.connected ? "good" : "bad");
    },
  },
  number("lag", (row) => (row.lag_s == null ? "–" : time(row.lag_s * 1000))),
  number("answers in", (row) => time(row.response_ms)),
  { title: "last error", kind: "wide", text: (row) => row.error },
];

export const STATEMENTS = [
  {
    title: "statement", kind: "name sql",
    fill: (cell, row) => barred(cell, row.statement || `fingerprint ${row.fingerprint || "unknown"}`, row.share),
  },
  { title: "intent", text: (row) => row.intent },
  number("number", (row) => count(row.count)),
  number("total", (row) => time(row.total_ms)),
  number("mean", (row) => time(row.mean_ms)),
  number("longest", (row) => time(row.max_ms)),
  number("rows", (row) => count(row.rows)),
  number("errors", (row) => count(row.errors)),
];

export const KEYS = [
  { title: "user", kind: "name", text: (row) => row.user_id || "–" },
  { title: "key", kind: "mono", text: (row) => row.key_id },
  number("statements", (row) => count(row.count)),
  number("total", (row) => time(row.total_ms)),
  number("mean", (row) => time(row.mean_ms)),
  number("sent", (row) => bytes(row.bytes_out)),
  number("errors", (row) => count(row.errors)),
  number("denied", (row) => count(row.denied)),
];

export const DENIALS = [
  { title: "last", kind: "name", text: (row) => clock(row.at) },
  number("times", (row) => count(row.count)),
  { title: "what", kind: "short", text: (row) => EVENTS[row.event] ?? row.event },
  { title: "who", kind: "who", text: (row) => row.user_id || row.key_id || "unknown" },
  { title: "from", kind: "mono", text: (row) => row.client_addr },
  { title: "code", kind: "code", text: (row) => row.code },
  { title: "reason", text: (row) => row.reason },
  { title: "statement", kind: "wide sql", text: (row) => row.statement },
];
