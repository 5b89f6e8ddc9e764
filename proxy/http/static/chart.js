// Lines over the last quarter of an hour, as SVG. The legend tells the values: the newest, or those under the cursor,
// which all charts share.

import { clock, element, put } from "./text.js";

const SVG = "http://www.w3.org/2000/svg";
const STEPS = [1, 1.5, 2, 3, 4, 5, 6, 8, 10];
const MINUTE = 60;
const LEAST_SPAN = 120;

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** Returns a round number that isn't below `value`. */
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return STEPS.find((step) => step * power >= value * 0.999) * power;
}

function linear(values, least) {
  const top = roundUp(Math.max(least, ...values));
  return { ticks: [0, top / 2, top], place: (value) => value / top };
}

function logarithmic(values) {
  const known = values.filter((value) => value > 0);
  const low = Math.floor(Math.log10(known.length ? Math.min(...known) : 0.1));
  const high = Math.max(Math.ceil(Math.log10(known.length ? Math.max(...known) : 10)), low + 1);
  const ticks = Array.from({ length: high - low + 1 }, (_, index) => 10 ** (low + index));
  return { ticks, place: (value) => (Math.log10(Math.max(value, 10 ** low)) - low) / (high - low) };
}

/**
 * A chart in a <figure>.
 *
 * series: [{ name, style, area, value }], where value(text) formats; options: title, height, log, least, span (seconds),
 * small (no times below, no labels), cursor: { index, listeners } that is shared.
 */
export class Chart {
  constructor(figure, series, options) {
    this.series = series;
    this.options = options;
    this.cursor = options.cursor;
    this.svg = shape("svg", { role: "img", class: "plot" });
    this.moment = element("span", { class: "moment" });
    this.legend = series.map((each) => {
      const key = shape("svg", { class: "key", viewBox: "0 0 16 6", "aria-hidden": "true" });
      key.append(shape("path", { d: "M0 3H16", class: `line ${each.style}` }));
      const value = element("b");
      return { value, whole: element("span", { class: "entry" }, key, each.name, " ", value) };
    });
    const caption = element(
      "figcaption", {}, element("span", { class: "title" }, options.title), this.moment,
      element("span", { class: "legend" }, ...this.legend.map((each) => each.whole)),
    );
    figure.append(caption, this.svg);
    figure.tabIndex = 0;
    this.width = 0;
    new ResizeObserver(() => this.resize()).observe(this.svg);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerdown", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.move(null));
    figure.addEventListener("blur", () => this.move(null));
    figure.addEventListener("keydown", (event) => this.press(event));
    this.cursor.listeners.push(() => this.show());
    this.data = { at: [], lines: series.map(() => []) };
  }

  /** Takes times (Unix seconds) and for each series its values; null is a gap. */
  set(at, lines) {
    this.data = { at, lines };
    this.draw();
  }

  resize() {
    const width = Math.round(this.svg.clientWidth);
    if (width && width !== this.width) {
      this.width = width;
      this.draw();
    }
  }

  draw() {
    const { at, lines } = this.data;
    const { height, log, least, small } = this.options;
    if (!this.width) return;
    const values = lines.flat().filter((value) => value != null);
    const scale = log ? logarithmic(values) : linear(values, least ?? 1);
    const left = small ? 0 : 54;
    const bottom = height - (small ? 3 : 20);
    const end = at.length ? at[at.length - 1] : Date.now() / 1000;
    // A young proxy's minutes fill the width too.
    const span = Math.min(Math.max(end - (at[0] ?? end), LEAST_SPAN), this.options.span);
    const step = span > 5 * MINUTE ? 5 * MINUTE : MINUTE;
    this.x = (seconds) => left + (1 - (end - seconds) / span) * (this.width - left - 4);
    this.y = (value) => bottom - scale.place(value) * (bottom - 8);
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${height}`);
    this.svg.setAttribute("height", height);
    const drawn = [];
    for (const tick of small ? scale.ticks.slice(0, 1) : scale.ticks) {
      drawn.push(shape("line", { x1: left, x2: this.width, y1: this.y(tick), y2: this.y(tick), class: "grid" }));
      if (!small) drawn.push(this.label(left - 8, this.y(tick) + 4, "end", this.series[0].value(tick)));
    }
    if (!small) {
      for (let mark = Math.ceil((end - span) / step) * step; mark <= end; mark += step) {
        const place = this.x(mark);
        drawn.push(shape("line", { x1: place, x2: place, y1: 8, y2: bottom, class: "grid" }));
        if (place > left + 14 && place < this.width - 16) {
          drawn.push(this.label(place, height - 4, "middle", clock(mark, false)));
        }
      }
    }
    lines.forEach((line, index) => {
      const { style, area } = this.series[index];
      for (const run of this.runs(line)) {
        const path = run.map((each, place) => `${place ? "L" : "M"}${each.x.toFixed(1)} ${each.y.toFixed(1)}`).join("");
        if (area && run.length > 1) {
          const closed = `${path}L${run.at(-1).x.toFixed(1)} ${bottom}L${run[0].x.toFixed(1)} ${bottom}Z`;
          drawn.push(shape("path", { d: closed, class: `area ${style}` }));
        }
        // A line of one point shows by its round ends.
        drawn.push(shape("path", { d: run.length > 1 ? path : `${path}h0.01`, class: `line ${style}` }));
      }
    });
    this.hair = shape("line", { y1: 8, y2: bottom, class: "hair", visibility: "hidden" });
    this.svg.replaceChildren(...drawn, this.hair);
    this.show();
  }

  /** Returns the parts of a line that have no gap. */
  runs(line) {
    const found = [];
    let run = null;
    line.forEach((value, index) => {
      if (value == null) {
        run = null;
        return;
      }
      if (!run) found.push((run = []));
      run.push({ x: this.x(this.data.at[index]), y: this.y(value) });
    });
    return found;
  }

  label(x, y, anchor, text) {
    const made = shape("text", { x, y, "text-anchor": anchor });
    made.textContent = text;
    return made;
  }

  /** Shows the values under the cursor, or the newest. */
  show() {
    const { at, lines } = this.data;
    const index = this.cursor.index != null && this.cursor.index < at.length ? this.cursor.index : null;
    const shown = index ?? at.length - 1;
    this.legend.forEach((entry, place) => put(entry.value, this.series[place].value(lines[place][shown])));
    put(this.moment, index == null ? "" : `at ${clock(at[index])}`);
    const told = this.series.map((each, place) => `${each.name} ${each.value(lines[place][shown])}`).join(", ");
    this.svg.setAttribute("aria-label", `${this.options.title}: ${told}`);
    if (!this.hair) return;
    this.hair.setAttribute("visibility", index == null ? "hidden" : "visible");
    if (index != null) {
      this.hair.setAttribute("x1", this.x(at[index]));
      this.hair.setAttribute("x2", this.x(at[index]));
    }
  }

  point(event) {
    const place = event.clientX - this.svg.getBoundingClientRect().left;
    const { at } = this.data;
    if (!this.x || !at.length) return;
    let nearest = 0;
    at.forEach((seconds, index) => {
      if (Math.abs(this.x(seconds) - place) < Math.abs(this.x(at[nearest]) - place)) nearest = index;
    });
    this.move(nearest);
  }

  press(event) {
    const last = this.data.at.length - 1;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") this.move(null);
    if (step === undefined || last < 0) return;
    event.preventDefault();
    this.move(Math.min(Math.max((this.cursor.index ?? last) + step, 0), last));
  }

  move(index) {
    if (this.cursor.index === index) return;
    this.cursor.index = index;
    for (const listener of this.cursor.listeners) listener();
  }
}
