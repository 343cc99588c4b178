// Starts the page and joins its parts.
import { $, say, whole } from "./dom.js";
import { ask, at, listen } from "./service.js";
import { keep, kept, state } from "./state.js";
import { faultOf, newUser, showWho, watchWho } from "./who.js";
import { repaint, search, showMine } from "./rate.js";
import { forget, refresh, refreshSoon } from "./best.js";
import { addVersion, setPoints, showRate } from "./chart.js";

const failed = (failure) => say(failure.message, "bad");

async function become(id) {
  state.user = String(id);
  state.pending = [];
  keep("user", state.user);
  showWho();
  const whose = state.user;
  const known = await ask(`/users/${at(whose)}/ratings`);
  if (whose !== state.user) return;
  state.learned = known.learned;
  state.mine = new Map(known.ratings.map((one) => [String(one.item), one]));
  showMine();
  repaint();
  forget();
  await refresh();
  greet();
}

function greet() {
  const { events, writes } = state.model;
  const what = events ? "events" : "ratings";
  const welcome = events ? "You are new here. Say what you did, and see the list move." : "You are new here. Rate three, and see the list move.";
  const unknown = `No ${what} of yours are known here.`;
  say(state.learned ? `Welcome back. ${whole(state.learned)} of your ${what} are learned.` : writes ? welcome : unknown);
}

async function catchUp() {
  setPoints((await ask("/curve?points=1000")).points);
  await refresh();
}

function onVersion(news) {
  addVersion(news);
  if (state.pending.length) refreshSoon();
}

function label(model) {
  if (model.events) {
    $("tagline").textContent = "Recommendations that turn with all you do";
    $("h-rate").textContent = "What did you do?";
    $("h-mine").textContent = "Done by you";
    document.querySelector('[value="everyone"] + span').textContent = "Done by most";
    document.querySelector(".figures dt").textContent = "Events learned";
    document.querySelector("#m-rate").previousElementSibling.textContent = "Events a second";
  }
  if (!model.writes) $("h-rate").textContent = "Look around";
  $("closed").hidden = model.writes;
  $("tokens").hidden = !(model.writes && model.token);
  $("token").value = sessionStorage.getItem("token") || "";
  $("m-version").textContent = whole(model.version);
  $("m-learned").textContent = whole(model.ratings);
}

// who is asked for, by the address or as before, and why not where that cannot be
function firstUser() {
  const asked = new URLSearchParams(location.search).get("user") || "";
  const before = kept("user") || "";
  const fault = asked ? faultOf(asked) : "";
  const id = [asked, before].find((one) => one && !faultOf(one)) ?? newUser();
  return { id, fault };
}

async function start() {
  try {
    state.model = await ask("/model");
  } catch (failure) {
    failed(failure);
    setTimeout(start, 2000);
    return;
  }
  label(state.model);
  const leaning = kept("leaning");
  if (leaning === "everyone") state.leaning = leaning;
  document.querySelector(`[name="leaning"][value="${state.leaning}"]`).checked = true;
  const { id, fault } = firstUser();
  watchWho((other) => become(other).then(search).catch(failed));
  try {
    setPoints((await ask("/curve?points=1000")).points);
    await become(id);
    await search();
    if (fault) say(fault, "bad");
  } catch (failure) {
    failed(failure);
  }
  listen(onVersion, () => catchUp().catch(failed));
  setInterval(showRate, 1000);
}

$("query").addEventListener("input", () => search().catch(failed));
$("search").addEventListener("submit", (event) => { event.preventDefault(); search().catch(failed); });
$("tokens").addEventListener("submit", (event) => event.preventDefault());
$("refresh").addEventListener("click", () => refresh(true).catch(failed));
$("leanings").addEventListener("change", (event) => {
  state.leaning = event.target.value;
  keep("leaning", state.leaning);
  forget();
  refresh(true).catch(failed);
});
start();
