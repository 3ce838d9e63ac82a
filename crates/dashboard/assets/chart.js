// Curves over steps as SVG: axes, legend, reference lines, and the values under the pointer.

const NS = "http://www.w3.org/2000/svg";
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "4 2", "1 4"];
const MARGIN = { left: 58, right: 10, top: 8, bottom: 30 };

export function node(name, attributes = {}, ...children) {
  const made = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace("e+", "e");
  return size >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
}

// Round values from low to high, about `count` of them.
function ticks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw) ?? raw;
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9 && found.length < 20; i++) found.push(i * step);
  return found;
}

function logTicks(low, high) {
  const found = [];
  const every = Math.max(1, Math.ceil((high - low) / 5));
  for (let e = Math.ceil(low); e <= high; e += every) found.push(e);
  return found.length >= 2 ? found : ticks(low, high, 3);
}

// A range that has some height: a constant lies in the middle of an axis that begins or ends at 0.
function opened(low, high, log) {
  if (high - low > 1e-9 * Math.max(Math.abs(low), Math.abs(high))) return [low, high];
  if (log) return [low - 0.5, high + 0.5];
  return low === 0 ? [0, 1] : [Math.min(0, 2 * low), Math.max(0, 2 * high)];
}

// At most two points for each column of pixels: the smallest and the largest.
function thinned(points, columns) {
  if (points.length <= 4 * columns) return points;
  const kept = [];
  const size = points.length / columns;
  for (let c = 0; c < columns; c++) {
    const part = points.slice(Math.floor(c * size), Math.floor((c + 1) * size));
    let [least, most] = [part[0], part[0]];
    for (const point of part) {
      if (point[1] < least[1]) least = point;
      if (point[1] > most[1]) most = point;
    }
    kept.push(...(least[0] <= most[0] ? [least, most] : [most, least]));
  }
  kept.push(points[points.length - 1]);
  return kept;
}

// Draws into `figure`. `series`: [{ name, points: [[x, y], …] }]; `guides`: [{ name, value }].
export function draw(figure, { title, unit, series, guides = [], log = false }) {
  const usable = (y) => Number.isFinite(y) && (!log || y > 0);
  const curves = series.map((one) => ({ ...one, points: one.points.filter(([, y]) => usable(y)) }));
  const shown = guides.filter((guide) => usable(guide.value));
  const place = (y) => (log ? Math.log10(y) : y);
  let [x0, x1, y0, y1] = [0, -Infinity, Infinity, -Infinity];
  for (const { points } of curves) {
    for (const [x, y] of points) {
      x1 = Math.max(x1, x);
      y0 = Math.min(y0, place(y));
      y1 = Math.max(y1, place(y));
    }
  }
  const heading = document.createElement("figcaption");
  const name = document.createElement("b");
  name.textContent = title;
  const readout = document.createElement("span");
  heading.append(name, ` ${unit} `, readout);
  if (!Number.isFinite(x1)) {
    const none = document.createElement("p");
    none.className = "none";
    none.textContent = "nothing recorded yet";
    figure.replaceChildren(heading, none);
    return;
  }
  for (const { value } of shown) [y0, y1] = [Math.min(y0, place(value)), Math.max(y1, place(value))];
  if (!log && y0 > 0 && y0 < 0.5 * y1) y0 = 0;
  [y0, y1] = opened(y0, y1, log);
  const room = 0.04 * (y1 - y0);
  [y0, y1] = [y0 === 0 ? 0 : y0 - room, y1 + room];
  x1 = Math.max(x1, 1);

  const width = Math.max(260, figure.clientWidth || 400);
  const height = 210;
  const [left, right, top, bottom] = [MARGIN.left, width - MARGIN.right, MARGIN.top, height - MARGIN.bottom];
  const px = (x) => left + ((x - x0) / (x1 - x0)) * (right - left);
  const py = (y) => bottom - ((place(y) - y0) / (y1 - y0)) * (bottom - top);
  const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `${title} over steps` });
  svg.append(node("path", { class: "frame", d: `M${left} ${top}V${bottom}H${right}` }));
  for (const x of ticks(x0, x1, Math.max(3, width / 110))) {
    svg.append(node("text", { x: px(x), y: bottom + 15, "text-anchor": "middle" }, number(x)));
  }
  svg.append(node("text", { x: right, y: height - 2, "text-anchor": "end" }, "step"));
  for (const tick of log ? logTicks(y0, y1) : ticks(y0, y1, 4)) {
    const y = bottom - ((tick - y0) / (y1 - y0)) * (bottom - top);
    svg.append(node("path", { class: "frame", d: `M${left - 4} ${y}H${right}`, opacity: 0.5 }));
    svg.append(node("text", { x: left - 7, y: y + 4, "text-anchor": "end" }, number(log ? 10 ** tick : tick)));
  }
  for (const { name: label, value } of shown) {
    svg.append(node("path", { class: "guide", d: `M${left} ${py(value)}H${right}` }));
    svg.append(node("text", { x: right - 4, y: py(value) - 4, "text-anchor": "end" }, label));
  }
  curves.forEach(({ points }, index) => {
    const d = thinned(points, Math.round(right - left)).map(([x, y], i) => `${i ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`);
    const look = { class: `curve s${index % 6}`, "stroke-dasharray": DASHES[index % 6] };
    svg.append(node("path", { ...look, d: d.join("") }));
    if (points.length === 1) svg.append(node("circle", { class: `s${index % 6}`, cx: px(points[0][0]), cy: py(points[0][1]), r: 3 }));
  });
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = x0 + ((((event.clientX - box.left) / box.width) * width - left) / (right - left)) * (x1 - x0);
    const near = curves.filter(({ points }) => points.length).map(({ name: label, points }) => {
      const found = points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
      return `${curves.length > 1 ? `${label}: ` : ""}step ${found[0]}: ${number(found[1])}`;
    });
    readout.textContent = `· ${near.join(" · ")}`;
  });
  svg.addEventListener("pointerleave", () => { readout.textContent = ""; });
  figure.replaceChildren(heading, svg);
  if (curves.length > 1) figure.append(legend(curves.map((one) => one.name)));
}

function legend(names) {
  const list = document.createElement("div");
  list.className = "legend";
  names.forEach((name, index) => {
    const item = document.createElement("span");
    const line = node("svg", { viewBox: "0 0 30 8" });
    line.append(node("path", { class: `curve s${index % 6}`, "stroke-dasharray": DASHES[index % 6], d: "M0 4H30" }));
    item.append(line, name);
    list.append(item);
  });
  return list;
}

// Generations as bars, faults as marks, over steps.
export function drawStrip(figure, { generations, faults, last }) {
  const width = Math.max(260, figure.clientWidth || 400);
  const [height, left, right] = [62, 6, width - 6];
  const end = Math.max(last, 1, ...faults.map((fault) => fault.step));
  const px = (step) => left + (Math.min(step, end) / end) * (right - left);
  const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": "generations and faults over steps" });
  svg.append(node("path", { class: "frame", d: `M${left} 40H${right}` }));
  for (const { step, number: count } of generations) {
    svg.append(node("path", { class: "generation", d: `M${px(step)} 16V44` }));
    svg.append(node("text", { x: px(step) + 2, y: 12 }, String(count)));
  }
  for (const fault of faults) {
    const mark = node("path", { class: "fault", d: `M${px(fault.step)} 20V40` });
    mark.append(node("title", {}, `step ${fault.step}: ${fault.text}`));
    svg.append(mark);
  }
  for (const x of ticks(0, end, Math.max(3, width / 110))) {
    svg.append(node("text", { x: px(x), y: 56, "text-anchor": "middle" }, number(x)));
  }
  const words = document.createElement("figcaption");
  words.textContent = `${faults.length === 1 ? "1 fault" : `${faults.length} faults`}; numbers are generations, over steps`;
  figure.replaceChildren(svg, words);
}
