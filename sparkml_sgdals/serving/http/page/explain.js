// Why a prediction is what it is, its terms as bars from top to bottom.
import { el } from "./dom.js";
import { ask, at } from "./service.js";
import { state } from "./state.js";
import { nameOf } from "./titles.js";

const NAMES = {
  mean: "Mean of all ratings", "user bias": "How kindly you rate", "item bias": "What people think of it",
  features: "Your taste", drawn: "Chance, fading as you rate", "feature prior": "What it is like", noise: "How far ratings scatter", prediction: "Prediction",
  popularity: "How often it is done", "done last": "What you did last", table: "The fitted table",
  "stands together": "Done together", weight: "How far this is believed",
};
const TOLD = 1 / 100; // of the range of ratings

// "item genres=Comedy" is a feature, of a column and perhaps with a value
function called(part) {
  const [, side, column, value] = /^(item|user) ([^=]+)(?:=(.*))?$/.exec(part) ?? [];
  if (NAMES[part] || !side) return NAMES[part] ?? part;
  const name = column[0].toUpperCase() + column.slice(1);
  return `${side === "user" ? "You: " : ""}${name}${value === undefined ? "" : `: ${value}`}`;
}

const give = (std) => (std === null ? "" : ` ± ${std.toFixed(2)}`);

// of `span` units from the lowest term to the highest 0 stands `from` percent to the right
function term(part, span, from) {
  const { value, std, note } = part;
  const bar = el("span", { className: "term-bar", "aria-hidden": "true" });
  bar.style.setProperty("--from", `${from}%`);
  if (value !== null) {
    const fill = el("span", { className: value < 0 ? "down" : "up" });
    fill.style.setProperty("--part", `${(100 * Math.abs(value)) / span}%`);
    bar.append(fill);
  }
  const said = value === null ? "" : `${value > 0 ? "+" : value < 0 ? "−" : ""}${Math.abs(value).toFixed(2)}`;
  return el("div", {}, el("dt", { textContent: called(part.part) }),
    el("dd", {}, bar, el("span", { className: "number" }, el("b", { textContent: said }), el("small", { textContent: give(std) }))),
    state.model.events && note ? el("dd", { className: "note", textContent: note }) : "");
}

function total(name, value, note = "") {
  return el("div", { className: "whole" }, el("dt", { textContent: name }), el("dd", {}, el("span", { className: "number" }, value)),
    note ? el("dd", { className: "note", textContent: note }) : "");
}

// features of a new user hold what they were drawn to start at, which is no taste
function split(part, drawn) {
  if (part.part !== "features" || !drawn || Math.abs(drawn) < 0.005 || state.model.events) return [part];
  return [{ ...part, value: part.value - drawn }, { part: "drawn", value: drawn, std: null, note: "" }];
}

function parts(found) {
  const { events, lowest, highest } = state.model;
  const apart = events ? ["prediction"] : ["mean", "noise", "prediction"];
  const terms = found.parts.filter((p) => !apart.includes(p.part)).flatMap((p) => split(p, found.drawn));
  const values = terms.map((p) => p.value ?? 0);
  const [low, high] = [Math.min(0, ...values), Math.max(0, ...values)];
  const span = high - low || 1;
  const mean = found.parts.find((p) => p.part === "mean");
  const end = found.parts.find((p) => p.part === "prediction");
  const rows = terms.map((p) => term(p, span, (-100 * low) / span));
  if (mean) rows.unshift(total(NAMES.mean, mean.value.toFixed(2)));
  if (end) rows.push(total(events ? "Score" : NAMES.prediction, end.value.toFixed(2) + give(end.std), end.note === "the sum" ? "" : end.note));
  const least = events ? 0.005 : ((highest ?? 5) - (lowest ?? 0)) * TOLD;
  const because = found.because.filter((b) => b.liked && b.share >= least).slice(0, 3);
  const told = because.map((b) => el("li", {}, el("span", { textContent: events ? nameOf(b) : `your ${b.rating} for ${nameOf(b)}` }),
    el("b", { textContent: `+${b.share.toFixed(2)}` })));
  return [el("dl", { className: "terms" }, ...rows),
    told.length ? el("p", { className: "hint", textContent: events ? "What you did that speaks for it" : "Your ratings that speak for it" }) : "",
    told.length ? el("ul", { className: "speaking" }, ...told) : ""].filter(Boolean);
}

// where it lies over the cards below it, it goes as such things do
function closeWhereOver(event) {
  for (const box of document.querySelectorAll(".explain[open]")) {
    const panel = box.querySelector(":scope > div");
    const over = panel && getComputedStyle(panel).position === "absolute";
    if (event.type === "keydown" ? event.key === "Escape" && over : over && !box.contains(event.target)) {
      if (box.contains(document.activeElement)) box.querySelector("summary").focus();
      box.open = false;
    }
  }
}
document.addEventListener("click", closeWhereOver);
document.addEventListener("keydown", closeWhereOver);

export function explainer(one) {
  const box = el("details", { className: "explain", name: "explain" }, el("summary", { textContent: "Explain", "aria-label": `Explain ${nameOf(one)}` }));
  const whose = state.user;
  box.addEventListener("toggle", async () => {
    if (!box.open || box.dataset.done) return;
    box.dataset.done = "1";
    try {
      box.append(el("div", {}, ...parts(await ask(`/explain/${at(whose)}/${at(one.item)}`))));
    } catch {
      delete box.dataset.done;
      box.open = false;
    }
  });
  return box;
}
