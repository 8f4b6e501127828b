// Lines over rounds, drawn by uPlot, each chart with a legend that follows cursor or arrow keys, and a table.

import { css, faded, onTheme } from "./colours.js";
import { el, fill, table } from "./dom.js";

const FONT = "12px Inter, system-ui, sans-serif";
const charts = new Set();
onTheme(() => charts.forEach((chart) => chart.draw()));
let resizing;
addEventListener("resize", () => {
  cancelAnimationFrame(resizing);
  resizing = requestAnimationFrame(() => charts.forEach((chart) => chart.draw()));
});
document.fonts?.ready.then(() => charts.forEach((chart) => chart.draw()));

/** uPlot's settings of an axis, in the page's colours. */
export function axis(more = {}) {
  const grid = { stroke: css("grid"), width: 1 };
  return { stroke: css("muted"), font: FONT, grid, ticks: { show: false }, border: { show: false }, gap: 6, ...more };
}

/**
 * A chart in `panel`. Options: title, format(value) and tick(value) of figures and along the axis, range ([low, high] that it never leaves),
 * zero whether the axis begins at 0, height and share of the width that it may take instead, sync,
 * x(value) how a place is written, head the name of the first column.
 * `update` takes {series: [{label, xs, ys, low, high, colour, dash, level}], last}; `level` is drawn across.
 */
export class LineChart {
  constructor(panel, options) {
    this.options = { height: 150, share: 0, zero: false, range: [null, null], x: String, head: "Round", ...options };
    this.place = el("div", { class: "chart", tabindex: 0, role: "img" });
    this.legend = el("ul", { class: "legend" });
    this.note = el("p", { class: "note" });
    this.data = el("div", { tabindex: 0, role: "region", "aria-label": "Table" });
    this.details = el("details", { class: "data", ontoggle: () => this.tabulate() }, el("summary", {}, "As a table"), this.data);
    panel.replaceChildren(el("h3", {}, options.title), this.place, this.legend, this.note, this.details);
    this.place.addEventListener("keydown", (event) => this.step(event));
    this.place.addEventListener("blur", () => this.plot?.setCursor({ left: -10, top: -10 }));
    this.panel = panel;
    charts.add(this);
  }

  update(content) {
    const next = JSON.stringify(content);
    if (next === this.shown) return;
    this.shown = next;
    this.content = content;
    this.note.textContent = content.note ?? "";
    this.note.hidden = !content.note;
    this.draw();
    this.tabulate();
  }

  draw() {
    if (!this.content || !this.place.clientWidth) return;
    const { series, last } = this.content;
    const xs = [...new Set(series.flatMap((each) => each.xs))].sort((one, other) => one - other);
    const at = new Map(xs.map((x, index) => [x, index]));
    const column = (each, values) => {
      const spread = xs.map(() => null);
      each.xs.forEach((x, index) => { spread[at.get(x)] = values[index]; });
      return each.level ? xs.map(() => each.ys.at(-1)) : spread;
    };
    const data = [xs], lines = [{}], bands = [];
    for (const each of series) {
      if (each.low?.some((value) => value !== null)) {
        bands.push({ series: [data.length, data.length + 1], fill: faded(each.colour, 0.16) });
        data.push(column(each, each.high), column(each, each.low));
        lines.push({ stroke: "transparent", points: { show: false }, spanGaps: true }, { stroke: "transparent", points: { show: false }, spanGaps: true });
      }
      data.push(column(each, each.ys));
      const points = { show: !each.level && xs.length <= 30, size: 5, width: 0, fill: each.colour };
      const dash = each.level ? [5, 5] : each.dash ?? [];
      lines.push({ stroke: each.colour, width: each.level ? 1.5 : 2, dash, points, spanGaps: true });
    }
    this.plot?.destroy();
    const [floor, ceiling] = this.options.range;
    this.plot = new uPlot({
      width: this.place.clientWidth, height: Math.max(this.options.height, Math.min(340, this.place.clientWidth * this.options.share)), padding: [10, 16, 0, 0],
      scales: {
        x: { time: this.options.time ?? false, range: (_, low, high) => [low ?? 0, Math.max(high ?? 0, last ?? 0, (low ?? 0) + 1)] },
        y: { range: (_, low, high) => around(this.options.zero ? Math.min(low, 0) : low, high, floor, ceiling) },
      },
      axes: [
        axis({ grid: { show: false }, size: 28, space: 46, incrs: this.options.time ? undefined : [1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000], values: this.options.time ? undefined : (_, places) => places.map((place) => (Number.isInteger(place) ? this.options.x(place) : "")) }),
        axis({ size: (_, values) => 14 + 7 * Math.max(2, ...(values ?? []).map((value) => value.length)), space: 34, values: (_, places) => places.map((place) => this.options.tick?.(place) ?? this.options.format(place)) }),
      ],
      series: lines, bands, legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 }, sync: this.options.sync ? { key: this.options.sync } : undefined },
      hooks: { setCursor: [(plot) => this.read(plot.cursor.idx)] },
    }, data, this.place);
    this.xs = xs;
    this.read(null);
  }

  /** Write the values at a place, or the newest ones, into the legend. */
  read(index) {
    const x = index === null || index === undefined ? null : this.xs[index];
    const items = this.content.series.map((each) => {
      const value = each.level ? each.ys.at(-1) : x === null ? newest(each.ys) : each.ys[each.xs.indexOf(x)];
      const swatch = el("span", { class: "swatch", color: each.colour, "aria-hidden": "true" });
      return el("li", {}, swatch, el("span", { class: "name" }, each.label), el("b", {}, this.options.format(value)));
    });
    const where = x === null ? null : el("li", { class: "at" }, `${this.options.head} ${this.options.x(x)}`);
    fill(this.legend, ...items, ...(where ? [where] : []));
    const told = this.content.series.map((each) => `${each.label} ${this.options.format(newest(each.ys))}`).join(", ");
    this.place.setAttribute("aria-label", `${this.options.title}. Newest: ${told || "nothing yet"}. Arrow keys read other rounds; the table below has all.`);
    this.legend.setAttribute("aria-live", document.activeElement === this.place ? "polite" : "off");
  }

  step(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (move === undefined || !this.plot || !this.xs.length) return;
    event.preventDefault();
    const from = this.plot.cursor.idx ?? (move > 0 ? -1 : this.xs.length);
    const index = Math.min(Math.max(from + move, 0), this.xs.length - 1);
    this.plot.setCursor({ left: this.plot.valToPos(this.xs[index], "x"), top: 10 });
  }

  tabulate() {
    if (!this.details.open || !this.content) return;
    const { series } = this.content, xs = [...new Set(series.flatMap((each) => each.xs))].sort((one, other) => one - other);
    const spread = (each, index) => (each.high?.[index] == null ? "" : ` \u00b1 ${this.options.format((each.high[index] - each.low[index]) / 2)}`);
    const cell = (each) => (x) => {
      const index = each.xs.indexOf(x);
      return index < 0 ? "" : this.options.format(each.ys[index]) + spread(each, index);
    };
    const columns = [{ head: this.options.head, first: true, cell: (x) => String(this.options.x(x)) },
      ...series.map((each) => ({ head: each.label, number: true, cell: cell(each) }))];
    fill(this.data, table(columns, xs, this.options.title));
  }
}

const newest = (values) => values.findLast((value) => value !== null) ?? null;

/** A range with some air around the values, inside what is possible. */
function around(low, high, floor, ceiling) {
  if (low === null || high === null) return [floor ?? 0, ceiling ?? 1];
  const air = Math.max((high - low) * 0.08, Math.abs(high) * 0.02, 1e-9);
  return [Math.max(low - air, floor ?? -Infinity), Math.min(high + air, ceiling === null ? Infinity : ceiling + (ceiling - (floor ?? 0)) * 0.01)];
}
