// Text and numbers as they are shown. Nothing here, and nothing that uses it, makes markup of text.

// What doesn't print: controls, bidi and zero-width marks, line separators, spaces other than the plain one.
const HIDDEN = /[\p{C}\p{Zl}\p{Zp}]|[^\P{Zs} ]/gu;

/** Returns text with all that doesn't print made visible, as \u{202e}. */
export function visible(text) {
  return String(text ?? "").replace(HIDDEN, (each) => `\\u{${each.codePointAt(0).toString(16)}}`);
}

/** Returns a new element; children are elements, or text. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.map((each) => (each instanceof Node ? each : visible(each))));
  return made;
}

/** Puts text into a node where it differs, so that what a reader has selected stays. */
export function put(node, text) {
  const shown = visible(text);
  if (node.textContent !== shown) node.textContent = shown;
}

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const TENTHS = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const NOTHING = "–";

export function count(value) {
  return value == null ? NOTHING : WHOLE.format(value);
}

export function rate(value) {
  if (value == null) return NOTHING;
  return value !== 0 && value < 10 ? (value < 0.05 ? "<0.1" : TENTHS.format(value)) : WHOLE.format(value);
}

/** Returns a time that is given in milliseconds, with its unit. */
export function time(ms) {
  if (ms == null) return NOTHING;
  if (ms === 0) return "0 ms";
  if (ms < 1) return `${Number(ms.toPrecision(2))} ms`;
  if (ms < 100) return `${TENTHS.format(ms)} ms`;
  if (ms < 1000) return `${WHOLE.format(ms)} ms`;
  if (ms < 120_000) return `${TENTHS.format(ms / 1000)} s`;
  return ms < 7_200_000 ? `${TENTHS.format(ms / 60_000)} min` : `${TENTHS.format(ms / 3_600_000)} h`;
}

export function bytes(value) {
  if (value == null) return NOTHING;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (value < 1024) return `${unit === "B" ? WHOLE.format(value) : TENTHS.format(value)} ${unit}`;
    value /= 1024;
  }
  return `${TENTHS.format(value)} TiB`;
}

/** Returns the time of day of Unix seconds. */
export function clock(seconds, withSeconds = true) {
  const at = new Date(seconds * 1000);
  const parts = [at.getHours(), at.getMinutes(), ...(withSeconds ? [at.getSeconds()] : [])];
  return parts.map((each) => String(each).padStart(2, "0")).join(":");
}
