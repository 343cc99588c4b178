// Whom the page is for: a guest, or a user by id.
import { $ } from "./dom.js";
import { state } from "./state.js";

const BITS = { tinyint: 8, smallint: 16, int: 32, bigint: 64 };
const GUESTS = [100000000, 999999999];

const isText = () => state.model.user_id === "string";

export function newUser() {
  const span = GUESTS[1] - GUESTS[0] + 1;
  const number = GUESTS[0] + (crypto.getRandomValues(new Uint32Array(1))[0] % span);
  return isText() ? `guest-${number}` : String(number);
}

export const isGuest = (id) => /^(guest-)?\d{9}$/.test(id) && Number(id.slice(-9)) >= GUESTS[0];

// Why an id cannot be one of this model's users; "" where it can.
export function faultOf(id) {
  if (!id) return "Write an id.";
  if (isText()) return "";
  if (!/^-?\d{1,19}$/.test(id)) return `Users are numbers here: “${id.slice(0, 40)}” is none.`;
  const bits = BigInt(BITS[state.model.user_id] ?? 64);
  const edge = 1n << (bits - 1n);
  const number = BigInt(id);
  return number >= -edge && number < edge ? "" : `Users here are numbers up to ${(edge - 1n).toLocaleString("en")}.`;
}

export function showWho() {
  const guest = isGuest(state.user);
  const name = guest ? "Guest" : isText() ? state.user : `User ${state.user}`;
  $("whose").textContent = name;
  $("who").classList.toggle("guest", guest);
  $("who").querySelector("summary").setAttribute("aria-label", `You are ${guest ? "a guest" : name}. Change the user`);
  $("whole").textContent = guest ? `To come back to these ratings, keep your number: ${state.user}` : "";
  $("user").value = guest ? "" : state.user;
  $("user").placeholder = isText() ? "name" : "1";
  $("user").inputMode = isText() ? "text" : "numeric";
  showFault("");
}

export function showFault(text) {
  $("fault").textContent = text;
  $("user").setAttribute("aria-invalid", String(Boolean(text)));
}

export function watchWho(become) {
  const box = $("who");
  const close = () => { box.open = false; };
  const go = (id) => {
    close();
    box.querySelector("summary").focus();
    become(id);
  };
  $("user").addEventListener("input", () => {
    const id = $("user").value.trim();
    showFault(id ? faultOf(id) : "");
  });
  $("change").addEventListener("submit", (event) => {
    event.preventDefault();
    const id = $("user").value.trim();
    const fault = faultOf(id);
    showFault(fault);
    if (fault) $("user").focus();
    else go(id);
  });
  $("newcomer").addEventListener("click", () => go(newUser()));
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !box.open) return;
    close();
    box.querySelector("summary").focus();
  });
  document.addEventListener("click", (event) => { if (!box.contains(event.target)) close(); });
}
