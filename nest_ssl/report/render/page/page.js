"use strict";
// All of the page is there without this script; it adds search, sorting, sides, languages and keys.
const root = document.documentElement, page = document.getElementById("page");
const spoken = { [page.dataset.language]: page.innerHTML };
for (const each of document.querySelectorAll("template[data-language]")) spoken[each.dataset.language] = each.innerHTML;
const one = (selector, inside = document) => inside.querySelector(selector);
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];

function kept(name, value) { // a browser may refuse to keep anything of a file
  try {
    if (value !== undefined) localStorage.setItem(`nest-ssl-${name}`, value);
    return localStorage.getItem(`nest-ssl-${name}`);
  } catch { return null; }
}

function speak(language) {
  if (!(language in spoken) || language === page.dataset.language) return;
  const open = all("details").map((each) => each.open), searched = one("#find") && one("#find").value;
  const place = scrollY, focused = document.activeElement.dataset.action, help = !one("#help").hidden;
  page.innerHTML = spoken[language];
  page.dataset.language = language;
  root.lang = language;
  document.title = one("#main").dataset.title;
  if (root.classList.contains("swapped")) swapColumns();
  mark();
  all("details").forEach((each, at) => { each.open = open[at]; }); // where the reader was
  if (searched) { one("#find").value = searched; filter(); }
  if (help) actions.help();
  if (focused) one(`[data-action="${focused}"]`).focus();
  scrollTo(0, place);
}

function mark() { // what the buttons say of themselves
  one('[data-action="swap"]').setAttribute("aria-pressed", String(root.classList.contains("swapped")));
}

function swapColumns() {
  for (const table of all("table[data-sides]")) {
    const at = Number(table.dataset.sides);
    for (const row of table.rows) row.insertBefore(row.cells[at + 1], row.cells[at]);
  }
}

function value(row, column) {
  const text = row.cells[column].textContent.trim();
  const plain = text.replaceAll(",", "");
  return { text, number: /^[-+]?(\d|\.\d|inf|nan)/i.test(plain) ? parseFloat(plain.replace(/^([-+]?)inf.*/i, "$1Infinity")) : NaN };
}

function sort(button) {
  const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
  const column = [...head.parentNode.cells].indexOf(head);
  const next = { none: "ascending", ascending: "descending", descending: "none" }[head.getAttribute("aria-sort") || "none"];
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  if (next !== "none") head.setAttribute("aria-sort", next);
  const rows = [...body.rows];
  rows.forEach((row, place) => { row.dataset.place ??= place; });
  const sign = next === "descending" ? -1 : 1;
  rows.sort((a, b) => {
    if (next === "none") return a.dataset.place - b.dataset.place;
    const [x, y] = [value(a, column), value(b, column)];
    const numbers = !Number.isNaN(x.number) && !Number.isNaN(y.number);
    if (Number.isNaN(x.number) !== Number.isNaN(y.number)) return Number.isNaN(x.number) ? 1 : -1;
    return sign * (numbers ? x.number - y.number : x.text.localeCompare(y.text)) || a.dataset.place - b.dataset.place;
  });
  body.append(...rows);
}

function filter() { // what is searched for, with all that is around it
  const words = one("#find").value.toLowerCase().split(/\s+/).filter(Boolean);
  const differing = one('[data-action="differing"]').getAttribute("aria-pressed") === "true";
  const nodes = all(".tree li");
  let shown = 0;
  for (const node of nodes.reverse()) {
    const own = words.every((word) => node.dataset.name.includes(word)) && !(differing && one(".word", node).matches(".same"));
    const inside = all(":scope > details > ul > li", node).some((child) => !child.hidden);
    shown += own;
    node.hidden = !own && !inside;
    const details = one(":scope > details", node);
    if (details && inside && (words.length || differing)) details.open = true;
  }
  const output = one(".search output");
  const [found, every] = [shown, nodes.length].map((count) => count.toLocaleString("en"));
  output.textContent = words.length || differing ? output.dataset.found.replace("%1", found).replace("%2", every) : "";
}

function reveal(name) {
  const target = document.getElementById(name) || document.getElementById(decodeURIComponent(name));
  if (!target) return;
  for (let at = target; at; at = at.parentElement) {
    if (at.tagName === "DETAILS") at.open = true;
    if (at.hidden) at.hidden = false;
  }
  target.scrollIntoView();
}

function step(by) { // along the calls that differ
  const calls = all(".call");
  if (!calls.length) return;
  const before = calls.findIndex((call) => call.matches(".at"));
  point(calls[before < 0 ? (by > 0 ? 0 : calls.length - 1) : Math.min(calls.length - 1, Math.max(0, before + by))]);
}

function point(call) {
  for (const other of all(".call.at")) other.classList.remove("at");
  call.classList.add("at");
  one(".cursor").textContent = one("title", call).textContent;
}

function follow(call) {
  const name = [...new TextEncoder().encode(call.dataset.module)].map((byte) => {
    const letter = String.fromCharCode(byte);
    return /[A-Za-z0-9._~-]/.test(letter) ? letter : `%${byte.toString(16).toUpperCase().padStart(2, "0")}`;
  }).join("");
  location.hash = `#m-${name}`;
  reveal(`m-${name}`);
}

const actions = {
  language: () => { const next = page.dataset.language === "en" ? "zh" : "en"; kept("language", next); speak(next); },
  theme: () => {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const now = root.dataset.theme || (dark ? "dark" : "light");
    root.dataset.theme = kept("theme", now === "dark" ? "light" : "dark") || (now === "dark" ? "light" : "dark");
  },
  swap: () => { root.classList.toggle("swapped"); swapColumns(); mark(); },
  print: () => print(),
  help: () => {
    const help = one("#help");
    help.hidden = !help.hidden;
    one('[data-action="help"]').setAttribute("aria-expanded", String(!help.hidden));
  },
  sort,
  differing: (button) => {
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    filter();
  },
  expand: () => all(".tree details").forEach((each) => { each.open = true; }),
  collapse: () => all(".tree li details").slice(1).forEach((each) => { each.open = false; }),
};

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-action]"), call = event.target.closest(".call");
  if (button) actions[button.dataset.action](button);
  else if (call) { point(call); follow(call); }
});
document.addEventListener("input", (event) => { if (event.target.id === "find") filter(); });
addEventListener("hashchange", () => reveal(location.hash.slice(1)));
addEventListener("beforeprint", () => { // what differs is on paper, whatever was open
  for (const each of all(".tree details")) if (all(".word:not(.same)", each).length) each.open = true;
  for (const each of all("section > details")) each.open = true;
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input");
  if (event.key === "Escape" && typing) { event.target.value = ""; filter(); event.target.blur(); return; }
  if (typing) return;
  if (event.target.closest('[data-keys="strip"]')) {
    const by = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (by !== undefined) { event.preventDefault(); step(by); return; }
    if (event.key === "Enter" && one(".call.at")) { follow(one(".call.at")); return; }
  }
  const keys = { s: "swap", l: "language", t: "theme", "?": "help" };
  if (event.key in keys) { event.preventDefault(); actions[keys[event.key]](); }
  if (event.key === "/" && one("#find")) { event.preventDefault(); one("#find").focus(); }
  if (event.key === "n" || event.key === "p") {
    const parts = all("main > section"), top = 80;
    const next = event.key === "n" ? parts.find((part) => part.getBoundingClientRect().top > top + 1)
      : parts.filter((part) => part.getBoundingClientRect().top < top - 60).pop();
    if (next) { next.scrollIntoView(); next.tabIndex = -1; next.focus({ preventScroll: true }); }
  }
});

const theme = kept("theme");
if (theme === "dark" || theme === "light") root.dataset.theme = theme;
speak(kept("language") || (navigator.language.startsWith("zh") ? "zh" : "en"));
if (location.hash) reveal(location.hash.slice(1));
