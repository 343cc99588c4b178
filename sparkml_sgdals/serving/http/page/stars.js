// What is rated with: stars, or one button where events are learned.
import { el, svg } from "./dom.js";
import { nameOf } from "./titles.js";
import { state } from "./state.js";

export function said(value) {
  if (state.model.events) return "Done";
  const number = Number(value.toFixed(2));
  return `${number} ${number === 1 ? "star" : "stars"}`;
}

function scale() {
  const { events, highest, lowest } = state.model;
  if (events) return [1];
  const high = highest ?? 5;
  const low = lowest ?? 0.5;
  if (high > 10 || high < 2) return [1, 2, 3, 4, 5].map((k) => low + ((high - low) * (k - 1)) / 4);
  return Array.from({ length: Math.floor(high) }, (_, k) => k + 1).filter((v) => v >= low);
}

// how much of a star is full: 4.5 fills half of the fifth
function part(values, n, held) {
  if (held === undefined) return 0;
  const below = n ? values[n - 1] : Math.min(0, values[0]);
  return Math.min(1, Math.max(0, (held - below) / (values[n] - below)));
}

const shape = (name, kind) => svg("svg", { class: kind, viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("use", { href: `#${name}` }));

export function starButtons(one, rate) {
  const held = state.mine.get(String(one.item))?.rating;
  const values = scale();
  const { events } = state.model;
  const group = el("span", { className: events ? "stars did" : "stars", role: "group", "aria-label": `Rate ${nameOf(one)}` });
  // what would be given is shown by outlines: only what was given is filled
  const near = (last) => buttons.forEach((b, n) => b.classList.toggle("near", n <= last));
  const buttons = values.map((value, n) => {
    const filled = part(values, n, held);
    const button = el("button", {
      type: "button", title: said(value), "aria-label": `${said(value)} for ${nameOf(one)}`,
      "aria-pressed": String(held === value), tabIndex: n === 0 ? 0 : -1,
      onclick: () => rate(one, value),
      onpointerenter: (event) => { if (event.pointerType === "mouse") near(n); },
      onpointerleave: () => near(-1),
      onkeydown: (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        event.preventDefault();
        buttons[(n + step + buttons.length) % buttons.length].focus();
      },
      onfocus: () => buttons.forEach((b, m) => { b.tabIndex = m === n ? 0 : -1; }),
    });
    if (events) button.append(shape(filled ? "check" : "plus", "tick"), filled ? "Done" : "I did this");
    else button.append(shape("star", "line"), shape("star", "full"));
    button.classList.toggle("on", filled > 0);
    button.style.setProperty("--part", `${100 * filled}%`);
    return button;
  });
  group.append(...buttons);
  return group;
}
