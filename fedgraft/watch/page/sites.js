// The sites of a run: a heat map and a table in one order, filtered by text and by what happened to them.

import { byId, chip, el, fill, line, text } from "./dom.js";
import { DASH, ago, fixed, plural, signed, whole } from "./format.js";
import { HeatMap } from "./heat.js";

const nameOf = (site) => site.name ?? `Site ${site.site}`;
const COLUMNS = [
  { key: "site", head: "Site", first: true, cell: nameOf, value: (site) => site.name ?? site.site },
  { key: "state", head: "State", cell: (site) => (site.state ? chip(site.state) : ""), value: (site) => site.state, when: (site) => site.state },
  { key: "images", head: "Images", number: true, cell: (site) => whole(site.images), when: (site) => site.images },
  { key: "accuracy", head: "Accuracy", number: true, cell: (site) => fixed(site.accuracy) },
  { key: "change", head: "Gain", number: true, cell: (site) => signed(site.change) },
  { key: "trained", head: "Rounds", number: true, cell: (site) => whole(site.trained) },
  { key: "stale", head: "Stale", number: true, cell: (site) => (site.stale ? whole(site.stale) : DASH) },
  { key: "left_out", head: "Left out", number: true, cell: (site) => (site.left_out ? whole(site.left_out) : DASH), when: (site) => site.left_out },
  { key: "seen", head: "Heard", kind: "nowrap", cell: (site) => ago(site.seen), when: (site) => site.seen },
  { key: "certificate_days", head: "Certificate", number: true, cell: (site) => (site.certificate_days == null ? DASH : `${site.certificate_days} d`), when: (site) => site.certificate_days != null },
  { key: "reason", head: "Last reason", kind: "reason", when: (site) => site.reason || site.remark,
    cell: (site) => site.remark ?? (site.reason ? `round ${site.reason_round}: ${site.reason}` : "") },
];

export class Sites {
  constructor(choose) {
    this.heat = new HeatMap(byId("heat"));
    this.order = { key: "site", up: true };
    this.head = el("thead");
    this.body = el("tbody");
    byId("site-table").append(el("table", {}, el("caption", { class: "visually-hidden" }, "Sites"), this.head, this.body));
    for (const id of ["find", "only-out", "only-stale"]) byId(id).addEventListener("input", () => this.show());
    byId("site-tools").addEventListener("submit", (event) => event.preventDefault());
    byId("scope").addEventListener("change", () => choose({ scope: byId("scope").value }));
  }

  update(sites, scopes) {
    this.sites = sites;
    byId("sites-section").hidden = !sites?.lines.length;
    if (byId("sites-section").hidden) return;
    fill(byId("scope"), ...scopes.map((scope) => el("option", { value: scope.name }, scope.label)));
    byId("scope").value = sites.scope ?? "";
    this.label = scopes.find((scope) => scope.name === sites.scope)?.label ?? "Accuracy";
    this.show();
  }

  show() {
    if (!this.sites) return;
    const wanted = byId("find").value.trim().toLowerCase(), { lines } = this.sites;
    const kept = lines.map((site, at) => ({ site, at })).filter(({ site }) =>
      (!byId("only-out").checked || site.left_out > 0) && (!byId("only-stale").checked || site.stale > 0) && matches(site, wanted));
    const column = COLUMNS.find((each) => each.key === this.order.key);
    const value = column.value ?? ((site) => site[column.key]);
    kept.sort((one, other) => compare(value(one.site), value(other.site)) * (this.order.up ? 1 : -1) || one.at - other.at);
    const columns = COLUMNS.filter((each) => !each.when || lines.some(each.when));
    const names = columns.map((each) => (each.key === "accuracy" ? { ...each, head: `${this.label}, %` } : each));
    fill(this.head, el("tr", {}, ...names.map((each) => this.heading(each))));
    this.body.replaceChildren(...kept.map(({ site }) => line(names, site)));
    const total = plural(lines.length, "site");
    text(byId("shown"), kept.length === lines.length ? total : `${whole(kept.length)} of ${total}`);
    const rows = kept.map(({ site, at }) => ({ name: nameOf(site), values: this.sites.heat.map((column) => column[at]), missed: this.sites.missed[at] }));
    byId("heat").hidden = !this.sites.rounds.length;
    this.heat.update(rows, this.sites.rounds, this.label);
  }

  heading(column) {
    const sorted = this.order.key === column.key ? (this.order.up ? "ascending" : "descending") : null;
    const button = el("button", { type: "button", "data-key": column.key, onclick: () => this.sort(column) }, column.head);
    return el("th", { scope: "col", class: column.number ? "number" : null, "aria-sort": sorted }, button);
  }

  sort(column) {
    this.order = { key: column.key, up: this.order.key === column.key ? !this.order.up : !column.number };
    this.show();
  }
}

const matches = (site, wanted) => !wanted || [nameOf(site), String(site.site), site.reason, site.state].some((each) => each?.toLowerCase().includes(wanted));

function compare(one, other) {
  const missing = (value) => value === null || value === undefined;
  if (missing(one) || missing(other)) return missing(one) - missing(other);
  return typeof one === "number" && typeof other === "number" ? one - other : String(one).localeCompare(String(other), "en", { numeric: true });
}
