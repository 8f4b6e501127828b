// Okabe and Ito's palette, which colour-blind readers can tell apart, in shades for light and dark; and cividis.

const CYCLE = ["blue", "orange", "green", "purple", "sky", "red"];
const DASHES = [[], [7, 4], [2, 3]];
const CIVIDIS = [[0, 34, 78], [18, 53, 112], [59, 73, 108], [87, 93, 109], [112, 113, 115], [138, 134, 120], [165, 157, 113], [195, 180, 97], [225, 204, 74], [254, 232, 56]];

export const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
export const onTheme = (redraw) => matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

/** Colour and dashes of each name: its own colour, or the next that nobody has; dashes where colours come again. */
export function styles(names, own = () => "") {
  const taken = new Set(names.map(own).filter(Boolean));
  const free = CYCLE.filter((name) => !taken.has(name));
  const cycle = free.length ? free : CYCLE;
  let next = 0;
  return new Map(names.map((name) => {
    if (own(name)) return [name, { colour: css(own(name)), dash: [] }];
    const at = next++;
    return [name, { colour: css(cycle[at % cycle.length]), dash: DASHES[Math.floor(at / cycle.length) % DASHES.length] }];
  }));
}

export function faded(colour, alpha) {
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return `rgb(${red} ${green} ${blue} / ${alpha})`;
}

/** The colour of a share between 0 and 1; darkness grows with shortfall for every kind of sight. */
export function heat(share) {
  const at = Math.min(Math.max(share, 0), 1) * (CIVIDIS.length - 1);
  const below = Math.floor(at), rest = at - below;
  const [low, high] = [CIVIDIS[below], CIVIDIS[Math.min(below + 1, CIVIDIS.length - 1)]];
  return `rgb(${low.map((value, index) => Math.round(value + (high[index] - value) * rest)).join(" ")})`;
}
