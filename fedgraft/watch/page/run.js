// One run: its newest figures, accuracy by scope, loss, drift and bytes by round, what was left out, privacy spent.

import { LineChart } from "./chart.js";
import { styles } from "./colours.js";
import { byId, el, fill, table } from "./dom.js";
import { bytes, duration, fixed, plural, rounds, signed, significant, whole } from "./format.js";
import { Plane } from "./plane.js";

const SHOWN_SCOPES = 6;
const CURVES = [
  { key: "loss", title: "Training loss", format: (value) => fixed(value, 3), tick: significant, series: [["loss", "Loss"]] },
  { key: "drift", title: "Drift", format: (value) => fixed(value, 4), tick: significant, series: [["drift", "Cosine distance"]] },
  { key: "bytes", title: "Bytes per site and round", format: bytes, zero: true, series: [["uplink_bytes_per_site", "Uplink"], ["downlink_bytes_per_site", "Downlink"]] },
  { key: "answered", title: "Answers that counted", format: whole, zero: true, series: [["answered", "Sites"]] },
  { key: "seconds", title: "Seconds per round", format: (value) => fixed(value, 1), tick: significant, zero: true, series: [["seconds", "Seconds"]] },
];

export class RunPanels {
  constructor() {
    this.accuracy = new LineChart(byId("accuracy"), { title: "Accuracy on test images, %", format: (value) => fixed(value), tick: whole, range: [0, 100], sync: "rounds", height: 230, share: 0.5 });
    this.plane = new Plane(byId("plane"));
    this.curves = new Map();
  }

  update(run) {
    const style = styles(run.scopes.map((scope) => scope.name), (name) => run.scopes.find((scope) => scope.name === name).colour);
    cards(run, style);
    const names = run.scopes.filter((scope) => run.accuracy[scope.name]);
    byId("accuracy").hidden = !names.length || (run.rounds === 0 && run.state === "finished");
    this.accuracy.update({
      series: names.map((scope) => curve(scope.label, run.accuracy[scope.name].rounds, run.accuracy[scope.name].mean, style.get(scope.name))),
      last: run.rounds,
      note: names.length ? "Mean over the sites. Round 0 is before any training." : "",
    });
    const start = run.scopes.find((scope) => scope.preserved) ?? run.scopes[0];
    this.plane.update(run.plane && run.plane.rounds.length > 1 ? [{ label: run.method, colour: style.get(start.name).colour, plane: run.plane }] : []);
    this.training(run);
    out(run.left_out, run.unused);
    privacy(run.privacy);
  }

  training(run) {
    const folds = Object.entries(run.training);
    for (const { key, series, ...options } of CURVES) {
      const found = series.flatMap(([column, label]) => folds.map(([fold, values]) => ({ label: fold ? (series.length > 1 ? `${fold}, ${label}` : fold) : label, rounds: values.rounds, values: values[column] })))
        .filter((each) => each.values.some((value) => value !== null));
      const dull = key === "answered" && !run.left_out.answers && run.participation === 1;
      if (!found.length || dull) {
        this.curves.get(key)?.panel.remove();
        this.curves.delete(key);
        continue;
      }
      if (!this.curves.has(key)) {
        const panel = el("article", { class: "panel" });
        byId("training").append(panel);
        this.curves.set(key, new LineChart(panel, { ...options, range: [0, null], sync: "rounds" }));
      }
      const style = styles(found.map((each) => each.label));
      this.curves.get(key).update({ series: found.map((each) => curve(each.label, each.rounds, each.values, style.get(each.label))), last: run.rounds });
    }
    byId("training").hidden = !this.curves.size;
  }
}

const curve = (label, xs, ys, style) => ({ label, xs, ys, ...style });

function card(label, value, note, colour) {
  const swatch = colour ? el("span", { class: "swatch", color: colour, "aria-hidden": "true" }) : null;
  return el("div", {}, el("dt", {}, swatch, label), el("dd", { class: "value" }, ...[value].flat()), note ? el("dd", { class: "note" }, note) : null);
}

function cards(run, style) {
  const made = run.scopes.slice(0, SHOWN_SCOPES).map((scope) => {
    const { mean, rounds: at } = run.accuracy[scope.name] ?? { mean: [], rounds: [] };
    const note = mean.length > 1 ? `${signed(mean.at(-1) - mean[0])} since round ${at[0]}` : "before any training";
    return card(scope.label, [fixed(mean.at(-1)), el("small", {}, "%")], note, style.get(scope.name).colour);
  });
  const newest = Object.values(run.training).at(-1);
  const last = (key) => newest?.[key].findLast((value) => value !== null) ?? null;
  const total = (key) => (newest ? newest[key].reduce((sum, value) => sum + (value ?? 0), 0) : null);
  if (newest) {
    made.push(card("Uplink", bytes(last("uplink_bytes_per_site")), `a site and round; ${bytes(total("uplink_bytes_per_site"))} so far`));
    made.push(card("Downlink", bytes(last("downlink_bytes_per_site")), `a site and round; ${bytes(total("downlink_bytes_per_site"))} so far`));
    if (last("drift") !== null) made.push(card("Drift", fixed(last("drift"), 3), "of classes that no site has"));
    made.push(card("Answers", whole(newest.answered.at(-1)), run.left_out.answers ? `${whole(run.left_out.answers)} left out so far` : `of ${plural(run.sites ?? 0, "site")}, none left out`));
  }
  if (run.privacy) made.push(card("Epsilon", significant(run.privacy.epsilon), `at delta ${significant(run.privacy.delta)}`));
  if (run.trainable_parameters !== null && run.trainable_parameters > 0) made.push(card("Parameters", whole(run.trainable_parameters), `${whole(run.shared_parameters)} of them shared`));
  if (run.wall_seconds !== null) made.push(card("Wall time", duration(run.wall_seconds)));
  fill(byId("cards"), ...made);
  byId("cards").hidden = !made.length;
}

function out(left, unused) {
  byId("out-section").hidden = !left.answers && !unused.length;
  const rows = left.reasons.map((each) => ({ reason: each.reason, times: each.times, sites: each.sites.join(", ") + (each.more_sites ? ` and ${each.more_sites} more` : ""), when: rounds(each.first_round, each.last_round) }));
  rows.push(...unused.map((each) => ({ reason: `the whole round: ${each.reason}`, times: 1, sites: "", when: rounds(each.round, each.round) })));
  fill(byId("out"), table([
    { head: "Reason", first: true, kind: "reason", cell: (row) => row.reason },
    { head: "Answers", number: true, cell: (row) => whole(row.times) },
    { head: "When", kind: "nowrap", cell: (row) => row.when },
    { head: "Sites", cell: (row) => row.sites },
  ], rows, "Answers left out, by reason"), ...(left.more_reasons ? [el("p", { class: "note" }, `and ${plural(left.more_reasons, "other reason")}`)] : []));
}

function privacy(spent) {
  byId("privacy-section").hidden = !spent;
  if (!spent) return;
  const facts = [["Epsilon", significant(spent.epsilon)], ["Delta", significant(spent.delta)], ["Mechanism", spent.mechanism], ["Noise multiplier", significant(spent.noise_multiplier)], ["Clipping norm", significant(spent.clipping_norm)], ["Rounds of one site", whole(spent.releases)]];
  const when = spent.so_far ? "So far: " : "";
  fill(byId("privacy"), el("dl", { class: "facts" }, ...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
    el("p", { class: "note" }, `${when}Two federations that differ in ${spent.relation} can hardly be told apart by the shared parameters of all rounds. Losses and accuracies are not covered.`));
}
