// The page of all runs: sorts, filters, and says how to compare those that are chosen. What it shows
// is told by the address, so that a link shows the same.
"use strict";

const MOST = 26; // runs that can be compared at a time
const at = (id) => document.getElementById(id);
const table = at("runs");
const heads = [...table.tHead.rows[0].cells];
const known = JSON.parse(at("comparisons").textContent);
const groups = [...table.querySelectorAll("tbody.group")].map((body) => ({
  body, rows: [...body.querySelectorAll("tr.run")], mean: body.querySelector("tr.mean") }));
const runs = groups.flatMap((x) => x.rows);
const boxes = runs.map((x) => x.querySelector("input")).filter(Boolean);
const words = new Map(runs.map((row) => [row, [...row.cells]
  .filter((x) => !x.classList.contains("spark")).map((x) => x.textContent).join(" ")
  .toLowerCase()]));
let chosen = []; // boxes, in the order in which they were ticked
let sorted = { column: -1, down: false };

const isNumber = (column) => heads[column].classList.contains("n");

// a number, or a text that is not empty; else undefined
function value(row, column) {
  const cell = row && row.cells[column];
  if (!cell?.firstChild) return undefined;
  if (!isNumber(column)) return cell.firstChild.textContent.trim() || undefined;
  return "number" in cell.dataset ? Number(cell.dataset.number) : undefined;
}

// what has no value comes last, either way
function ordered(things, valued) {
  const sign = sorted.down ? -1 : 1;
  return things.map((x) => [x, valued(x)]).sort(([, a], [, b]) => {
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    return sign * ((a > b) - (a < b));
  }).map(([x]) => x);
}

function show() {
  const flat = at("flat").checked, asked = at("filter").value.toLowerCase().split(/\s+/);
  const byColumn = (row) => sorted.column < 0 ? undefined : value(row, sorted.column);
  let there = 0;
  for (const row of runs) {
    row.hidden = !asked.every((x) => words.get(row).includes(x));
    there += !row.hidden;
  }
  table.classList.toggle("grouped", !flat);
  at("list").append(...(flat ? ordered(runs, byColumn) : []));
  for (const group of groups) {
    group.rows = ordered(group.rows, byColumn);
    if (!flat) group.body.append(...group.rows, ...(group.mean ? [group.mean] : []));
    group.body.hidden = flat || group.rows.every((x) => x.hidden);
    // a mean stands under all of its runs, or nowhere
    if (group.mean) group.mean.hidden = group.rows.some((x) => x.hidden);
  }
  const first = (group) => group.rows.find((x) => !x.hidden);
  const numbers = sorted.column >= 0 && isNumber(sorted.column);
  table.append(...ordered(groups, (x) => (numbers ? byColumn(x.mean) : undefined)
    ?? byColumn(first(x))).map((x) => x.body), at("list"));
  heads.forEach((head, i) => {
    if (i !== sorted.column) head.removeAttribute("aria-sort");
    else head.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
  });
  at("count").textContent = there < runs.length ? `${there} of ${runs.length} runs` : "";
  offer();
  watchEdges();
}

// how to compare what is chosen, and the pages that do
function offer() {
  at("chosen").hidden = !chosen.length;
  const names = chosen.map((x) => x.dataset.name), [hint] = at("chosen").children;
  hint.textContent = chosen.length > MOST ? `${chosen.length} runs: ${MOST} can be compared at a time`
    : chosen.length > 1 ? "This compares them, each against the first that was ticked, and arms over "
      + "their loop seeds where one has several (of an arm and seed, tick one run),"
    : "This makes its pages again (tick a second one to compare the two),";
  at("chosen").querySelector("code").textContent = chosen.length > MOST ? ""
    : ["python -m steerloop.report", ...chosen.map((x) => x.dataset.path)].join(" ");
  const set = (x) => JSON.stringify([...x].sort());
  const same = known.filter((x) => set(x.runs) === set(names));
  at("pages").replaceChildren(...same.map((x) => {
    const link = document.createElement("a");
    link.href = x.page;
    link.textContent = `compared already, against ${x.runs[0]}`;
    return link;
  }));
}

function tell() {
  const said = new URLSearchParams();
  if (sorted.column >= 0) said.set("sort", heads[sorted.column].textContent);
  if (sorted.down) said.set("down", "1");
  if (at("flat").checked) said.set("flat", "1");
  if (at("filter").value) said.set("filter", at("filter").value);
  for (const box of chosen) said.append("run", box.dataset.name);
  history.replaceState(null, "", `#${said}`);
  show();
}

function listen() {
  const said = new URLSearchParams(location.hash.slice(1));
  const column = heads.findIndex((x) => x.querySelector("button")
    && x.textContent === said.get("sort"));
  sorted = { column, down: column >= 0 && said.has("down") };
  at("flat").checked = said.has("flat");
  at("filter").value = said.get("filter") || "";
  chosen = said.getAll("run").map((name) => boxes.find((x) => x.dataset.name === name))
    .filter(Boolean);
  for (const box of boxes) box.checked = chosen.includes(box);
  show();
}

table.tHead.addEventListener("click", ({ target }) => {
  if (!target.dataset.column) return;
  const column = Number(target.dataset.column);
  sorted = { column, down: column === sorted.column ? !sorted.down : isNumber(column) };
  tell();
});
table.addEventListener("change", ({ target }) => {
  chosen = chosen.filter((x) => x !== target).concat(target.checked ? [target] : []);
  tell();
});
at("flat").addEventListener("change", tell);
at("filter").addEventListener("input", tell);
addEventListener("hashchange", listen);
listen();
