// A new item: what is known of it, and what comes of it for the user that the page shows.
import { $, el, pause, say } from "./dom.js";
import { ask, at } from "./service.js";
import { explainer } from "./explain.js";
import { rater } from "./rate.js";
import { refresh } from "./best.js";
import { state } from "./state.js";
import { nameOf } from "./titles.js";

const MOST_BOXES = 40; // values of a category that are offered as boxes

function newcomerFields(known) {
  return Object.entries(known).filter(([, values]) => values.length <= MOST_BOXES).map(([name, values]) => {
    if (!values.length) {
      const box = el("input", { type: "number", step: "any", name, size: 6 });
      return el("label", { className: "number" }, `${name} `, box);
    }
    return el("fieldset", {}, el("legend", { textContent: name }), ...values.map((value) =>
      el("label", { className: "choice" }, el("input", { type: "checkbox", name, value }), value)));
  });
}

function newcomerGiven(form) {
  const given = {};
  for (const box of form.querySelectorAll("input[name]")) {
    if (box.type === "checkbox" && box.checked) (given[box.name] ??= []).push(box.value);
    if (box.type === "number" && box.value !== "") given[box.name] = Number(box.value);
  }
  return given;
}

async function addNewcomer(form, shown) {
  const number = 900000000 + (crypto.getRandomValues(new Uint32Array(1))[0] % 90000000);
  const item = state.model.item_id === "string" ? `new-${number}` : number;
  const title = $("newcomer-title").value.trim();
  const headers = { "Content-Type": "application/json", "Idempotency-Key": crypto.randomUUID?.() ?? `${number}-${Date.now()}` };
  if ($("token").value) headers.Authorization = `Bearer ${$("token").value}`;
  const body = { item, features: newcomerGiven(form) };
  if (title) body.title = title;
  await ask("/items", { method: "POST", headers, body: JSON.stringify(body) });
  const asked = `/recommendations/${at(state.user)}?reasons=true&exclude_seen=false`;
  const [one] = (await ask(`${asked}&n=1&items=${at(item)}`)).items;
  const place = (await ask(`${asked}&n=1000`)).items.findIndex((other) => String(other.item) === String(item));
  const name = el("span", { className: "name", textContent: nameOf(one) });
  const where = place < 0 ? "not among your first 1,000" : `place ${place + 1} for you`;
  name.append(el("span", { className: "badge", textContent: where }));
  const about = `${one.prediction.toFixed(1)} predicted. ${one.reason || ""}`;
  const li = el("li", {}, name, el("p", { className: "why", textContent: about }), rater(one), explainer(one));
  shown.prepend(li);
  say(`${nameOf(one)} is ranked for everybody from now on, by what is known of it.`, "good");
  await refresh(true);
}

async function offerNewcomers() {
  while (!state.model || !state.user) await pause(200);
  const known = (await ask("/features")).items;
  if (!state.model.writes || !Object.keys(known).length) return;
  const form = $("newcomer-form");
  $("newcomer-features").replaceChildren(...newcomerFields(known));
  $("newcomer-item").hidden = false;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    addNewcomer(form, $("newcomer-shown")).catch((failure) => say(failure.message, "bad"));
  });
}

offerNewcomers().catch((failure) => say(failure.message, "bad"));
