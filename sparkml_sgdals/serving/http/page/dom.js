// Nodes of the document: made without HTML from text, so that no title can carry any.

export const $ = (id) => document.getElementById(id);

export function el(name, props = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(props)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key in node && !key.startsWith("aria")) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== ""));
  return node;
}

export function svg(name, props = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(props)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

export function say(text, kind = "") {
  const news = $("news");
  news.className = `news ${kind}`;
  if (news.textContent !== text) news.textContent = text;
}

export const whole = (n) => n.toLocaleString("en");
export const pause = (ms) => new Promise((done) => setTimeout(done, ms));
export const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
