// The left side: what may be rated, and what was.
import { $, el, pause, say, whole } from "./dom.js";
import { ask, at } from "./service.js";
import { said, starButtons } from "./stars.js";
import { state } from "./state.js";
import { nameOf, toldOf } from "./titles.js";
import { cover } from "./covers.js";

const narrow = () => matchMedia("(max-width: 40rem)").matches;
const most = () => (narrow() ? 4 : 6);
let all = false; // whether all ratings are shown

function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((b) => b.toString(16).padStart(2, "0")).join("");
}

async function rate(one, value) {
  const whose = state.user;
  const body = { user: whose, item: one.item, timestamp: Math.floor(Date.now() / 1000) };
  if (!state.model.events) body.rating = value;
  const headers = { "Content-Type": "application/json", "Idempotency-Key": newKey() };
  const token = $("token").value;
  if (token) {
    headers.Authorization = `Bearer ${token}`;
    sessionStorage.setItem("token", token);
  }
  const since = performance.now();
  for (let attempt = 0; ; attempt++) {
    try {
      await ask("/ratings", { method: "POST", headers, body: JSON.stringify(body) });
      break;
    } catch (failure) {
      // the key is the same, so a rating that did arrive is not taken twice
      if (attempt < 3 && (failure.status === undefined || failure.status === 503)) {
        await pause(300 * 2 ** attempt);
        continue;
      }
      const why = failure.status === 401 ? "It needs the right token." : failure.message;
      say(`Your rating of ${nameOf(one)} was not taken. ${why}`, "bad");
      return;
    }
  }
  if (whose !== state.user) return;
  const place = document.activeElement?.getAttribute("aria-label");
  const key = String(one.item);
  state.mine.delete(key);
  state.mine.set(key, { ...one, rating: value });
  state.pending.push({ name: nameOf(one), since });
  say(`Saved: ${said(value)} for ${nameOf(one)}. Learning it …`);
  showMine();
  repaint();
  if (place) document.querySelector(`[aria-label="${CSS.escape(place)}"]`)?.focus();
}

const holders = new Map(); // element -> its item

export function repaint() {
  for (const [holder, one] of holders) {
    if (holder.isConnected) holder.replaceChildren(starButtons(one, rate));
    else holders.delete(holder);
  }
}

export function rater(one) {
  const holder = el("span", { className: "rater" });
  if (state.model.writes) {
    holder.append(starButtons(one, rate));
    holders.set(holder, one);
  }
  return holder;
}

export function title(one, also = false) {
  const found = toldOf(one);
  // of what a film is called besides, what is short and tells more
  const told = also && found.also.length <= 32 && !found.also.includes(found.name) ? found.also : "";
  const small = [found.year, told].filter(Boolean).join(" · ");
  return el("span", { className: "name", title: one.title || "" }, el("b", { textContent: found.name }),
    small ? " " : "", small ? el("small", { textContent: small }) : "");
}

const row = (one, art) => el("li", {}, art ? cover(one) : "", title(one), rater(one));

export function showMine() {
  const newest = [...state.mine.values()].reverse();
  const first = all ? newest.length : most();
  $("count").textContent = newest.length ? whole(newest.length) : "";
  $("mine").replaceChildren(...newest.slice(0, first).map((one) => row(one, false)));
  if (!newest.length) {
    const none = state.model.events || !state.model.writes ? "None yet." : "None yet. Three are enough to see the list move.";
    $("mine").append(el("li", { className: "faint", textContent: none }));
  }
  if (newest.length > first) {
    const show = () => { all = true; showMine(); };
    $("mine").append(el("li", { className: "wide" }, el("button", { type: "button", className: "quiet more", textContent: `Show all ${whole(newest.length)}`, onclick: show })));
  }
}

let searching = 0;
export async function search() {
  const query = $("query").value.trim();
  const turn = ++searching;
  await pause(120);
  if (turn !== searching) return;
  const found = await ask(query ? `/items?n=${most()}&query=${at(query)}` : "/popular?n=40");
  if (turn !== searching) return;
  // what is rated stays among what was searched for, where it may be rated anew
  const items = query ? found.items : found.items.filter((one) => !state.mine.has(String(one.item))).slice(0, most());
  const { events, writes } = state.model;
  const often = events ? "Often done" : writes ? "Seen any of these?" : "Often rated";
  $("h-found").textContent = query ? `Found for “${query}”` : often;
  $("found").replaceChildren(...items.map((one) => row(one, true)));
  if (!items.length) $("found").append(el("li", { className: "faint", textContent: "No title fits. Try a shorter word." }));
}
