// A fleet: devices by version and group, channels and rollouts, what devices report, and each device.

import { byId, chip, el, fill, table, text } from "./dom.js";
import { DASH, ago, fixed, percent, plural, signed, whole } from "./format.js";

let devices = [];
byId("find-device").addEventListener("input", lines);
byId("find-device").form.addEventListener("submit", (event) => event.preventDefault());

export function showFleet(fleet) {
  byId("fleet-section").hidden = false;
  const fact = (name, value, note) => el("div", {}, el("dt", {}, name), el("dd", { class: "value" }, value), el("dd", { class: "note" }, note));
  const ok = fleet.health.ok ?? 0, failed = fleet.health.failed ?? 0;
  const newest = fleet.versions.reduce((most, each) => Math.max(most, each.version ?? 0), 0);
  const on = fleet.versions.filter((each) => each.version === newest).reduce((sum, each) => sum + each.devices, 0);
  fill(byId("fleet-cards"), fact("Devices", whole(fleet.devices), `${whole(fleet.health.new ?? 0)} new`),
    fact("Healthy", whole(ok), "run what their channel names"), fact("Failed", whole(failed), "went back or refuse"),
    fact("Newest version", newest ? String(newest) : DASH, newest ? `on ${plural(on, "device")}` : "nothing published"));
  const most = Math.max(1, ...fleet.versions.map((each) => each.devices));
  fill(byId("fleet-versions"), table([
    { head: "Version", first: true, cell: (each) => (each.version === null ? "none yet" : String(each.version)) },
    { head: "Group", cell: (each) => each.group },
    { head: "Devices", cell: (each) => el("span", { class: "nowrap" }, el("span", { class: "share", "aria-hidden": "true" }, el("i", { width: `${(100 * each.devices) / most}%` })), whole(each.devices)) },
  ], fleet.versions, "Devices by version and group"));
  const rollouts = fleet.channels.flatMap((channel) => channel.rollouts.map((each) => ({ channel: channel.name, ...each })));
  fill(byId("fleet-channels"), table([
    { head: "Channel", first: true, cell: (each) => each.channel },
    { head: "Version", number: true, cell: (each) => String(each.version) },
    { head: "State", cell: (each) => chip(each.state) },
    { head: "For", number: true, cell: (each) => `${each.percent} %` },
    { head: "Devices", number: true, cell: (each) => whole(each.devices) },
    { head: "Failed", number: true, cell: (each) => `${each.failed} of ${each.tried}` },
    { head: "Reason", kind: "reason", cell: (each) => each.reason },
  ], rollouts, "Rollouts"));
  fill(byId("fleet-telemetry"), fleet.telemetry.length ? table([
    { head: "Version", first: true, cell: (each) => String(each.version) },
    { head: "Group", cell: (each) => each.group },
    { head: "Devices", number: true, cell: (each) => whole(each.devices) },
    { head: "Predictions", number: true, cell: (each) => whole(each.predictions) },
    { head: "Unknown", number: true, cell: (each) => percent(each.unknown) },
    { head: "Drift", number: true, cell: (each) => signed(each.drift, 3) },
    { head: "Median", number: true, cell: (each) => (each.median_ms === null ? DASH : `${fixed(each.median_ms, 0)} ms`) },
    { head: "Classes", kind: "reason", cell: (each) => Object.entries(each.classes).map(([label, count]) => `${label} ${count}`).join(", ") },
  ], fleet.telemetry, "What devices report") : el("p", { class: "note" }, "Nothing yet; groups of few devices are not shown."));
  devices = fleet.lines;
  devices.total = fleet.devices;
  lines();
}

function lines() {
  const wanted = byId("find-device").value.trim().toLowerCase();
  const kept = devices.filter((each) => !wanted || [each.id, each.group, each.channel, each.health, each.problem].some((value) => value.toLowerCase().includes(wanted)));
  fill(byId("fleet-devices"), table([
    { head: "Device", first: true, cell: (each) => each.id },
    { head: "Group", cell: (each) => each.group },
    { head: "Channel", cell: (each) => each.channel },
    { head: "Version", number: true, cell: (each) => (each.version === null ? DASH : String(each.version)) },
    { head: "Health", cell: (each) => chip(each.health) },
    { head: "Last seen", kind: "nowrap", cell: (each) => ago(each.last_seen) },
    { head: "Remark", kind: "reason", cell: (each) => each.problem },
  ], kept, "Devices"));
  text(byId("shown-devices"), kept.length === devices.total ? plural(devices.total, "device") : `${whole(kept.length)} of ${plural(devices.total, "device")}`);
}
