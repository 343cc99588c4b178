// Requests, and whether the service is there.
import { $, say } from "./dom.js";
import { state } from "./state.js";

const PATIENCE = 10000;
let away = false;

export const at = (id) => encodeURIComponent(id);

function showState(gone) {
  const pill = $("pill");
  pill.dataset.state = gone ? "away" : "live";
  pill.textContent = gone ? "Service away" : "Live";
  if (gone && !away) {
    const saved = state.pending.length ? "Your ratings are saved. " : "";
    say(`The service does not answer. ${saved}This page goes on by itself when it is back.`, "bad");
  }
  if (!gone && away) say("The service is back.", "good");
  away = gone;
}

export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE), ...options });
  } catch (failure) {
    showState(true);
    throw new Error("The service does not answer.", { cause: failure });
  }
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) {
    const detail = typeof body.detail === "string" ? body.detail : `The service said ${answer.status}.`;
    throw Object.assign(new Error(detail), { status: answer.status });
  }
  return body;
}

// Calls `told` with each version that is taken up, `back` when the service answers again.
export function listen(told, back) {
  const events = new EventSource("/events");
  events.addEventListener("version", (event) => told(JSON.parse(event.data)));
  events.onopen = () => {
    const was = away;
    showState(false);
    if (was) back();
  };
  events.onerror = () => {
    showState(true);
    // one that the service refused does not try again by itself
    if (events.readyState === EventSource.CLOSED) setTimeout(() => listen(told, back), 2000);
  };
}
