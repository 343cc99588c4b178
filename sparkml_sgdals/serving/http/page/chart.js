// The curve of the errors, drawn for the width there is, with ticks at round numbers.
import { $, svg, whole } from "./dom.js";
import { state } from "./state.js";

const WINDOW = 10000; // ratings that a point of the curves "before learning" is a mean of, at most
const LEAST = 1000; // and at least
const MOST = 3000;
let points = [];
let recent = []; // [time, ratings] of the latest versions

// means over the last WINDOW ratings; `power` 2 for root mean squares
function windowed(name, power) {
  const found = [];
  let from = 0, count = 0, sum = 0;
  const held = points.filter((p) => p[name] !== null && p[name] !== undefined);
  held.forEach((p) => {
    count += p.batch_ratings;
    sum += p.batch_ratings * p[name] ** power;
    while (count - held[from].batch_ratings >= WINDOW) {
      count -= held[from].batch_ratings;
      sum -= held[from].batch_ratings * held[from++][name] ** power;
    }
    if (count >= LEAST) found.push([p.ratings, (sum / count) ** (1 / power)]);
  });
  return found;
}

function curves() {
  const { events } = state.model;
  const measured = events ? "recall" : "rmse";
  const held = points.filter((p) => p.validation_rmse !== null && p.validation_rmse !== undefined);
  return [
    ["ours", "held-out ratings", held.map((p) => [p.ratings, p.validation_rmse])],
    ["before", events ? "what comes next, before it is learned" : "new ratings, before they are learned", windowed(measured, events ? 1 : 2)],
    ["base", events ? "the same by popularity alone" : "the same by mean and biases alone", windowed(`baseline_${measured}`, events ? 1 : 2)],
  ].filter(([, , xy]) => xy.length > 1);
}

// round numbers from low to high, some `count` of them
export function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((m) => m * power >= rough * 0.75) ?? 10);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(Number((n * step).toPrecision(12)));
  return found;
}

export function draw() {
  const chart = $("chart");
  const width = Math.floor(chart.parentElement.clientWidth);
  const lines = curves();
  if (!lines.length || width < 50) return;
  const narrow = width < 520;
  const all = lines.flatMap(([, , xy]) => xy);
  const xs = all.map((p) => p[0]), ys = all.map((p) => p[1]);
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  let [y0, y1] = [Math.min(...ys), Math.max(...ys)];
  const room = Math.max((y1 - y0) * 0.08, 0.001);
  [y0, y1] = [y0 - room, y1 + room];
  const legend = narrow ? 20 * lines.length : 24;
  const marks = ticks(y0, y1, narrow ? 4 : 5);
  const digits = Math.max(2, -Math.floor(Math.log10(marks[1] - marks[0] || 0.01) + 1e-9));
  // as wide as the longest tick is
  const left = 16 + 7 * Math.max(4, ...marks.map((y) => y.toFixed(digits).length));
  const [right, top, height] = [12, legend + 12, legend + (narrow ? 220 : 250)];
  const bottom = height - 26;
  const X = (x) => left + ((width - left - right) * (x - x0)) / (x1 - x0 || 1);
  const Y = (y) => bottom - ((bottom - top) * (y - y0)) / (y1 - y0);
  const nodes = [];
  for (const y of marks) {
    nodes.push(svg("line", { class: "grid", x1: left, x2: width - right, y1: Y(y), y2: Y(y) }));
    nodes.push(svg("text", { x: left - 8, y: Y(y) + 4, "text-anchor": "end" }, y.toFixed(digits)));
  }
  const across = ticks(x0, x1, narrow ? 3 : 6);
  across.forEach((x) => {
    nodes.push(svg("line", { class: "grid", x1: X(x), x2: X(x), y1: bottom, y2: bottom + 4 }));
    const edge = X(x) > width - 40 ? "end" : "middle";
    nodes.push(svg("text", { x: X(x), y: bottom + 20, "text-anchor": edge }, whole(x)));
  });
  let start = 0;
  lines.forEach(([kind, label, xy], n) => {
    const d = xy.map(([x, y], m) => `${m ? "L" : "M"}${X(x).toFixed(1)} ${Y(y).toFixed(1)}`).join("");
    nodes.push(svg("path", { class: kind, d }));
    const [x, y] = narrow ? [0, 12 + 20 * n] : [start, 12];
    nodes.push(svg("path", { class: kind, d: `M${x} ${y - 4}h22` }));
    nodes.push(svg("text", { class: "label", x: x + 28, y }, label));
    start += 28 + 6.3 * label.length + 20;
  });
  chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
  chart.setAttribute("height", height);
  chart.replaceChildren(...nodes);
  tell(lines, x1 - x0);
}

function tell(lines, span) {
  const [kind, label, xy] = lines[0];
  const what = state.model.events ? "Recall" : "RMSE";
  const [first, last] = [xy[0][1].toFixed(3), xy[xy.length - 1][1].toFixed(3)];
  $("m-error-name").textContent = `${what} on ${kind === "ours" ? label : "what was new"}`;
  $("m-error").textContent = last;
  const judged = lines.some(([one]) => one !== "ours") ?
    ` New ${state.model.events ? "events" : "ratings"} are predicted before they are learned; a point is the mean of up to ${whole(WINDOW)}.` : "";
  $("chart-text").textContent = `${what} on ${label} from ${first} to ${last} over ${whole(span)} ${state.model.events ? "events" : "ratings"}; ` +
    `${state.model.events ? "higher" : "lower"} is better.${judged}`;
}

export function setPoints(found) {
  points = found;
  draw();
}

export function addVersion(news) {
  $("m-version").textContent = whole(news.version);
  $("m-learned").textContent = whole(news.learned);
  const last = points[points.length - 1];
  if (!last || last.version < news.version) {
    points = [...points, { ...news, ratings: news.learned, batch_ratings: news.ratings }].slice(-MOST);
  }
  recent.push([Date.now(), news.ratings]);
  showRate();
  draw();
}

export function showRate() {
  const now = Date.now();
  recent = recent.filter(([time]) => now - time < 15000);
  const span = recent.length > 1 ? (now - recent[0][0]) / 1000 : 0;
  const count = recent.slice(1).reduce((sum, [, ratings]) => sum + ratings, 0);
  $("m-rate").textContent = span > 0.5 ? (count / span).toFixed(count / span < 10 ? 1 : 0) : "0";
}

let width = 0;
new ResizeObserver(([entry]) => {
  const now = Math.floor(entry.contentRect.width);
  if (now === width || !state.model) return;
  width = now;
  draw();
}).observe($("chart").parentElement);
