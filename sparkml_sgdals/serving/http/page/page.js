"use strict";

const $ = (id) => document.getElementById(id);
const WINDOW = 1000; // ratings that a point of the curve "before learning" is a mean of
let model = null;
let user = "";
let pending = []; // ratings that no version has learned yet
let learned = 0; // ratings of this user in the version shown
let mine = new Map(); // item -> {title, rating}
let shown = []; // items of the list as it stands
let points = [];
let recent = []; // [time, ratings] of the latest versions
let fetching = Promise.resolve();

// ---- small things ---------------------------------------------------------------------------

function el(name, props = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(props)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key in node && !key.startsWith("aria")) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

function say(text, kind = "") {
  const news = $("news");
  news.className = `news ${kind}`;
  if (news.textContent !== text) news.textContent = text;
}

async function ask(path, options = {}) {
  const answer = await fetch(path, { cache: "no-store", ...options });
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) {
    const detail = typeof body.detail === "string" ? body.detail : `The service said ${answer.status}.`;
    throw Object.assign(new Error(detail), { status: answer.status });
  }
  return body;
}

const at = (id) => encodeURIComponent(id);
const nameOf = (one) => one.title || `No. ${one.item}`;
const stars = (n) => (model.events ? "Done" : `${n} ${n === 1 ? "star" : "stars"}`);
const whole = (n) => n.toLocaleString("en");
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((b) => b.toString(16).padStart(2, "0")).join("");
}

function newUser() {
  const number = 100000000 + (crypto.getRandomValues(new Uint32Array(1))[0] % 900000000);
  return model.user_id === "string" ? `guest-${number}` : String(number);
}

// ---- rating ---------------------------------------------------------------------------------

function scale() {
  if (model.events) return [1];
  const high = model.highest ?? 5;
  const low = model.lowest ?? 0.5;
  if (high > 10 || high < 2) return [1, 2, 3, 4, 5].map((k) => low + ((high - low) * (k - 1)) / 4);
  return Array.from({ length: Math.floor(high) }, (_, k) => k + 1).filter((v) => v >= low);
}

function starButtons(one) {
  const held = mine.get(String(one.item))?.rating;
  const values = scale();
  const group = el("span", { className: "stars", role: "group", "aria-label": `Rate ${nameOf(one)}` });
  const paint = (value) => {
    buttons.forEach((b, n) => b.classList.toggle("on", value !== undefined && values[n] <= value));
  };
  const buttons = values.map((value, n) =>
    el("button", {
      type: "button", textContent: model.events ? "✓" : "★", title: stars(value),
      "aria-label": `${stars(value)} for ${nameOf(one)}`,
      "aria-pressed": String(held === value),
      tabIndex: n === 0 ? 0 : -1,
      onclick: () => rate(one, value),
      onpointerenter: () => paint(value),
      onpointerleave: () => paint(held),
      onkeydown: (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        event.preventDefault();
        buttons[(n + step + buttons.length) % buttons.length].focus();
      },
      onfocus: () => buttons.forEach((b, m) => { b.tabIndex = m === n ? 0 : -1; }),
    }));
  paint(held);
  group.append(...buttons);
  return group;
}

async function rate(one, value) {
  const whose = user;
  const body = { user: whose, item: one.item, timestamp: Math.floor(Date.now() / 1000) };
  if (!model.events) body.rating = value;
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
      say(`Your rating of ${nameOf(one)} was not taken. ${failure.message}`, "bad");
      return;
    }
  }
  if (whose !== user) return;
  const place = document.activeElement?.getAttribute("aria-label");
  mine.delete(String(one.item));
  mine.set(String(one.item), { item: one.item, title: one.title, rating: value });
  pending.push({ name: nameOf(one), since });
  say(`Saved: ${stars(value)} for ${nameOf(one)}. The stream learns it with its next micro-batch …`);
  showMine();
  repaintStars();
  if (place) document.querySelector(`[aria-label="${CSS.escape(place)}"]`)?.focus();
}

function repaintStars() {
  for (const holder of document.querySelectorAll("[data-rates]")) {
    const one = { item: holder.dataset.rates, title: holder.dataset.title || null };
    holder.replaceChildren(starButtons(one));
  }
}

function rater(one) {
  const holder = el("span", {});
  holder.dataset.rates = one.item;
  holder.dataset.title = one.title || "";
  if (model.writes) holder.append(starButtons(one));
  return holder;
}

function row(one) {
  return el("li", {}, el("span", { className: "name", textContent: nameOf(one) }), rater(one));
}

function showMine() {
  $("count").textContent = mine.size ? `(${mine.size})` : "";
  const newest = [...mine.values()].reverse();
  $("mine").replaceChildren(...newest.slice(0, 12).map(row));
  if (!mine.size) {
    $("mine").replaceChildren(el("li", { className: "faint", textContent: "None yet: rate three, and see the list move." }));
  }
  if (newest.length > 12) {
    $("mine").append(el("li", { className: "faint", textContent: `and ${newest.length - 12} more` }));
  }
}

let searching = 0;
async function search() {
  const query = $("query").value.trim();
  const turn = ++searching;
  await pause(120);
  if (turn !== searching) return;
  const found = await ask(query ? `/items?n=8&query=${at(query)}` : "/popular?n=8");
  if (turn !== searching) return;
  $("h-found").textContent = query ? `Found for “${query}”` : "Often rated";
  $("found").replaceChildren(...found.items.map(row));
  if (!found.items.length) $("found").append(el("li", { className: "faint", textContent: "No title fits." }));
}

// ---- the list -------------------------------------------------------------------------------

function guess(one) {
  if (model.events) {
    const score = one.prediction.toFixed(1);
    return el("span", { className: "guess", role: "img", "aria-label": `Score ${score}` }, el("b", { textContent: score }));
  }
  const low = model.lowest ?? 0;
  const high = model.highest ?? 5;
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
  const spoken = one.std === null ? "" : `, give or take ${one.std.toFixed(2)}`;
  return el("span", { className: "guess", role: "img", "aria-label": `Predicted ${one.prediction.toFixed(2)}${spoken}`,
    title: one.std === null ? "" : `± ${one.std.toFixed(2)}` }, bar, el("b", { textContent: one.prediction.toFixed(1) }));
}

function explainer(one) {
  const box = el("details", {}, el("summary", { textContent: "Explain", "aria-label": `Explain ${nameOf(one)}` }));
  box.addEventListener("toggle", async () => {
    if (!box.open || box.dataset.done) return;
    box.dataset.done = "1";
    const found = await ask(`/explain/${at(user)}/${at(one.item)}`);
    const number = (v) => (v === null ? "" : v.toFixed(2));
    const cell = (text, type = "td") => el(type, { className: "number", textContent: text });
    const rows = found.parts.map((p) => el("tr", {}, el("th", { scope: "row", textContent: p.part }), cell(number(p.value)),
      cell(p.std === null ? "" : `± ${number(p.std)}`), el("td", { textContent: p.note })));
    const because = found.because.filter((b) => Math.abs(b.share) >= 0.005).slice(0, 5).map((b) => el("tr", {},
      el("th", { scope: "row", textContent: model.events ? `you did ${nameOf(b)}` : `your ${b.rating} for ${nameOf(b)}` }), cell((b.share >= 0 ? "+" : "") + number(b.share)),
      el("td", {}), el("td", { textContent: model.events ? "how far it speaks for this" : "its share in the features" })));
    box.append(el("table", {}, el("tbody", {}, ...rows, ...because)));
  });
  return box;
}

function moved(one, n, before) {
  if (!before.length) return "";
  const was = before.indexOf(String(one.item));
  if (was < 0) return el("span", { className: "badge", textContent: "new" });
  if (was === n) return "";
  const up = was > n;
  return el("span", { className: up ? "badge" : "badge down", textContent: `${up ? "▲" : "▼"} ${Math.abs(was - n)}`,
    "aria-label": `${up ? "up" : "down"} ${Math.abs(was - n)}` });
}

function showList(found, mark) {
  const list = $("list");
  const before = mark ? shown : [];
  const tops = new Map([...list.children].map((li) => [li.dataset.item, li.getBoundingClientRect().top]));
  const rows = found.items.map((one, n) => {
    const name = el("span", { className: "name" }, nameOf(one), moved(one, n, before));
    const li = el("li", {}, name, guess(one), el("p", { className: "why", textContent: one.reason || "" }),
      el("div", { className: "foot" }, explainer(one), rater(one)));
    li.dataset.item = one.item;
    return li;
  });
  list.replaceChildren(...rows);
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
    for (const li of rows) {
      const old = tops.get(li.dataset.item);
      if (old === undefined) continue;
      li.style.transition = "none";
      li.style.transform = `translateY(${old - li.getBoundingClientRect().top}px)`;
      requestAnimationFrame(() => { li.style.transition = ""; li.style.transform = ""; });
    }
  }
  shown = found.items.map((one) => String(one.item));
  list.dataset.version = found.version;
  list.dataset.cold = found.cold;
  $("by").textContent = `by version ${whole(found.version)}${found.cold ? `, which does not know you yet: by ${model.events ? "what is popular" : "mean and bias"}` : ""}`;
  return before.length ? shown.filter((id, n) => before[n] !== id).length : 0;
}

async function refresh(mark = false) {
  const whose = user;
  const found = await ask(`/recommendations/${at(whose)}?n=10&reasons=true`);
  if (whose !== user) return;
  const news = found.learned - learned;
  const done = pending.length > 0 && news >= pending.length;
  if (pending.length && !done && !mark) return;
  const places = showList(found, mark || done);
  if (done) {
    const last = pending[pending.length - 1];
    const seconds = ((performance.now() - last.since) / 1000).toFixed(1);
    const what = pending.length === 1 ? `your rating of ${last.name}` : `your ${pending.length} ratings`;
    pending = [];
    say(`Version ${whole(found.version)} has learned ${what}, ${seconds} seconds after you rated. ` +
      (places ? `${places} of ${shown.length} places in your list changed.` : "Your list stays as it was."), "good");
  }
  if (!pending.length) learned = found.learned;
}

async function become(id) {
  user = String(id);
  $("user").value = user;
  localStorage.setItem("user", user);
  pending = [];
  const known = await ask(`/users/${at(user)}/ratings`);
  learned = known.learned;
  mine = new Map(known.ratings.map((one) => [String(one.item), one]));
  showMine();
  repaintStars();
  shown = [];
  await refresh();
  say(learned ? `The model has learned ${whole(learned)} of your ratings.` : "You are new here. Rate three films and see the list move.");
}

// ---- the model ------------------------------------------------------------------------------

function curves() {
  const held = points.filter((p) => p.validation_rmse !== null);
  if (held.length > 1) {
    // micro-batches are small, and their noise would hide what is learned
    return [["ours", "held-out ratings", held.map((p) => [p.ratings, p.validation_rmse])]];
  }
  const before = [];
  const base = [];
  let from = 0, count = 0, ours = 0, theirs = 0;
  points.forEach((p) => {
    if (p.rmse === null || p.baseline_rmse === null) return;
    count += p.batch_ratings;
    ours += p.batch_ratings * p.rmse ** 2;
    theirs += p.batch_ratings * p.baseline_rmse ** 2;
    p.sums = true;
    while (count - points[from].batch_ratings >= WINDOW) {
      const gone = points[from++];
      if (!gone.sums) continue;
      count -= gone.batch_ratings;
      ours -= gone.batch_ratings * gone.rmse ** 2;
      theirs -= gone.batch_ratings * gone.baseline_rmse ** 2;
    }
    if (count >= WINDOW / 2) {
      before.push([p.ratings, Math.sqrt(ours / count)]);
      base.push([p.ratings, Math.sqrt(theirs / count)]);
    }
  });
  if (before.length > 1) {
    return [["before", "new ratings, before learning", before], ["base", "mean and biases alone", base]];
  }
  return [];
}

function svg(name, props, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(props)) node.setAttribute(key, value);
  node.textContent = text;
  return node;
}

function draw() {
  const lines = curves();
  if (!lines.length) return;
  const all = lines.flatMap(([, , xy]) => xy);
  const xs = all.map((p) => p[0]), ys = all.map((p) => p[1]);
  let [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  if (y1 - y0 < 0.002) [y0, y1] = [(y0 + y1) / 2 - 0.001, (y0 + y1) / 2 + 0.001];
  const room = (y1 - y0) * 0.12;
  [y0, y1] = [y0 - room, y1 + room];
  const X = (x) => 60 + (566 * (x - x0)) / (x1 - x0 || 1);
  const Y = (y) => 226 - (176 * (y - y0)) / (y1 - y0);
  const nodes = [];
  for (let n = 0; n <= 3; n++) {
    const y = y0 + room + ((y1 - y0 - 2 * room) * n) / 3;
    nodes.push(svg("line", { class: "grid", x1: 60, x2: 626, y1: Y(y), y2: Y(y) }));
    nodes.push(svg("text", { x: 54, y: Y(y) + 4, "text-anchor": "end" }, y.toFixed(y1 - y0 < 0.05 ? 4 : 3)));
  }
  nodes.push(svg("text", { x: 60, y: 246 }, whole(x0)));
  nodes.push(svg("text", { x: 626, y: 246, "text-anchor": "end" }, `${whole(x1)} ratings learned`));
  nodes.push(svg("text", { x: 0, y: 12 }, "RMSE"));
  lines.forEach(([kind, label, xy], n) => {
    const d = xy.map(([x, y], m) => `${m ? "L" : "M"}${X(x).toFixed(1)} ${Y(y).toFixed(1)}`).join("");
    nodes.push(svg("path", { class: kind, d }));
    const left = [60, 310][n];
    nodes.push(svg("path", { class: kind, d: `M${left} 30h22` }));
    nodes.push(svg("text", { class: `${kind}-text`, x: left + 27, y: 34 }, label));
  });
  $("chart").replaceChildren(...nodes);
  const [, label, xy] = lines[0];
  const [first, last] = [xy[0][1].toFixed(4), xy[xy.length - 1][1].toFixed(4)];
  $("m-rmse-name").textContent = `RMSE on ${lines[0][0] === "ours" ? "held-out ratings" : `the last ${whole(WINDOW)} new ratings`}`;
  $("m-rmse").textContent = last;
  $("chart-text").textContent = `RMSE on ${label}: from ${first} to ${last} over ${whole(x1 - x0)} ratings. ` +
    (lines.length > 1 ? `Each point: the last ${whole(WINDOW)} together, predicted before they were learned.` : "");
}

function showRate() {
  const now = Date.now();
  recent = recent.filter(([time]) => now - time < 15000);
  const span = recent.length > 1 ? (now - recent[0][0]) / 1000 : 0;
  const count = recent.slice(1).reduce((sum, [, ratings]) => sum + ratings, 0);
  $("m-rate").textContent = span > 0.5 ? (count / span).toFixed(count / span < 10 ? 1 : 0) : "0";
}

function onVersion(event) {
  const news = JSON.parse(event.data);
  $("m-version").textContent = whole(news.version);
  $("m-learned").textContent = whole(news.learned);
  const last = points[points.length - 1];
  if (!last || last.version < news.version) {
    points.push({ ...news, ratings: news.learned, batch_ratings: news.ratings });
    points = points.slice(-3000);
  }
  recent.push([Date.now(), news.ratings]);
  showRate();
  draw();
  if (pending.length) fetching = fetching.then(() => refresh()).catch(() => {});
}

async function start() {
  try {
    model = await ask("/model");
  } catch (failure) {
    say(`${failure.message} Looking again in a moment.`, "bad");
    setTimeout(start, 2000);
    return;
  }
  if (model.events) {
    $("h-rate").textContent = "What you did";
    $("h-mine").firstChild.textContent = "Done by you ";
    $("scale").textContent = model.table ? "Score: the logarithm of how much you would like it, about 0 for what you did." :
      "Score: the logarithm of the probability that this comes next, but for a constant.";
  }
  $("closed").hidden = model.writes;
  $("tokens").hidden = !(model.writes && model.token);
  $("token").value = sessionStorage.getItem("token") || "";
  $("m-version").textContent = whole(model.version);
  $("m-learned").textContent = whole(model.ratings);
  points = (await ask("/curve?points=1000")).points;
  draw();
  await become(new URLSearchParams(location.search).get("user") || localStorage.getItem("user") || newUser());
  await search();
  const events = new EventSource("/events");
  events.addEventListener("version", onVersion);
  events.onerror = () => { if (pending.length) say("The service does not answer. Your ratings are saved; waiting for it …", "bad"); };
  setInterval(showRate, 1000);
}

$("query").addEventListener("input", () => search().catch((f) => say(f.message, "bad")));
$("search").addEventListener("submit", (event) => { event.preventDefault(); search(); });
$("tokens").addEventListener("submit", (event) => event.preventDefault());
$("who").addEventListener("submit", (event) => { event.preventDefault(); become($("user").value.trim()).catch((f) => say(f.message, "bad")); });
$("newcomer").addEventListener("click", () => become(newUser()).catch((f) => say(f.message, "bad")));
$("refresh").addEventListener("click", () => refresh(true).catch((f) => say(f.message, "bad")));
start();
