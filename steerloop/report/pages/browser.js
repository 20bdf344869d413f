// The completions of a run: what the address says is looked up, sorted, and shown a page at a time.
// What models wrote becomes text nodes and nothing else. The address is described in browser.py.
"use strict";

const PAGE = 50; // rows in the document at once
const FOLD = 320; // characters of a text that are shown without asking
const NOTHING = { // chosen
  source: "", round: "", row: "", dose: "", kept: "", reason: "", find: "", sort: "", from: "",
  place: "", prompt: "", at: "", marks: "",
};
const LISTS = ["source", "round", "dose", "kept", "reason"];
const table = JSON.parse(document.getElementById("completions").textContent);
const filters = document.getElementById("filters");
const chosen = { ...NOTHING };
const orders = new Map(); // by what it is sorted by → all rows in that order
let found = []; // rows that the filters leave, in order
let first = 0; // place of the first one that is shown
let writing = 0;

function make(tag, attributes, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...inside);
  return element;
}

function readAddress() {
  Object.assign(chosen, NOTHING);
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    const where = /^round-(\d+)(?:-row-(\d+))?$/.exec(name);
    if (where) [chosen.round, chosen.row] = [String(Number(where[1])), where[2] || ""];
    else if (name === "row" || name === "place") continue;
    else if (Object.hasOwn(NOTHING, name)) chosen[name] = value;
    else chosen.place = name;
  }
}

// Soon, not at once: some browsers refuse an address that changes with every key.
function writeAddress() {
  clearTimeout(writing);
  writing = setTimeout(() => {
    const { round, row, place, ...others } = chosen;
    const parts = [place, round && `round-${round}${row && `-row-${row}`}`];
    const said = Object.entries(others).filter(([, value]) => value !== "");
    history.replaceState(null, "", "#" + [...parts, String(new URLSearchParams(said))]
      .filter((x) => x).join("&"));
  }, 200);
}

// A list shows what is chosen, even where the page has no such thing.
function choose(list, value) {
  const there = [...list.options].some((x) => x.value === value);
  if (!there) list.add(new Option(`${value} (none here)`, value));
  list.value = value;
}

function showFilters() {
  for (const name of LISTS) {
    const list = filters.querySelector(`[name="${name}"]`);
    if (list) choose(list, chosen[name] || (name === "source" ? table.source.values[0] : ""));
  }
  filters.querySelector("[name=find]").value = chosen.find;
  choose(filters.querySelector("[name=by]"), chosen.sort.replace(/^-/, ""));
  filters.querySelector("[name=down]").checked = chosen.sort.startsWith("-");
}

function readFilters() {
  const value = (name) => filters.querySelector(`[name="${name}"]`)?.value ?? "";
  for (const name of [...LISTS, "find"]) chosen[name] = value(name);
  if (chosen.source === table.source.values[0]) chosen.source = "";
  const down = filters.querySelector("[name=down]").checked ? "-" : "";
  chosen.sort = value("by") && down + value("by");
  chosen.row = chosen.from = chosen.place = "";
}

// All rows by a score, those without one last; "-ppl" is largest first.
function ordered(by) {
  if (orders.has(by)) return orders.get(by);
  const rows = Array.from(table.texts, (_, i) => i), name = by.replace(/^-/, "");
  const down = by.startsWith("-");
  if (Object.hasOwn(table.scores, name)) {
    const score = table.scores[name], missing = down ? -Infinity : Infinity;
    const value = Float64Array.from(score, (x) => x ?? missing);
    rows.sort((i, j) => (down ? value[j] - value[i] : value[i] - value[j]) || i - j);
  }
  orders.set(by, rows);
  return rows;
}

// Finds a text whatever its case, as it stands.
function finder(text, flags = "iu") {
  return new RegExp(text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"), flags);
}

function look() {
  const place = (name, value) => {
    const at = table[name].values.indexOf(value);
    return at < 0 ? NaN : at; // of which no row is
  };
  const { of: sources } = table.source, { of: levels } = table.level, { of: reasons } = table.reason;
  const source = place("source", chosen.source || table.source.values[0]);
  const level = place("level", chosen.dose), reason = place("reason", chosen.reason);
  const round = Number(chosen.round), { keep, train } = table;
  const is = {
    "": () => true, kept: (i) => keep[i], dropped: (i) => !keep[i],
    chosen: (i) => keep[i] && train[i], spare: (i) => keep[i] && !train[i],
  };
  const kept = Object.hasOwn(is, chosen.kept) ? is[chosen.kept] : () => false;
  const hit = chosen.find && finder(chosen.find);
  const asked = hit && table.prompt.values.map((x) => hit.test(x));
  found = ordered(chosen.sort).filter((i) => sources[i] === source
    && (!chosen.round || table.round[i] === round) && (!chosen.dose || levels[i] === level)
    && kept(i) && (!chosen.reason || reasons[i] === reason)
    && (!hit || asked[table.prompt.of[i]] || hit.test(table.texts[i])));
  return sources.reduce((n, x) => n + (x === source), 0);
}

// A text with its hits marked.
function withHits(text) {
  if (!chosen.find) return [text];
  const nodes = [];
  let last = 0;
  for (const hit of text.matchAll(finder(chosen.find, "giu"))) {
    nodes.push(text.slice(last, hit.index), make("mark", {}, hit[0]));
    last = hit.index + hit[0].length;
  }
  return [...nodes, text.slice(last)];
}

// A labelled text, folded where it is long and has no hit.
function labelled(label, text) {
  const said = make("div", { class: "said" }, ...withHits(text || "(nothing)"));
  const part = make("div", {}, make("h4", {}, label), said);
  const long = text.length > FOLD || text.split("\n").length > 7;
  if (!long) return part;
  const button = make("button", { type: "button", class: "fold" });
  const fold = (shut) => {
    said.classList.toggle("clamped", shut);
    button.textContent = `${shut ? "more" : "less"} of the ${label}`;
    button.setAttribute("aria-expanded", String(!shut));
  };
  button.addEventListener("click", () => fold(!said.classList.contains("clamped")));
  fold(said.querySelector("mark") === null);
  part.append(button);
  return part;
}

function nameOf(i) {
  const source = table.source.of[i] ? table.source.values[table.source.of[i]] : "";
  return [`round-${table.round[i]}-row-${table.row[i]}`, source && `source=${source}`]
    .filter((x) => x).join("&");
}

function card(i) {
  const why = table.reason.of[i] < 0 ? "" : `: ${table.reason.values[table.reason.of[i]]}`;
  const word = table.keep[i] ? `kept${table.train[i] ? ", chosen to train on" : ""}` : `dropped${why}`;
  const scores = Object.entries(table.scores).map(([k, x]) => `${k} ${x[i] === null ? "–" : x[i]}`);
  const level = table.level.values[table.level.of[i]];
  if (level) scores.unshift(level === "0" ? "unsteered" : `α ${level}`);
  return make("article", { class: "completion", id: nameOf(i) },
    make("header", {},
      make("a", { href: `#${nameOf(i)}` }, `round ${table.round[i]}, row ${table.row[i]}`), " ",
      make("b", { class: table.keep[i] ? "kept" : "dropped" }, word), " ",
      make("span", { class: "quiet" }, scores.join(" · "))),
    make("div", { class: "pair" }, labelled("prompt", table.prompt.values[table.prompt.of[i]]),
      labelled("answer", table.texts[i])));
}

// The rows of the page that is looked at, and how many there are.
function show() {
  const all = look(), number = (n) => n.toLocaleString("en-GB");
  const named = chosen.row === "" ? -1 : found.findIndex((i) => table.row[i] === Number(chosen.row));
  first = Math.max(0, (Math.trunc(Number(chosen.from)) || 1) - 1);
  if (named >= 0) first = named - named % PAGE;
  if (first >= found.length) first = 0;
  const rows = found.slice(first, first + PAGE);
  document.getElementById("list").replaceChildren(...rows.map(card));
  const lost = chosen.row !== "" && named < 0
    ? `: row ${chosen.row} of round ${chosen.round} is not among them` : "";
  document.getElementById("count").textContent =
    `${number(found.length)} of ${number(all)} shown${lost}`;
  for (const pager of document.querySelectorAll(".pager")) {
    pager.hidden = found.length <= PAGE;
    pager.querySelector("span").textContent =
      `${number(first + 1)} to ${number(first + rows.length)} of ${number(found.length)}`;
    pager.querySelector(".back").disabled = first === 0;
    pager.querySelector(".on").disabled = first + PAGE >= found.length;
  }
  const at = named >= 0 && document.getElementById("list").children[named - first];
  if (at) at.setAttribute("aria-current", "true");
  return at;
}

function turn(pages) {
  chosen.from = String(Math.max(0, first + pages * PAGE) + 1);
  chosen.row = chosen.place = "";
  show();
  writeAddress();
  document.getElementById("count").focus({ preventScroll: true });
  document.getElementById("count").scrollIntoView();
}

function fromAddress(event) {
  const alone = location.hash.slice(1);
  if (event && !alone.startsWith("round-") && document.getElementById(alone)) {
    chosen.place = alone; // a place on the page is gone to; what is chosen stays
    writeAddress();
    return;
  }
  readAddress();
  let at = chosen.place && document.getElementById(chosen.place);
  if (filters) {
    showFilters();
    at = show() || at;
  }
  if (typeof showSame === "function") showSame();
  if (at) at.scrollIntoView();
}

if (filters) {
  const changed = () => {
    readFilters();
    show();
    writeAddress();
  };
  filters.addEventListener("input", changed);
  document.getElementById("clear").addEventListener("click", () => {
    const { prompt, at, marks } = chosen;
    Object.assign(chosen, NOTHING, { prompt, at, marks });
    showFilters();
    changed();
    filters.querySelector("[name=find]").focus();
  });
  for (const pager of document.querySelectorAll(".pager")) {
    pager.querySelector(".back").addEventListener("click", () => turn(-1));
    pager.querySelector(".on").addEventListener("click", () => turn(1));
  }
}
