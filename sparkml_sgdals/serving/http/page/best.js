// The list of recommendations, and how it moves.
import { $, el, say, still, whole } from "./dom.js";
import { ask, at } from "./service.js";
import { cover } from "./covers.js";
import { explainer } from "./explain.js";
import { rater, title } from "./rate.js";
import { state } from "./state.js";

const COUNT = 10;
const CHIPS = 3;
let shown = []; // items of the list as it stands
let fetching = Promise.resolve();

function share(one, best) {
  const part = Math.exp(Math.min(0, one.prediction - best));
  const bar = el("span", { className: "bar", "aria-hidden": "true" }, el("span", { className: "band" }));
  bar.firstChild.style.width = `${100 * part}%`;
  const text = part === 1 ? "most likely" : `${Math.max(1, Math.round(100 * part))}% of that`;
  const spoken = part === 1 ? "The most likely of these" : `${text.replace("that", "the most likely")}`;
  return el("span", { className: "guess", role: "img", "aria-label": spoken, title: spoken }, bar, el("span", { className: "faint", textContent: text }));
}

function guess(one, best) {
  const { events, lowest, highest } = state.model;
  if (events) return share(one, best);
  const low = lowest ?? 0;
  const high = highest ?? 5;
  const place = (v) => Math.min(100, Math.max(0, (100 * (v - low)) / (high - low || 1)));
  const bar = el("span", { className: "bar", "aria-hidden": "true" });
  if (one.std !== null) {
    const band = el("span", { className: "band" });
    const left = place(one.prediction - one.std);
    band.style.left = `${left}%`;
    band.style.width = `${place(one.prediction + one.std) - left}%`;
    bar.append(band);
  }
  const dot = el("span", { className: "dot" });
  dot.style.left = `${place(one.prediction)}%`;
  bar.append(dot);
  const give = one.std === null ? "" : one.std.toFixed(1);
  const spoken = `Predicted ${one.prediction.toFixed(1)}${give && `, give or take ${give}`}`;
  return el("span", { className: "guess", role: "img", "aria-label": spoken, title: spoken },
    el("b", { textContent: one.prediction.toFixed(1) }), bar, el("span", { className: "faint", textContent: give && `± ${give}` }));
}

function moved(one, n, before) {
  if (!before.length) return "";
  const was = before.indexOf(String(one.item));
  if (was < 0) return el("span", { className: "badge", textContent: "new" });
  if (was === n) return "";
  const up = was > n;
  return el("span", { className: up ? "badge" : "badge down", textContent: `${up ? "▲" : "▼"} ${Math.abs(was - n)}`,
    role: "img", "aria-label": `${up ? "up" : "down"} ${Math.abs(was - n)}` });
}

function card(one, n, found, before) {
  const chips = (one.genres || []).slice(0, CHIPS).map((genre) => el("li", { textContent: genre }));
  const name = title(one, true);
  name.append(moved(one, n, before));
  const li = el("li", { className: "card" }, cover(one),
    el("div", { className: "about" }, name,
      chips.length ? el("ul", { className: "chips", "aria-label": "Genres" }, ...chips) : "",
      guess(one, Math.max(...found.items.map((other) => other.prediction))),
      el("p", { className: "why", textContent: one.reason || "" }), rater(one)),
    explainer(one));
  li.dataset.item = one.item;
  return li;
}

function showList(found, mark) {
  const list = $("list");
  const before = mark ? shown : [];
  const tops = new Map([...list.children].map((li) => [li.dataset.item, li.getBoundingClientRect()]));
  const rows = found.items.map((one, n) => card(one, n, found, before));
  list.replaceChildren(...rows);
  if (!rows.length) list.append(el("li", { className: "faint", textContent: "Nothing is left to recommend." }));
  if (!still()) {
    for (const li of rows) {
      const old = tops.get(li.dataset.item);
      if (old === undefined) continue;
      const now = li.getBoundingClientRect();
      li.style.transition = "none";
      li.style.transform = `translate(${old.left - now.left}px, ${old.top - now.top}px)`;
      requestAnimationFrame(() => { li.style.transition = ""; li.style.transform = ""; });
    }
  }
  shown = found.items.map((one) => String(one.item));
  list.dataset.version = found.version;
  list.dataset.cold = found.cold;
  describe(found);
  return before.length ? shown.filter((id, n) => before[n] !== id).length : 0;
}

function describe(found) {
  const { events, writes } = state.model;
  const own = state.leaning === "taste" && !found.cold;
  const start = found.cold && state.leaning === "taste";
  $("h-list").textContent = own ? "For you" : start ? "For a start" : events ? "Done by most" : "Everyone’s favourites";
  $("by").textContent = `version ${whole(found.version)}`;
  if (start && !writes) {
    $("scale").textContent = "Nothing is known of you, so these are everyone’s.";
  } else if (start) {
    $("scale").textContent = events ? "What is done by most, until you say what you did." : "Everyone’s favourites, until you rate one or two.";
  } else if (own) {
    $("scale").textContent = "Your own taste counts as much as what everyone thinks.";
  } else {
    $("scale").textContent = events ? "What is done by most, whoever you are." : "What people love, whatever you rated.";
  }
}

export async function refresh(mark = false) {
  const whose = state.user;
  const leaning = state.leaning;
  const found = await ask(`/recommendations/${at(whose)}?n=${COUNT}&reasons=true&rank_by=${leaning}`);
  if (whose !== state.user || leaning !== state.leaning) return;
  const { pending } = state;
  const done = pending.length > 0 && found.learned - state.learned >= pending.length;
  if (pending.length && !done && !mark) return;
  const places = showList(found, mark || done);
  if (done) {
    const last = pending[pending.length - 1];
    const seconds = ((performance.now() - last.since) / 1000).toFixed(1);
    const what = pending.length === 1 ? `your rating of ${last.name}` : `your ${pending.length} ratings`;
    state.pending = [];
    const moved_ = places ? `${places} of ${shown.length} places changed.` : "Your list stays as it was.";
    say(`Learned ${state.model.events ? what.replace("rating of ", "") : what} in ${seconds} seconds. ${moved_}`, "good");
  }
  if (!state.pending.length) state.learned = found.learned;
}

// one at a time, so that an older answer does not come last
export function refreshSoon() {
  fetching = fetching.then(() => refresh()).catch(() => {});
}

export function forget() {
  shown = [];
}
