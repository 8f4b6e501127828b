// The page: follows /events and hands what comes to its parts. It only reads.

import { onTheme } from "./colours.js";
import { byId, el, fill, text } from "./dom.js";
import { showFleet } from "./fleet.js";
import { duration, plural } from "./format.js";
import { MachineLoad } from "./load.js";
import { RunPanels } from "./run.js";
import { Compared, runsTable } from "./runs.js";
import { Sites } from "./sites.js";

const RETRY_MS = 3000;
const WAITING = {
  run: "No run has begun here yet. This page fills as soon as the first one writes its configuration.",
  server: "Nothing has been submitted to this server yet.",
};
const asked = new URLSearchParams(location.hash.slice(1));
let chosen = { run: asked.get("run"), scope: asked.get("scope") };
let stream, view;

const parts = { run: new RunPanels(), compared: new Compared(), sites: new Sites(choose), load: new MachineLoad() };

function choose(change) {
  chosen = { ...chosen, ...change };
  const kept = new URLSearchParams(Object.entries(chosen).filter(([, value]) => value));
  history.replaceState(null, "", kept.size ? `#${kept}` : location.pathname);
  connect();
}

function connect() {
  stream?.close();
  stream = new EventSource(`events?${new URLSearchParams(Object.entries(chosen).filter(([, value]) => value))}`);
  stream.addEventListener("open", () => live("yes", "live"));
  stream.addEventListener("run", (event) => { view = JSON.parse(event.data); show(); });
  stream.addEventListener("load", (event) => { view.load = JSON.parse(event.data); showLoad(); });
  stream.addEventListener("problem", (event) => problems(event.data ? [event.data] : view?.problems ?? []));
  stream.addEventListener("error", lost);
}

/** The browser tries again by itself after a break; after a refusal it does not. */
function lost() {
  live("no", "not connected, trying again");
  if (stream.readyState !== EventSource.CLOSED) return;
  chosen = { run: null, scope: null };
  setTimeout(connect, RETRY_MS);
}

function live(state, words) {
  byId("live").dataset.live = state;
  text(byId("live"), words);
}

function problems(sentences) {
  fill(byId("problems"), ...sentences.map((sentence) => el("p", {}, sentence)));
}

function show() {
  problems(view.problems);
  text(byId("kind"), `watch \u00b7 ${view.runs?.length === 0 ? "waiting" : view.kind}`);
  document.body.dataset.state = view.state;
  if (view.kind === "fleet") {
    head(view.name, `Fleet ${view.fleet.id} on port ${view.fleet.port}, ${view.state === "running" ? "served" : "not served"}.`);
    showFleet(view.fleet);
    return;
  }
  const run = view.runs.find((each) => each.name === view.sites?.run);
  byId("empty").hidden = Boolean(run) && run.state !== "waiting";
  text(byId("empty"), run ? `${run.name} has been submitted and has not begun yet.` : WAITING[view.kind] ?? WAITING.run);
  const [title, subtitle] = heading(run);
  head(title, subtitle);
  progress(run);
  parts.compared.update(view);
  runsTable(view, run?.name, choose);
  byId("run-section").hidden = !run || run.state === "waiting";
  parts.sites.update(view.sites, run?.scopes ?? []);
  showLoad();
  if (byId("run-section").hidden) return;
  text(byId("run-head"), view.runs.length > 1 ? run.name : "This run");
  parts.run.update(run);
}

function heading(run) {
  if (!run) return [view.name, ""];
  const what = `${plural(run.sites ?? 0, "site")}, ${plural(run.rounds, "round")}, protocol ${run.protocol}, backbone ${run.backbone}`;
  if (view.kind === "run") return [`${run.method} on ${run.data}`, `${view.name}: ${what}, seed ${run.seed}.`];
  if (view.kind === "server") {
    const { port, running, version } = view.server;
    return [view.name, `Server on port ${port}, ${running ? `running fedgraft ${version}` : "not running"}; ${plural(view.runs.length, "run")} submitted.`];
  }
  const most = Math.max(...view.runs.map((each) => each.rounds));
  return [`${plural(view.entries.length, "method")} on ${run.data}`, `${view.name}: ${plural(view.runs.length, "run")}, ${plural(run.sites ?? 0, "site")}, ${plural(most, "round")}, protocol ${run.protocol}, backbone ${run.backbone}.`];
}

function head(title, subtitle) {
  text(byId("title"), title);
  text(byId("subtitle"), subtitle);
  document.title = `${title} \u2013 fedgraft watch`;
}

function progress(run) {
  byId("progress").hidden = !run || run.state === "waiting";
  if (byId("progress").hidden) return;
  const several = view.kind === "comparison";
  byId("state").dataset.state = several ? view.state : run.state;
  text(byId("state"), several ? view.state : run.state);
  const finished = view.runs.filter((each) => each.state === "finished").length;
  const fold = run.fold ? ` without ${run.fold}` : "";
  const round = run.rounds ? `Round ${run.round} of ${run.rounds}${fold}` : "Nothing to train";
  text(byId("round"), several ? `${finished} of ${plural(view.runs.length, "run")} finished` : round);
  byId("done").value = several ? view.runs.reduce((sum, each) => sum + each.progress, 0) / view.runs.length : run.progress;
  const working = view.runs.find((each) => each.state === "running") ?? run;
  const pace = working.seconds_left === null ? "" : `about ${duration(working.seconds_left)} left${several ? ` of ${working.name}, round ${working.round} of ${working.rounds}` : ""}, at the pace of the last rounds`;
  text(byId("left"), several ? pace : [run.remark, pace].filter(Boolean).join(" "));
}

function showLoad() {
  parts.load.update(view.load, view.runs.some((each) => each.state === "running"));
}

onTheme(() => view && show());
addEventListener("pagehide", () => stream?.close());
connect();
