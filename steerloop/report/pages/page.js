// What every page does: a box that scrolls sideways shows on which sides there is more, and a fold
// that the address names is open.
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

watchEdges();
unfold();
addEventListener("resize", watchEdges);
addEventListener("hashchange", unfold);
document.addEventListener("toggle", watchEdges, true);
