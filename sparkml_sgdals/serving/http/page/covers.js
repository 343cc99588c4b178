// A cover for each item, of type and colour: always the same for one item, and akin within a genre.
import { el, svg } from "./dom.js";
import { toldOf } from "./titles.js";

// ground, figure, letters
const COLOURS = {
  Action: ["#7c1623", "#e5533d", "#fff1e6"], Adventure: ["#0f4f4c", "#e3a33b", "#fff8e3"],
  Animation: ["#2d2b80", "#ff9a3d", "#ffffff"], Children: ["#0a5f93", "#ffd24a", "#ffffff"],
  Comedy: ["#f3b71b", "#e2562b", "#2b1600"], Crime: ["#1d1d25", "#b5303a", "#f6ece2"],
  Documentary: ["#38493d", "#c8bf97", "#fffbea"], Drama: ["#2b3353", "#c8705f", "#fcefe7"],
  Fantasy: ["#41206f", "#74c7c0", "#fdf2ff"], "Film-Noir": ["#141414", "#8d8d8d", "#ffffff"],
  Horror: ["#170f15", "#86121f", "#ffe9df"], Musical: ["#8a1c5c", "#ffc654", "#ffffff"],
  Mystery: ["#123241", "#d8a245", "#f7f0e1"], Romance: ["#a93452", "#f4bdb6", "#fff6f1"],
  "Sci-Fi": ["#08264a", "#2fc8d0", "#eafcff"], Thriller: ["#222a33", "#de6f31", "#fff2e6"],
  War: ["#474a2e", "#bd6a3a", "#fbf7e4"], Western: ["#80431b", "#efc07c", "#fff5e2"],
};
const NAMES = Object.keys(COLOURS);
const FACES = ["tall", "book", "plain", "slant"];

function hash(text) {
  let sum = 2166136261;
  for (const letter of text) sum = Math.imul(sum ^ letter.codePointAt(0), 16777619);
  // low bits of such sums are alike for numbers that follow each other
  sum = Math.imul(sum ^ (sum >>> 15), 2246822519);
  return (sum ^ (sum >>> 13)) >>> 0;
}

const FIGURES = [
  // an eddy
  (x, y) => [42, 33, 24, 15].map((r, n) => svg("circle", { cx: x, cy: y, r, "stroke-width": 3 + n, class: "line" })),
  // a low sun over water
  (x) => [svg("circle", { cx: x, cy: 84, r: 26, class: "full" }),
    ...[98, 108, 118, 128, 138].map((y, n) => svg("rect", { x: 0, y, width: 100, height: 2 + n, class: "ground" }))],
  // bands
  (x) => [0, 1, 2].map((n) => svg("path", { d: `M${x - 90 + 34 * n} 150L${x - 10 + 34 * n} 0h14L${x - 76 + 34 * n} 150z`, class: "full" })),
  // hills
  (x, y) => [0, 1, 2].map((n) => svg("path", { class: "full", opacity: 0.35 + 0.3 * n,
    d: `M-10 150V${70 + 22 * n}C${x - 20} ${30 + y / 3 + 22 * n} ${x + 5} ${110 + 12 * n} 110 ${60 + y / 4 + 22 * n}V150z` })),
  // a window
  (x, y) => [svg("rect", { x: x - 27, y: y - 8, width: 54, height: 84, rx: 27, class: "full" }),
    svg("circle", { cx: x, cy: y + 20, r: 11, class: "ground" })],
  // a field of dots
  (x, y) => Array.from({ length: 35 }, (_, n) => svg("circle", { cx: 10 + 20 * (n % 5), cy: 14 + 20 * Math.floor(n / 5), class: "full",
    r: Math.max(1.2, 8.5 - Math.hypot(10 + 20 * (n % 5) - x, 14 + 20 * Math.floor(n / 5) - y) / 8) })),
];

export function cover(one) {
  const { name } = toldOf(one);
  const sum = hash(String(one.item));
  const known = (one.genres || []).filter((genre) => genre in COLOURS);
  const pick = (n) => COLOURS[known.length ? known[n % known.length] : NAMES[n % NAMES.length]];
  const [ground, , letters] = pick(sum % 97);
  let [, figure] = pick((sum >>> 7) % 89);
  if (ground === pick((sum >>> 7) % 89)[0]) [, figure] = pick(sum % 97);
  const art = svg("svg", { viewBox: "0 0 100 144", preserveAspectRatio: "xMidYMid slice" },
    ...FIGURES[(sum >>> 11) % FIGURES.length](30 + ((sum >>> 4) % 41), 46 + ((sum >>> 9) % 34)));
  const longest = Math.max(...name.split(/\s+/).map((word) => word.length));
  const box = el("span", { className: "cover", "aria-hidden": "true" }, art,
    el("span", { className: "cover-name", textContent: name }));
  box.classList.add(FACES[(sum >>> 16) % FACES.length], (sum >>> 20) % 2 ? "low" : "high");
  box.style.setProperty("--ground", ground);
  box.style.setProperty("--figure", figure);
  box.style.setProperty("--letters", letters);
  // so that the longest word fits its width, and the whole its height
  box.style.setProperty("--size", String(Math.min(19, 122 / Math.max(longest, 5), 72 / Math.sqrt(Math.max(name.length, 6)))));
  box.dataset.letter = one.title ? [...name.replace(/^(The|A|An) /, "")][0] ?? "" : "#";
  return box;
}
