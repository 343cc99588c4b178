// What the parts of the page share.

export const state = {
  model: null,
  user: "",
  leaning: "taste",
  pending: [], // ratings that no version has learned yet
  learned: 0, // ratings of this user in the version shown
  mine: new Map(), // item -> {item, title, genres, rating}
};

// a browser may keep no storage
export function kept(name) {
  try { return localStorage.getItem(name); } catch { return null; }
}

export function keep(name, value) {
  try { localStorage.setItem(name, value); } catch { /* forgotten when the page closes */ }
}
