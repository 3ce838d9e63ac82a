// Tiles and tables. Text from a run is only ever set as text.

import { number } from "./chart.js";

const byId = (id) => document.getElementById(id);

export function element(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${(seconds / 86400).toFixed(1)} d`;
}

// Fills a table: names of columns, then rows of cells, each a text or an element.
export function table(id, columns, rows, none) {
  const target = byId(id);
  if (rows.length === 0) {
    target.replaceChildren(element("caption", none, "none"));
    return;
  }
  const head = element("tr");
  head.append(...columns.map((column) => element("th", column)));
  const body = rows.map(({ cells, className }) => {
    const row = element("tr", "", className ?? "");
    row.append(...cells.map((cell) => (cell instanceof HTMLElement ? cell : element("td", cell))));
    return row;
  });
  target.replaceChildren(head, ...body);
}

function tile(label, value, more = "") {
  const made = element("div", "", "tile");
  made.append(element("span", label), element("b", value), element("span", more));
  return made;
}

export function tiles(run) {
  const { row, status, records } = run;
  const total = status.total_steps || row.total_steps;
  const share = total ? status.step / total : 0;
  const step = tile("step", `${status.step}`, `of ${total}, ${(100 * share).toFixed(1)} %`);
  const bar = element("progress");
  bar.max = 1;
  bar.value = share;
  step.append(bar);
  const evaluation = status.latest_evaluation ?? records.evaluation.at(-1);
  const best = status.best_evaluation;
  const constant = row.constant_percent_of_range;
  const beside = constant === null ? "" : `a constant: ${number(constant)} %`;
  const speed = status.steps_per_s;
  const waits = records.epoch.at(-1);
  const shown = [
    step,
    tile("time left", status.step >= total ? "none" : duration((total - status.step) / speed), speed ? `${number(speed)} steps/s` : ""),
    tile("loss", number(status.loss), "of the last step, encoded units"),
    tile("held-out error", evaluation ? `${number(evaluation.mae_percent_of_range)} %` : "–",
      [beside, best ? `best: ${number(best.mae_percent_of_range)} %` : ""].filter(Boolean).join("; ") || "of the range"),
    tile("samples/s", number(speed ? speed * row.batch_size : waits?.samples_per_s), `batches of ${row.batch_size}`),
    tile("generation", `${status.generation}`, `${status.workers.length} workers; ${status.collective || "no collective yet"}`),
  ];
  byId("tiles").replaceChildren(...shown);
}

function shares(worker) {
  const cell = element("td", `${number(worker.ms_per_step)} `);
  const bar = element("span", "", "bar");
  const parts = { compute: worker.compute_ms, wait: worker.data_wait_ms, reduce: worker.reduce_ms };
  const all = Object.values(parts).reduce((sum, part) => sum + part, 0) || 1;
  for (const [name, part] of Object.entries(parts)) {
    const piece = element("span", "", `part ${name}`);
    piece.style.width = `${(100 * part) / all}%`;
    bar.append(piece);
  }
  bar.title = `compute ${number(parts.compute)} ms, data wait ${number(parts.wait)} ms, reduction ${number(parts.reduce)} ms`;
  cell.append(bar);
  return cell;
}

// Those that are there, then those that left since the page was opened.
export function workers(run) {
  const present = run.status.workers.map((worker) => ({
    cells: [`${worker.member}`, worker.host, `${worker.pid}`, worker.device || "–", worker.state, worker.rank ?? "–",
      `${worker.micro_batches}`, shares(worker), `${worker.peak_rss_mib} MiB`, `${worker.last_heartbeat_s.toFixed(1)} s ago`,
      `${worker.restarts}`].map((cell) => (typeof cell === "number" ? String(cell) : cell)),
  }));
  const gone = [...run.gone.values()].map((worker) => ({
    className: "gone",
    cells: [`${worker.member}`, worker.host, `${worker.pid}`, worker.device || "–", "gone", "–", "–", "–", "–", "–", `${worker.restarts}`],
  }));
  const columns = ["worker", "host", "pid", "device", "state", "rank", "micro-batches", "ms/step", "memory", "heard", "restarts"];
  table("workers", columns, [...present, ...gone.slice(-10)], "no worker is connected");
}

export function faults(run) {
  const rows = run.faults.slice(-30).reverse().map((fault) => ({
    cells: [`${fault.step}`, element("td", fault.text, "long"),
      fault.recovery_ms === null || fault.recovery_ms === undefined ? "not yet" : `${(fault.recovery_ms / 1000).toFixed(2)} s`],
  }));
  table("events", ["step", "what", "recovered in"], rows, "no faults so far");
}

export function checkpoints(row) {
  const rows = row.checkpoints.slice().reverse().map((one) => ({
    cells: [one.file, `${one.step}`, `${number(one.bytes / 1024)} KiB`, new Date(1000 * one.written).toLocaleString(),
      element("td", one.state_digest.slice(0, 16), "digest")],
  }));
  table("checkpoints", ["file", "step", "size", "written", "state digest"], rows, "none yet");
}

export function settings(row) {
  const rows = Object.entries(row.settings).map(([key, value]) => ({ cells: [key, element("td", value, "long")] }));
  table("settings", ["key", "value"], rows, "not known");
}

// Keys in which runs differ, and what they came to.
export function differences(runs) {
  const rows = runs.map((run) => run.row);
  const keys = [...new Set(rows.flatMap((row) => Object.keys(row.settings)))].sort();
  const differing = keys.filter((key) => new Set(rows.map((row) => row.settings[key])).size > 1);
  const lines = differing.map((key) => ({ cells: [key, ...rows.map((row) => row.settings[key] ?? "–")] }));
  const percent = (value) => (value === null ? "–" : `${number(value)} %`);
  lines.push({ cells: ["step", ...runs.map((run) => `${run.status.step} of ${run.row.total_steps}`)] });
  lines.push({ cells: ["last held-out error", ...rows.map((row) => percent(row.last_percent_of_range))] });
  lines.push({ cells: ["a constant's error", ...rows.map((row) => percent(row.constant_percent_of_range))] });
  table("differences", ["key", ...rows.map((row) => row.run_id)], lines, "none");
}

export function alerts(rows) {
  const raised = rows.flatMap((row) => row.alerts);
  byId("alerts").replaceChildren(...raised.map((alert) => element("li", `step ${alert.step}: ${alert.text}`)));
}

export function notice(text, command) {
  const target = byId("notice");
  target.hidden = !text;
  target.replaceChildren(text);
  if (command) target.append(" ", element("code", command));
}
