// What the run's processes take of this machine while somebody watches.

import { LineChart } from "./chart.js";
import { css } from "./colours.js";
import { byId, el, fill, table } from "./dom.js";
import { DASH, bytes, percent, plural, whole } from "./format.js";

const SHOWN = 24;

export class MachineLoad {
  update(load, expected) {
    byId("load-section").hidden = !expected && !load?.samples.length && !load?.processes.length;
    if (byId("load-section").hidden) return;
    const { processes, samples, gpus, cores } = load;
    byId("load-chart").hidden = samples.length < 2;
    if (samples.length >= 2) {
      this.chart ??= new LineChart(byId("load-chart"), { title: "Processor, % of one core", format: (value) => percent(value, 0), tick: whole, zero: true, range: [0, null], height: 180, head: "Seconds ago", x: (value) => whole(Math.abs(value)) });
      const newest = samples.at(-1)[0];
      this.chart.update({ series: [{ label: "all processes", xs: samples.map(([at]) => Math.round((at - newest) * 10) / 10), ys: samples.map(([, cpu]) => cpu), colour: css("blue") }], last: 0, note: `${plural(cores, "core")} make ${cores * 100} %.` });
    }
    const memory = processes.reduce((sum, each) => sum + each.memory, 0);
    const columns = [
      { head: "Process", first: true, cell: (each) => each.role },
      { head: "Number", number: true, cell: (each) => String(each.pid) },
      { head: "CPU", number: true, cell: (each) => percent(each.cpu, 0) },
      { head: "Memory", number: true, cell: (each) => bytes(each.memory) },
      ...(gpus.length ? [{ head: "GPU memory", number: true, cell: (each) => (each.gpu_memory === null ? DASH : bytes(each.gpu_memory)) }] : []),
    ];
    const parts = processes.length ? [table(columns, processes.slice(0, SHOWN), "Processes")] : [el("p", { class: "note" }, "No process on this machine is at work on it.")];
    if (processes.length) parts.push(el("p", { class: "note" }, `${plural(processes.length, "process", "processes")}, ${bytes(memory)} of ${bytes(load.memory_total)}${processes.length > SHOWN ? `; the first ${SHOWN} are shown` : ""}.`));
    if (gpus.length) parts.push(table([
      { head: "GPU", first: true, cell: (each) => `${each.index} ${each.name}` },
      { head: "Busy", number: true, cell: (each) => percent(each.busy, 0) },
      { head: "Memory", number: true, cell: (each) => `${bytes(each.memory)} of ${bytes(each.memory_total)}` },
    ], gpus, "GPUs"));
    fill(byId("load"), ...parts);
  }
}
