// The page's state: what the event stream told, and when it is drawn.

import { draw, drawStrip } from "./chart.js";
import * as view from "./view.js";

const MOST_POINTS = 8192;
const byId = (id) => document.getElementById(id);
const runs = new Map();
let ended = false;
let drawing = false;

function emptyRecords() {
  return { step: [], epoch: [], evaluation: [], solution: [], failure: [] };
}

function runOf(id) {
  if (!runs.has(id)) {
    runs.set(id, { row: null, status: null, records: emptyRecords(), gone: new Map(), generations: [], faults: [] });
  }
  return runs.get(id);
}

function take(records, record) {
  const kind = record.kind in records ? record.kind : null;
  if (!kind) return;
  records[kind].push(record);
  if (records[kind].length > MOST_POINTS) records[kind] = records[kind].filter((_, index) => index % 2 === 0);
}

function onRuns(rows) {
  const named = new Set(rows.map((row) => row.run_id));
  for (const id of runs.keys()) if (!named.has(id)) runs.delete(id);
  for (const row of rows) runOf(row.run_id).row = row;
}

function onStatus(status) {
  const run = runOf(status.run_id);
  const present = new Set(status.workers.map((worker) => worker.member));
  for (const worker of run.status?.workers ?? []) if (!present.has(worker.member)) run.gone.set(worker.member, worker);
  if (status.generation && run.generations.at(-1)?.number !== status.generation) {
    run.generations.push({ step: status.step, number: status.generation });
    if (run.generations.length > 200) run.generations.shift();
  }
  run.status = status;
}

function onHistory({ run_id: id, reset, records }) {
  const run = runOf(id);
  if (reset) run.records = emptyRecords();
  for (const record of records) take(run.records, record);
}

// Faults of the record, and those that the status has and the record not yet.
function faultsOf(run) {
  const recorded = run.records.failure.slice();
  const known = new Set(recorded.map((fault) => `${fault.step} ${fault.text}`));
  const more = (run.status?.failures ?? []).filter((fault) => !known.has(`${fault.step} ${fault.text}`));
  return [...recorded, ...more].sort((a, b) => a.step - b.step);
}

const points = (records, key) => records.map((record) => [record.step, record[key] ?? NaN]);

function charts(list) {
  const log = byId("log").checked;
  const curves = (of) => list.map((run) => ({ name: run.row.run_id, points: of(run.records) }));
  const fine = (records) => (records.step.length ? records.step : records.epoch);
  const constants = new Set(list.map((run) => run.row.constant_percent_of_range).filter((value) => value !== null));
  const guides = [...constants].map((value) => ({ name: "best constant", value }));
  draw(byId("loss"), { title: "Training loss", unit: "encoded units", series: curves((r) => points(fine(r), "loss")), log });
  draw(byId("error"), {
    title: "Held-out error", unit: "% of the range", guides, log,
    series: curves((r) => points(r.evaluation, "mae_percent_of_range")),
  });
  draw(byId("rate"), { title: "Learning rate", unit: "", series: curves((r) => points(fine(r), "lr")) });
  draw(byId("speed"), { title: "Samples per second", unit: "per epoch", series: curves((r) => points(r.epoch, "samples_per_s")) });
}

function render() {
  drawing = false;
  const list = [...runs.values()].filter((run) => run.row && run.status);
  if (list.length === 0) return;
  const first = list[0];
  const several = list.length > 1;
  byId("run").textContent = several ? `${list.length} runs compared` : first.row.run_id;
  document.title = `${several ? "runs compared" : first.row.run_id} · numalign`;
  const phase = several ? "over" : ended ? "ended" : first.status.phase;
  byId("phase").textContent = phase;
  byId("phase").className = `badge ${phase}`;
  byId("reason").textContent = several ? list.map((run) => run.row.run_id).join(", ")
    : `${first.row.model}, stage ${first.row.stage}: ${first.status.reason}`;
  byId("tiles").hidden = several;
  byId("compared").hidden = !several;
  byId("live").hidden = several || !first.row.live;
  if (several) view.differences(list);
  else view.tiles(first);
  charts(list);
  first.faults = faultsOf(first);
  drawStrip(byId("strip"), { generations: first.generations, faults: first.faults, last: first.status.step });
  for (const id of ["faults", "files", "keys"]) byId(id).hidden = several;
  view.workers(first);
  view.faults(first);
  view.checkpoints(first.row);
  view.settings(first.row);
  view.alerts(list.map((run) => run.row));
  if (!ended && first.row.live && !first.row.answers && first.status.phase !== "starting") {
    view.notice("The coordinator does not answer just now; what it said last is shown.");
  } else if (!ended) {
    view.notice("");
  }
}

function later() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(render);
}

function watchCommand() {
  return [...runs.keys()].map((id) => `numalign watch ${id}`)[0] ?? "numalign watch";
}

function connect() {
  const source = new EventSource("/api/events");
  const on = (name, take) => source.addEventListener(name, (event) => {
    take(JSON.parse(event.data));
    later();
  });
  on("runs", onRuns);
  on("status", onStatus);
  on("history", onHistory);
  source.addEventListener("end", (event) => {
    ended = true;
    source.close();
    later();
    view.notice(`${JSON.parse(event.data).text} This page stays as it is; to see the run again:`, watchCommand());
  });
  source.addEventListener("error", () => {
    if (ended) return;
    view.notice("There is no connection: the run may have ended. To see it again:", watchCommand());
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 5000);
  });
}

byId("log").addEventListener("change", later);
addEventListener("resize", later);
connect();
