// What every page does: a box that scrolls sideways shows on which sides there is more, groups of
// columns fold, and a fold that the address names is open.
"use strict";

function edges(box) {
  box.classList.toggle("more-left", box.scrollLeft > 1);
  box.classList.toggle("more-right", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
}

function watchEdges() {
  for (const box of document.querySelectorAll(".scroll")) {
    edges(box);
    if (!box.dataset.watched) box.addEventListener("scroll", () => edges(box), { passive: true });
    box.dataset.watched = "yes";
  }
}

function unfold() {
  const named = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
  for (let at = named; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  if (named) named.scrollIntoView();
}

function foldColumns(table, name) {
  const folded = table.querySelector(`td[data-folded="${name}"]`).classList.toggle("shown");
  for (const x of table.querySelectorAll(`[data-folded="${name}"]`)) {
    x.classList.toggle("shown", folded);
  }
  for (const x of table.querySelectorAll(`[data-group="${name}"]`)) x.hidden = folded;
  watchEdges();
}

for (const button of document.querySelectorAll("[data-fold]")) {
  button.addEventListener("click", () => foldColumns(button.closest("table"), button.dataset.fold));
}
watchEdges();
unfold();
addEventListener("resize", watchEdges);
addEventListener("hashchange", unfold);
document.addEventListener("toggle", watchEdges, true);
