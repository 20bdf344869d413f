// A page that looks for a newer version of itself keeps what its reader opened and closed, and where
// they were.
"use strict";

const kept = `folds ${location.pathname}`;

function remembered() {
  try {
    return JSON.parse(sessionStorage.getItem(kept)) || {};
  } catch {
    return {}; // a browser that keeps nothing, or something else under this name
  }
}

function remember(id, open) {
  try {
    sessionStorage.setItem(kept, JSON.stringify({ ...remembered(), [id]: open }));
  } catch {
    // nothing is kept then
  }
}

for (const [id, open] of Object.entries(remembered())) {
  const fold = document.getElementById(id);
  const asked = location.hash === `#${id}`;
  if (fold && fold.tagName === "DETAILS" && !asked) fold.open = open;
}
for (const summary of document.querySelectorAll("details[id] > summary")) {
  summary.addEventListener("click", () => {
    remember(summary.parentElement.id, !summary.parentElement.open);
  });
}
