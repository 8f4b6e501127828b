// Figures and times as people read them. What is not known is a dash.

export const DASH = "\u2013";
const known = (value) => value !== null && value !== undefined && Number.isFinite(value);
const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const fixed = (value, digits = 1) => (known(value) ? value.toFixed(digits).replace("-", "\u2212") : DASH);
export const percent = (value, digits = 1) => (known(value) ? `${fixed(value, digits)} %` : DASH);
export const whole = (value) => (known(value) ? grouped.format(value) : DASH);
export const signed = (value, digits = 1) => (known(value) ? (value > 0 ? "+" : value < 0 ? "" : "\u00b1") + fixed(value, digits) : DASH);
export const significant = (value) => (known(value) ? String(Number(value.toPrecision(3))) : DASH);

export function bytes(value) {
  if (!known(value)) return DASH;
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  for (; value >= 1000 && at < units.length - 1; at++) value /= 1000;
  return `${at === 0 ? Math.round(value) : value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} ${units[at]}`;
}

export function duration(seconds) {
  if (!known(seconds)) return DASH;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

export function ago(epoch) {
  if (!known(epoch) || epoch === 0) return DASH;
  const seconds = Math.max(0, Date.now() / 1000 - epoch);
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

export const plural = (count, one, many = `${one}s`) => `${whole(count)} ${count === 1 ? one : many}`;
export const rounds = (first, last) => (first === last ? `round ${first}` : `rounds ${first}\u2013${last}`);
