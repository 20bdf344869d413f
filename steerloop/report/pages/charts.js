// Draws the figures of a page in the colours of its scheme, and again when that scheme changes.
// A figure is plotly JSON in which a colour is the name of a CSS variable.
"use strict";

const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const options = {
  displaylogo: false, responsive: true, scrollZoom: false,
  modeBarButtons: [["toImage", "zoomIn2d", "zoomOut2d", "resetScale2d"]], // none that sends data
  displayModeBar: innerWidth < 640 ? false : "hover",
};

function coloured(value) {
  if (Array.isArray(value)) return value.map(coloured);
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v)]));
  }
  if (typeof value !== "string" || !value.startsWith("--")) return value;
  return getComputedStyle(document.documentElement).getPropertyValue(value).trim();
}

function draw() {
  for (const [id, figure] of Object.entries(figures)) {
    const { data, layout } = coloured(figure);
    if (innerWidth < 640) {
      for (const trace of data) if (trace.textfont) trace.textfont.size = 10;
    }
    Plotly.react(id, data, layout, options);
  }
}

// #round-2 in the address opens the box of that round on the map
function point() {
  const round = /^#round-(\d+)$/.exec(location.hash);
  if (!round) return;
  const curve = figures.map.data.findIndex((x) => (x.mode || "").startsWith("lines+markers"));
  if (Number(round[1]) < figures.map.data[curve].x.length) {
    Plotly.Fx.hover("map", [{ curveNumber: curve, pointNumber: Number(round[1]) }]);
  }
}

if (typeof Plotly === "undefined") {
  for (const id of Object.keys(figures)) {
    document.getElementById(id).textContent =
      "The chart script beside the run folders is missing: python -m steerloop.report RUN writes it.";
  }
} else {
  draw();
  point();
  dark.addEventListener("change", draw);
  addEventListener("hashchange", point);
}
