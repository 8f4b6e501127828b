// Several runs: the methods of a comparison with bands over seeds, and a table of runs to choose one from.

import { LineChart } from "./chart.js";
import { styles } from "./colours.js";
import { byId, chip, el, fill, table } from "./dom.js";
import { DASH, bytes, fixed, plural, whole } from "./format.js";
import { Plane } from "./plane.js";

export class Compared {
  constructor() {
    this.chart = new LineChart(byId("entries-chart"), { title: "Accuracy by method, %", format: (value) => fixed(value), tick: whole, range: [0, 100], sync: "entries", height: 230, share: 0.5 });
    this.plane = new Plane(byId("entries-plane"));
    byId("scopes").addEventListener("change", (event) => { this.scope = event.target.value; this.draw(); });
  }

  update(view) {
    byId("compared").hidden = !view.entries.length;
    if (byId("compared").hidden) return;
    this.view = view;
    this.scopes = [...new Map(view.runs.flatMap((run) => run.scopes).map((scope) => [scope.name, scope])).values()];
    if (!this.scopes.some((scope) => scope.name === this.scope)) this.scope = (this.scopes.find((scope) => scope.preserved) ?? this.scopes[0])?.name;
    fill(byId("scopes"), el("legend", { class: "visually-hidden" }, "Scope"), ...this.scopes.map((scope) =>
      el("label", { title: scope.meaning || null }, el("input", { type: "radio", name: "scope", value: scope.name, "data-key": scope.name }), scope.label)));
    for (const input of byId("scopes").querySelectorAll("input")) input.checked = input.value === this.scope;
    this.draw();
  }

  draw() {
    const { entries, runs } = this.view, style = styles(entries.map((entry) => entry.label));
    const shown = entries.filter((entry) => entry.accuracy[this.scope]);
    const label = this.scopes.find((scope) => scope.name === this.scope)?.label ?? "";
    const seeds = Math.max(1, ...entries.map((entry) => entry.seeds));
    this.chart.update({
      series: shown.map((entry) => {
        const { rounds, mean, low, high } = entry.accuracy[this.scope];
        return { label: entry.label, xs: rounds, ys: mean, low, high, ...style.get(entry.label), level: !entry.trains || (rounds.length === 1 && entry.finished === entry.seeds) };
      }),
      last: Math.max(0, ...runs.map((run) => run.rounds)),
      note: `${label}, mean over sites${seeds > 1 ? ` and over ${plural(seeds, "seed")}; the band is one standard deviation over the seeds` : ""}. A dashed level is a method that trains nothing.`,
    });
    this.plane.update(entries.map((entry) => ({ label: entry.label, colour: style.get(entry.label).colour, plane: entry.plane })));
    this.table(entries, style);
  }

  table(entries, style) {
    const newest = (entry, scope) => entry.accuracy[scope.name]?.mean.at(-1) ?? null;
    const best = new Map(this.scopes.map((scope) => [scope.name, Math.max(...entries.map((entry) => newest(entry, scope) ?? -1))]));
    const spread = (entry, scope) => {
      const high = entry.accuracy[scope.name]?.high.at(-1) ?? null;
      return high === null ? "" : ` \u00b1 ${fixed(high - newest(entry, scope))}`;
    };
    const several = entries.some((entry) => entry.seeds > 1);
    const columns = [
      { head: "Method", first: true, cell: (entry) => el("span", {}, el("span", { class: "swatch", color: style.get(entry.label).colour, "aria-hidden": "true" }), entry.label) },
      ...(several ? [{ head: "Seeds", number: true, cell: (entry) => `${entry.finished} of ${entry.seeds}` }] : []),
      ...this.scopes.map((scope) => ({ head: `${scope.label}, %`, number: true, cell: (entry) => fixed(newest(entry, scope)) + spread(entry, scope), best: (entry) => entries.length > 1 && newest(entry, scope) === best.get(scope.name) })),
      { head: "Uplink", number: true, cell: (entry) => (entry.uplink === null ? DASH : bytes(entry.uplink)) },
      { head: "Parameters", number: true, cell: (entry) => whole(entry.trainable_parameters) },
    ];
    fill(byId("entries"), table(columns, entries, "Methods after the newest round"));
  }
}

/** The table of runs; `choose` is told which one to show. */
export function runsTable(view, chosen, choose) {
  byId("runs-section").hidden = view.runs.length < 2;
  if (byId("runs-section").hidden) return;
  const pick = (run) => el("button", { type: "button", class: "pick", "data-key": run.name, "aria-pressed": String(run.name === chosen), onclick: () => choose({ run: run.name, scope: null }) }, run.name);
  const columns = [
    { head: "Run", first: true, cell: pick },
    { head: "State", cell: (run) => chip(run.state) },
    { head: "Round", number: true, cell: (run) => (run.rounds ? `${run.round} of ${run.rounds}` : DASH) },
    { head: "Method", cell: (run) => run.method },
    { head: "Seed", number: true, cell: (run) => whole(run.seed) },
    { head: "Left out", number: true, cell: (run) => (run.left_out.answers ? whole(run.left_out.answers) : DASH) },
    { head: "Remark", kind: "reason", cell: (run) => run.problem || run.remark },
  ].filter((column) => column.head !== "Remark" || view.runs.some((run) => run.problem || run.remark));
  fill(byId("runs"), table(columns, view.runs, "Runs"));
}
