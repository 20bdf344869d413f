// Draws the map in the colours of the page's scheme, and again when that scheme changes; and puts its
// labels where there is room, with a line to the mark where they stand apart from it.
// A figure is plotly JSON in which a colour is the name of a CSS variable.
"use strict";

const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const options = {
  displaylogo: false, responsive: true, scrollZoom: false,
  modeBarButtons: [["toImage", "zoomIn2d", "zoomOut2d", "resetScale2d"]], // none that sends data
  displayModeBar: innerWidth < 640 ? false : "hover",
};
const GAP = 3, MARK = 7, NEAR = 16; // pixels: around a label, half a mark, too near for a line

function coloured(value) {
  if (Array.isArray(value)) return value.map(coloured);
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v)]));
  }
  if (typeof value !== "string" || !value.startsWith("--")) return value;
  return getComputedStyle(document.documentElement).getPropertyValue(value).trim();
}

function overlap(a, b) {
  return Math.max(0, Math.min(a.right, b.right) - Math.max(a.left, b.left))
    * Math.max(0, Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top));
}

function around(x, y, width, height) {
  return { left: x - width / 2, right: x + width / 2, top: y - height / 2, bottom: y + height / 2 };
}

// whether a line from p to q passes through a box
function crosses(p, q, box) {
  let from = 0, to = 1;
  for (const [at, step, low, high] of [[p.x, q.x - p.x, box.left, box.right],
    [p.y, q.y - p.y, box.top, box.bottom]]) {
    if (Math.abs(step) < 1e-9) { if (at < low || at > high) return false; continue; }
    const ends = [(low - at) / step, (high - at) / step].sort((a, b) => a - b);
    from = Math.max(from, ends[0]);
    to = Math.min(to, ends[1]);
  }
  return from <= to;
}

// places to try for the middle of a label, nearest first: rings around the mark
function* rings(mark, width, height, area) {
  const far = Math.hypot(area.width, area.height);
  for (let away = MARK + GAP; away < far; away += 9) {
    const number = away < 20 ? 8 : 24;
    for (let i = 0; i < number; i++) {
      const angle = 2 * Math.PI * i / number - Math.PI / 2;
      const x = mark.x + Math.cos(angle) * (away + width / 2);
      const y = mark.y + Math.sin(angle) * (away + height / 2);
      if (x - width / 2 >= 0 && x + width / 2 <= area.width
        && y - height / 2 >= 0 && y + height / 2 <= area.height) yield { x, y, away };
    }
  }
}

// labels with the pixels of their marks → where each stands; no two overlap and none covers a mark,
// as far as there is room: a place is chosen by what it covers, then by how far it is. `way` are the
// pieces of the student's path: better not on these, either
function place(labels, area, taken, way) {
  const marks = labels.map((x) => around(x.mark.x, x.mark.y, 2 * MARK, 2 * MARK));
  const boxes = [...taken], lines = [];
  return labels.map((label) => {
    const { mark, width, height } = label;
    let best = null;
    for (const spot of rings(mark, width, height, area)) {
      if (best && best.cost <= spot.away) break;
      const box = around(spot.x, spot.y, width, height);
      const covered = [...marks, ...boxes].reduce((sum, x) => sum + overlap(box, x), 0);
      const crossed = boxes.filter((x) => crosses(mark, spot, x)).length
        + lines.filter(([p, q]) => crosses(p, q, box)).length;
      const struck = way.filter(([p, q]) => crosses(p, q, box)).length;
      const cost = spot.away + 1000 * covered + 400 * crossed + 30 * struck;
      if (!best || cost < best.cost) best = { ...spot, box, cost };
    }
    best = best || { x: mark.x, y: mark.y, away: 0, box: around(mark.x, mark.y, width, height) };
    boxes.push(best.box);
    if (best.away > NEAR) lines.push([mark, best]);
    return { ...label, ...best };
  });
}

// the labels of a drawn figure as plotly's annotations, in the pixels of its axes as they are now
function annotate(chart, labels, note) {
  const area = chart.querySelector(".nsewdrag").getBoundingClientRect();
  const size = innerWidth < 640 ? 10 : 12;
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = `${size}px ${chart.layout.font.family}`;
  const { xaxis: { range: [left, right] }, yaxis: { range: [bottom, top] } } = chart.layout;
  const wide = (text) => pen.measureText(plain(text)).width + 2 * GAP;
  const pixels = (x, y) => ({ x: (x - left) / (right - left) * area.width,
    y: (top - y) / (top - bottom) * area.height });
  const seen = labels.map((x) => ({
    ...x, width: wide(x.text), height: size + 2 * GAP, mark: pixels(x.x, x.y),
  })).filter((x) => x.mark.x >= 0 && x.mark.x <= area.width
    && x.mark.y >= 0 && x.mark.y <= area.height);
  const taken = [{ left: 0, top: 0, right: wide(note.text), bottom: 20 }];
  const path = chart.data.find((x) => x.meta === "path") || { x: [], y: [] };
  const stops = path.x.map((x, i) => pixels(x, path.y[i]));
  const way = stops.slice(1).map((x, i) => [stops[i], x]);
  const short = [...seen].sort((a, b) => a.width - b.width); // a number has to stay with its mark
  return [note, ...place(short, area, taken, way).map((x) => ({
    x: labels[x.number].x, y: labels[x.number].y, text: x.text, showarrow: true,
    arrowhead: 0, arrowwidth: 1, standoff: MARK - 1, borderpad: 0,
    arrowcolor: x.away > NEAR ? coloured("--line") : "rgba(0,0,0,0)",
    ax: x.x - x.mark.x, ay: x.y - x.mark.y, font: { size, color: coloured(x.colour) },
  }))];
}

function plain(html) { // the text of what was escaped for plotly
  return new DOMParser().parseFromString(html, "text/html").body.textContent;
}

async function draw() {
  for (const [id, figure] of Object.entries(figures)) {
    const { data, layout } = coloured(figure);
    const chart = await Plotly.react(id, data, layout, options);
    const numbered = figure.labels.map((x, number) => ({ ...x, number }));
    const settle = () => Plotly.relayout(
      chart, { annotations: annotate(chart, numbered, layout.annotations[0]) });
    await settle();
    if (chart.dataset.watched) continue;
    chart.dataset.watched = "yes";
    let busy = false; // what settling changes is no reason to settle again
    chart.on("plotly_relayout", async () => {
      if (busy) return;
      busy = true;
      await settle();
      busy = false;
    });
  }
}

// #round-2 in the address opens the box of that round on the map
function point() {
  const round = /^#round-(\d+)$/.exec(location.hash);
  if (!round) return;
  const curve = figures.map.data.findIndex((x) => (x.name || "").startsWith("healed"));
  if (curve >= 0 && Number(round[1]) <= figures.map.data[curve].x.length) {
    Plotly.Fx.hover("map", [{ curveNumber: curve, pointNumber: Number(round[1]) - 1 }]);
  }
}

if (typeof Plotly === "undefined") {
  for (const id of Object.keys(figures)) {
    document.getElementById(id).textContent =
      "The chart script beside the run folders is missing: python -m steerloop.report RUN writes it.";
  }
} else {
  draw().then(point);
  dark.addEventListener("change", draw);
  addEventListener("hashchange", point);
}
