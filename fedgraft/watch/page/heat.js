// A heat map of sites by rounds on a canvas, read by pointer or arrow keys; its order is that of the table beside it.

import { css, heat, onTheme } from "./colours.js";
import { el, text } from "./dom.js";
import { fixed, percent } from "./format.js";

const HEAD = 20, LABELLED = 13;

export class HeatMap {
  constructor(place) {
    this.canvas = el("canvas");
    this.box = el("div", { class: "heat", tabindex: 0, role: "application", "aria-roledescription": "heat map" }, this.canvas);
    this.scale = el("canvas", { width: "", "aria-hidden": "true" });
    this.low = el("span"), this.high = el("span");
    this.key = el("div", { class: "key" }, this.low, this.scale, this.high, el("span", { class: "cross" }, "\u00d7 answer left out, blank: not measured"));
    this.readout = el("p", { class: "readout", role: "status" });
    place.replaceChildren(this.box, this.key, this.readout);
    this.cursor = null;
    this.box.addEventListener("keydown", (event) => this.step(event));
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.box.addEventListener("pointerleave", () => this.clear());
    this.box.addEventListener("blur", () => this.clear());
    addEventListener("resize", () => requestAnimationFrame(() => this.draw()));
    onTheme(() => this.draw());
  }

  /** rows: [{name, values, missed}] in order; rounds: of the columns; label: of the scope. */
  update(rows, rounds, label) {
    Object.assign(this, { rows, rounds, label });
    this.draw();
    if (this.cursor) this.tell();
    this.box.setAttribute("aria-label", `${label} of ${rows.length} sites over ${rounds.length} rounds. Arrow keys read single values; the table has the newest.`);
  }

  draw() {
    const width = this.box.clientWidth;
    if (!this.rows || !width) return;
    const values = this.rows.flatMap((row) => row.values).filter((value) => value !== null);
    this.floor = values.length ? Math.floor(values.reduce((low, value) => Math.min(low, value), 100) / 10) * 10 : 0;
    const height = Math.min(22, Math.max(3, Math.floor(340 / Math.max(this.rows.length, 1))));
    const longest = Math.max(0, ...this.rows.map((row) => row.name.length));
    this.left = height >= LABELLED ? Math.min(110, 14 + 6.6 * longest) : 0;
    this.cell = { height, width: Math.max(2, Math.min(64, (width - this.left - 2) / Math.max(this.rounds.length, 1))) };
    const size = [this.left + this.cell.width * this.rounds.length, HEAD + height * this.rows.length], ratio = devicePixelRatio;
    this.base = el("canvas");
    for (const canvas of [this.base, this.canvas]) [canvas.width, canvas.height] = size.map((length) => length * ratio);
    [this.canvas.style.width, this.canvas.style.height] = size.map((length) => `${length}px`);
    const context = this.context = this.base.getContext("2d");
    context.scale(ratio, ratio);
    context.font = "11px Inter, system-ui, sans-serif";
    context.textBaseline = "middle";
    this.head();
    this.rows.forEach((row, at) => this.row(row, at));
    this.legend();
    this.show();
  }

  /** What was drawn, and the cursor above it. */
  show() {
    const context = this.canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.drawImage(this.base, 0, 0);
    if (!this.cursor) return;
    const { width, height } = this.cell, [row, column] = this.cursor;
    context.scale(devicePixelRatio, devicePixelRatio);
    context.strokeStyle = css("ink");
    context.lineWidth = 2;
    context.strokeRect(this.left + column * width - 1, HEAD + row * height - 1, width + 1, height + 1);
  }

  head() {
    const context = this.context, fits = 34 / this.cell.width;
    const every = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((step) => step >= fits) ?? 1000;
    context.fillStyle = css("muted");
    this.rounds.forEach((round, at) => { if (round % every === 0 && (this.rounds.length - at) * this.cell.width > 20) context.fillText(String(round), this.left + at * this.cell.width + 1, HEAD / 2); });
  }

  row(row, at) {
    const context = this.context, { width, height } = this.cell, top = HEAD + at * height, gap = Math.min(width, height) > 6 ? 1 : 0;
    if (this.left) {
      context.fillStyle = css("soft");
      context.fillText(row.name.length > 16 ? `${row.name.slice(0, 15)}\u2026` : row.name, 0, top + height / 2, this.left - 6);
    }
    row.values.forEach((value, column) => {
      if (value === null) return;
      context.fillStyle = heat((value - this.floor) / (100 - this.floor || 1));
      context.fillRect(this.left + column * width, top, width - gap, height - gap);
    });
    for (const column of row.missed) this.cross(this.left + column * width, top, width - gap, height - gap, row.values[column]);
  }

  cross(left, top, width, height, value) {
    const context = this.context, arm = Math.max(1, Math.min(4, Math.min(width, height) / 2 - 2));
    context.strokeStyle = value === null ? css("bad") : value > (100 + this.floor) / 2 ? "#16181d" : "#ffffff";
    context.lineWidth = arm > 2 ? 1.5 : 1;
    context.beginPath();
    for (const side of [-1, 1]) {
      context.moveTo(left + width / 2 - arm, top + height / 2 - side * arm);
      context.lineTo(left + width / 2 + arm, top + height / 2 + side * arm);
    }
    context.stroke();
  }

  legend() {
    const context = this.scale.getContext("2d");
    this.scale.width = 112;
    this.scale.height = 9;
    for (let at = 0; at < 112; at++) {
      context.fillStyle = heat(at / 111);
      context.fillRect(at, 0, 1, 9);
    }
    text(this.low, `${this.floor} %`);
    text(this.high, "100 %");
  }

  point(event) {
    const row = Math.floor((event.offsetY - HEAD) / this.cell.height), column = Math.floor((event.offsetX - this.left) / this.cell.width);
    if (row >= 0 && column >= 0) this.go(row, column);
  }

  step(event) {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -1e9], End: [0, 1e9] }[event.key];
    if (!move || !this.rows?.length) return;
    event.preventDefault();
    const [row, column] = this.cursor ?? [0, this.rounds.length];
    this.go(row + (this.cursor ? move[0] : 0), column + (this.cursor ? move[1] : -1));
    const top = HEAD + this.cursor[0] * this.cell.height;
    if (top < this.box.scrollTop || top + this.cell.height > this.box.scrollTop + this.box.clientHeight) this.box.scrollTop = top - this.box.clientHeight / 2;
  }

  go(row, column) {
    const next = [Math.min(Math.max(row, 0), this.rows.length - 1), Math.min(Math.max(column, 0), this.rounds.length - 1)];
    if (this.cursor?.[0] === next[0] && this.cursor[1] === next[1]) return;
    this.cursor = next;
    this.tell();
    this.show();
  }

  clear() {
    if (!this.cursor) return;
    this.cursor = null;
    text(this.readout, "");
    this.show();
  }

  tell() {
    const [row, column] = this.cursor, of = this.rows[row];
    if (!of) return;
    const out = of.missed.includes(column) ? ", answer left out" : "";
    text(this.readout, `${of.name}, round ${this.rounds[column] ?? fixed(null)}: ${percent(of.values[column])}${out}`);
  }
}
