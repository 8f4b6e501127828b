// Generalization against personalization: where each method stands after each round, as a path that ends in a point.

import { axis } from "./chart.js";
import { css, faded, onTheme } from "./colours.js";
import { el, fill, table } from "./dom.js";
import { fixed, percent } from "./format.js";

const planes = new Set();
const redraw = () => planes.forEach((plane) => plane.draw());
onTheme(redraw);
addEventListener("resize", () => requestAnimationFrame(redraw));
document.fonts?.ready.then(redraw);

/** `update` takes paths: [{label, colour, plane}], with `plane` as /api/run has it. */
export class Plane {
  constructor(panel) {
    this.place = el("div", { class: "chart", role: "img" });
    this.legend = el("ul", { class: "legend" });
    this.data = el("div", { tabindex: 0, role: "region", "aria-label": "Table" });
    this.details = el("details", { class: "data", ontoggle: () => this.tabulate() }, el("summary", {}, "As a table"), this.data);
    this.note = el("p", { class: "note" });
    panel.replaceChildren(el("h3", {}, "Generalization against personalization"), this.place, this.legend, this.note, this.details);
    this.panel = panel;
    planes.add(this);
  }

  update(paths) {
    this.paths = paths.filter((path) => path.plane?.rounds.length);
    this.panel.hidden = !this.paths.length;
    const next = JSON.stringify(this.paths);
    if (this.panel.hidden || next === this.shown) return;
    this.shown = next;
    this.axes = { x: this.paths[0].plane.x, y: this.paths[0].plane.y };
    this.start = this.paths.map((path) => path.plane.start).find(Boolean) ?? null;
    this.draw();
    this.tabulate();
  }

  draw() {
    if (!this.paths?.length || !this.place.clientWidth) return;
    const points = this.paths.map((path) => [path.plane.xs, path.plane.ys]);
    if (this.start) points.push(this.start.map((value) => [value]));
    const range = (at) => (_, low, high) => within(points.flatMap((point) => point[at]));
    const side = this.place.clientWidth, ratio = devicePixelRatio;
    this.plot?.destroy();
    this.plot = new uPlot({
      mode: 2, width: side, height: Math.min(300, Math.max(220, side)), padding: [10, 14, 0, 0],
      scales: { x: { time: false, range: range(0) }, y: { range: range(1) } },
      axes: [axis({ size: 26, label: `${this.axes.x}, %`, labelSize: 18, labelFont: "12px Inter, system-ui, sans-serif", labelGap: 2 }),
        axis({ size: 38, label: `${this.axes.y}, %`, labelSize: 18, labelFont: "12px Inter, system-ui, sans-serif" })],
      series: [null, ...this.paths.map((path) => ({ stroke: path.colour, paths: (plot, at) => trace(plot, this.paths[at - 1], ratio) }))],
      legend: { show: false }, cursor: { show: false },
      hooks: { drawAxes: [(plot) => { iso(plot, ratio); if (this.start) cross(plot, this.start, ratio); }] },
    }, [null, ...points.slice(0, this.paths.length)], this.place);
    const items = this.paths.map((path) => el("li", {},
      el("span", { class: "swatch", color: path.colour, "aria-hidden": "true" }), el("span", { class: "name" }, path.label),
      el("b", {}, `${fixed(path.plane.xs.at(-1))} / ${fixed(path.plane.ys.at(-1))}`)));
    if (this.start) items.push(el("li", {}, el("span", { class: "at" }, `\u00d7 hand-written templates ${this.start.map((value) => fixed(value)).join(" / ")}`)));
    fill(this.legend, ...items);
    this.note.textContent = "Each path begins faint in its first round and ends in the dot of the newest. Along a thin line the harmonic mean of both is the same.";
    const told = this.paths.map((path) => `${path.label}: ${this.axes.x} ${percent(path.plane.xs.at(-1))}, ${this.axes.y} ${percent(path.plane.ys.at(-1))}`);
    this.place.setAttribute("aria-label", `Generalization against personalization. ${told.join("; ")}.`);
  }

  tabulate() {
    if (!this.details.open || !this.paths?.length) return;
    const rows = this.paths.flatMap((path) => path.plane.rounds.map((round, at) => ({ path, round, at })));
    fill(this.data, table([
      { head: "", first: true, cell: (row) => row.path.label },
      { head: "Round", number: true, cell: (row) => String(row.round) },
      { head: this.axes.x, number: true, cell: (row) => fixed(row.path.plane.xs[row.at]) },
      { head: this.axes.y, number: true, cell: (row) => fixed(row.path.plane.ys[row.at]) },
    ], rows, "Generalization against personalization"));
  }
}

function within(values) {
  const known = values.filter((value) => value !== null);
  const low = Math.min(...known), high = Math.max(...known), air = Math.max((high - low) * 0.1, 2);
  return [Math.max(low - air, -1), Math.min(high + air, 101)];
}

function trace(plot, path, ratio) {
  const { xs, ys } = path.plane, context = plot.ctx;
  const at = (index) => [plot.valToPos(xs[index], "x", true), plot.valToPos(ys[index], "y", true)];
  context.save();
  context.lineWidth = 2 * ratio;
  for (let index = 1; index < xs.length; index++) {
    context.strokeStyle = faded(path.colour, 0.15 + 0.75 * (index / xs.length));
    context.beginPath();
    context.moveTo(...at(index - 1));
    context.lineTo(...at(index));
    context.stroke();
  }
  dot(context, at(xs.length - 1), 8 * ratio, css("panel"));
  dot(context, at(xs.length - 1), 6 * ratio, path.colour);
  context.restore();
  return null;
}

function dot(context, [x, y], radius, colour) {
  context.fillStyle = colour;
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fill();
}

/** Lines of equal harmonic mean, each with its value at the end. */
function iso(plot, ratio) {
  const { ctx: context, bbox, scales } = plot;
    context.save();
  context.beginPath();
  context.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  context.clip();
  context.strokeStyle = css("line");
  context.fillStyle = css("muted");
  context.font = `${10 * ratio}px Inter, system-ui, sans-serif`;
  context.lineWidth = ratio;
  for (let mean = 10; mean < 100; mean += 10) {
    context.beginPath();
    let end = null;
    for (let share = 0; share <= 80; share++) {
      const x = scales.x.min + (share / 80) * (scales.x.max - scales.x.min), y = (mean * x) / (2 * x - mean);
      if (2 * x <= mean || y > scales.y.max || y < scales.y.min) continue;
      end = [plot.valToPos(x, "x", true), plot.valToPos(y, "y", true)];
      context.lineTo(...end);
    }
    context.stroke();
    if (end) context.fillText(String(mean), end[0] - 16 * ratio, end[1] - 4 * ratio);
  }
  context.restore();
}

/** The hand-written templates, before anything is trained. */
function cross(plot, [x, y], ratio) {
  const [left, top] = [plot.valToPos(x, "x", true), plot.valToPos(y, "y", true)], arm = 5 * ratio, context = plot.ctx;
  context.save();
  context.strokeStyle = css("ink");
  context.lineWidth = 1.75 * ratio;
  context.beginPath();
  for (const side of [-1, 1]) {
    context.moveTo(left - arm, top - side * arm);
    context.lineTo(left + arm, top + side * arm);
  }
  context.stroke();
  context.restore();
}
