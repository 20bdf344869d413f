// The page of a server: one prompt, several states of a run, side by side. Whatever comes from the
// server or from a link is text; nothing of it is ever read as HTML.
"use strict";

const at = (id) => document.getElementById(id);
const made = (tag, kind, text) => {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  if (text !== undefined) element.textContent = text;
  return element;
};
const MOST = 8; // columns
const LONG = 600; // words of a text beyond which differences are not looked for
let key = "", rounds = 0, student = [], dial = [], dose = 0, pins = [], running = null;

const clean = (x, low, high, otherwise) => {
  const value = Number(x);
  return Number.isFinite(value) && x !== "" && x !== null ? Math.min(high, Math.max(low, value)) : otherwise;
};
const say = (text, bad = false) => { at("status").textContent = text; at("status").className = bad ? "bad" : ""; };
const shown = (x) => String(Math.round(100 * x) / 100);
const under = (x) => `${x.gates.length === 1 ? "gate" : "gates"} ${x.gates.map(shown).join(" ")} · dose ${shown(x.dose)}`;

function columns() {
  const none = Array(rounds).fill(0), last = student.findLastIndex((x) => x !== 0);
  const before = student.map((x, i) => (i === last ? 0 : x));
  const same = dose === 0 && dial.every((x, i) => x === student[i]);
  return [{ name: "base", gates: none, dose: 0 }, { name: "previous", gates: before, dose: 0 },
    { name: same ? "student" : "dial", gates: dial, dose },
    ...pins.map((x, i) => ({ ...x, name: `pinned ${i + 1}`, pin: i }))];
}

function drawSliders() {
  at("sliders").replaceChildren();
  const add = (name, value, low, high, set) => {
    const label = made("label"), input = document.createElement("input"), output = made("output", "", shown(value));
    Object.assign(input, { type: "range", min: low, max: high, step: 0.05 });
    input.value = value;
    input.name = name;
    input.addEventListener("input", () => { set(Number(input.value)); output.textContent = shown(input.value); drawColumns(); });
    label.append(made("span", "", name), input, output);
    at("sliders").append(label);
  };
  dial.forEach((x, i) => add(`round ${i + 1}`, x, -1, 2, (value) => { dial[i] = value; }));
  add("dose", dose, -2, 2, (value) => { dose = value; });
}

function drawColumns() {
  if (running) return;
  at("columns").replaceChildren(...columns().map((x) => {
    const card = made("article"), head = made("h2", "", x.name);
    if (x.pin !== undefined) {
      const off = made("button", "", "×");
      off.type = "button";
      off.setAttribute("aria-label", `take ${x.name} away`);
      off.addEventListener("click", () => { pins.splice(x.pin, 1); drawColumns(); });
      head.append(off);
    }
    card.append(head, made("p", "under", under(x)), made("p", "text"), made("p", "end"));
    return card;
  }));
}

function set(gates, x) { dial = [...gates]; dose = x; drawSliders(); drawColumns(); }

// what differs: words of `text` that a longest common subsequence with `other` leaves over
function marked(text, other) {
  const a = other.match(/\s+|\S+/g) || [], b = text.match(/\s+|\S+/g) || [];
  if (a.length > LONG || b.length > LONG) return [text];
  const long = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      long[i][j] = a[i] === b[j] ? long[i + 1][j + 1] + 1 : Math.max(long[i + 1][j], long[i][j + 1]);
    }
  }
  const parts = [];
  let i = 0, j = 0;
  while (j < b.length) {
    if (i < a.length && a[i] === b[j]) { parts.push(b[j]); i++; j++; }
    else if (i < a.length && long[i + 1][j] >= long[i][j + 1]) i++;
    else { parts.push(/\S/.test(b[j]) ? made("mark", "", b[j]) : b[j]); j++; }
  }
  return parts;
}

async function stream(x, card, signal) {
  const text = card.querySelector(".text"), end = card.querySelector(".end");
  const body = { model: "student", messages: [{ role: "user", content: at("prompt").value }], stream: true,
    gates: x.gates, dose: x.dose, max_tokens: clean(at("tokens").value, 1, 1e5, 128),
    temperature: clean(at("temperature").value, 0, 2, 1), seed: Math.round(clean(at("seed").value, -1e15, 1e15, 0)) };
  const answer = await fetch("v1/chat/completions", { method: "POST", signal, body: JSON.stringify(body),
    headers: { "content-type": "application/json", authorization: `Bearer ${key}` } });
  if (!answer.ok) throw new Error((await answer.json()).error.message);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const found = JSON.parse(data);
      if (found.error) throw new Error(found.error.message);
      for (const choice of found.choices) {
        text.textContent += choice.delta.content || "";
        if (choice.finish_reason) end.textContent = choice.finish_reason === "stop" ? "ended" : "cut at the limit of tokens";
      }
    }
  }
  throw new Error("the server broke off");
}

async function ask() {
  drawColumns();
  running = new AbortController();
  at("stop").disabled = false;
  at("go").disabled = true;
  say("answers come …");
  const cards = [...at("columns").children], all = columns();
  const results = await Promise.allSettled(all.map((x, i) => stream(x, cards[i], running.signal)));
  let failed = 0;
  results.forEach((x, i) => {
    if (x.status === "fulfilled") return;
    const end = cards[i].querySelector(".end"), stopped = running.signal.aborted;
    end.textContent = stopped ? "stopped" : x.reason.message;
    end.classList.toggle("bad", !stopped);
    failed += !stopped;
  });
  const first = cards[0].querySelector(".text").textContent;
  for (const card of cards.slice(1)) {
    const text = card.querySelector(".text");
    text.replaceChildren(...marked(text.textContent, first));
  }
  running = null;
  at("stop").disabled = true;
  at("go").disabled = false;
  say(failed ? `${failed} of ${cards.length} columns failed` : "done", failed > 0);
}

function link() {
  const state = { p: at("prompt").value, g: dial, d: dose, n: at("tokens").value, t: at("temperature").value,
    s: at("seed").value, c: pins.map((x) => [x.gates, x.dose]) };
  history.replaceState(null, "", `#${encodeURIComponent(JSON.stringify(state))}`);
}

function restore() {
  if (location.hash.length < 2) return;
  try {
    const state = JSON.parse(decodeURIComponent(location.hash.slice(1)));
    const gates = (x) => student.map((other, i) => clean(Array.isArray(x) ? x[i] : null, -100, 100, other));
    at("prompt").value = typeof state.p === "string" ? state.p : "";
    at("tokens").value = clean(state.n, 1, 1e5, 128);
    at("temperature").value = clean(state.t, 0, 2, 1);
    at("seed").value = Math.round(clean(state.s, -1e15, 1e15, 0));
    pins = (Array.isArray(state.c) ? state.c : []).slice(0, MOST - 3)
      .map((x) => ({ gates: gates(x?.[0]), dose: clean(x?.[1], -100, 100, 0) }));
    dial = gates(state.g);
    dose = clean(state.d, -100, 100, 0);
  } catch {
    say("the link that led here is damaged: these are the settings of the start", true);
  }
}

async function begin() {
  const answer = await fetch("v1/models", { headers: { authorization: `Bearer ${key}` } });
  at("key").hidden = answer.status !== 401;
  if (answer.status === 401) { at("about").textContent = key ? "That was not the key." : "Locked."; return; }
  const models = await answer.json();
  student = models.data.find((x) => x.id === "student").gates;
  rounds = student.length;
  dial = [...student];
  at("about").textContent = `${models.run} · ${rounds} ${rounds === 1 ? "round" : "rounds"} · dose 1 is the calibrated dose of round 1's vector`;
  document.querySelector("main").hidden = false;
  restore();
  drawSliders();
  drawColumns();
}

at("ask").addEventListener("submit", (event) => { event.preventDefault(); if (!running) { link(); ask(); } });
at("stop").addEventListener("click", () => running?.abort());
at("student").addEventListener("click", () => set(student, 0));
at("base").addEventListener("click", () => set(student.map(() => 0), 0));
at("pin").addEventListener("click", () => {
  if (pins.length >= MOST - 3) say(`${MOST} columns are all there is room for`, true);
  else { pins.push({ gates: [...dial], dose }); drawColumns(); }
});
at("link").addEventListener("click", async () => {
  link();
  try { await navigator.clipboard.writeText(location.href); say("copied"); } catch { say("it is in the address bar"); }
});
at("key").addEventListener("submit", (event) => { event.preventDefault(); key = at("secret").value; at("secret").value = ""; begin(); });
addEventListener("hashchange", () => { if (!running) { restore(); drawSliders(); drawColumns(); } });
begin().catch(() => { at("about").textContent = "The server does not answer."; });
