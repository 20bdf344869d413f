// The answers of base, steered and healed to one prompt side by side; then the page is drawn.
"use strict";

const answers = JSON.parse(document.getElementById("answers").textContent);
const same = document.getElementById("same");
const KINDS = { loop: "diary, prompts of the loop", ordinary: "diary, ordinary", held: "held out" };

function listPrompts() {
  const list = same.querySelector("[name=prompt]");
  for (const [kind, name] of Object.entries(KINDS)) {
    const some = answers.filter((x) => x.kind === kind);
    const group = make("optgroup", { label: name });
    for (const { key, prompt } of some) {
      const short = prompt.replace(/\s+/g, " ");
      group.append(new Option(short.length > 90 ? `${short.slice(0, 90)}…` : short, key));
    }
    if (some.length) list.append(group);
  }
}

// What a state answered in a round (as text); base did so in the first one alone.
function answered(one, state, round) {
  const rounds = state === "base" ? one.said : one.said.filter((x) => String(x[0]) === round);
  const said = rounds.find((x) => x[1] === state);
  return said && { text: said[2], dose: said[3], cut: said[4] };
}

function showAnswer(box, answer, before) {
  const place = box.querySelector(".said"), note = box.querySelector("h3 span");
  note.textContent = answer && answer.dose ? `dose ${Number(answer.dose.toPrecision(3))}` : "";
  if (!answer) {
    place.replaceChildren(make("span", { class: "quiet" }, "no answer of this round"));
    return;
  }
  const pieces = before && differences(before.text, answer.text);
  const whole = pieces ? markedWords(pieces) : [answer.text || "(nothing)"];
  if (answer.cut) whole.push(make("span", { class: "quiet" }, " […]"));
  if (before && !pieces) whole.push(make("div", { class: "quiet" }, "too long to compare by words"));
  place.replaceChildren(...whole);
}

function showSame() {
  if (!same) return;
  const list = same.querySelector("[name=prompt]"), rounds = same.querySelector("[name=at]");
  choose(list, chosen.prompt || answers[0].key);
  choose(rounds, chosen.at || rounds.options[rounds.options.length - 1].value);
  choose(same.querySelector("[name=marks]"), chosen.marks);
  const one = answers.find((x) => x.key === list.value) || { prompt: "", kind: "", said: [] };
  document.getElementById("asked").textContent = one.prompt;
  for (const note of document.querySelectorAll("#kinds span")) {
    note.hidden = note.dataset.kind !== one.kind;
  }
  const box = (state) => document.querySelector(`.three [data-state="${state}"]`);
  const [base, steered, healed] = ["base", "steered", "healed"].map(
    (x) => answered(one, x, rounds.value));
  const marks = chosen.marks;
  showAnswer(box("base"), base, null);
  showAnswer(box("steered"), steered, marks === "" ? base : null);
  showAnswer(box("healed"), healed, { "": steered, base }[marks] || null);
}

function step(by) {
  const list = same.querySelector("[name=prompt]");
  list.selectedIndex = Math.min(list.length - 1, Math.max(0, list.selectedIndex + by));
  changedSame();
}

function changedSame() {
  for (const name of ["prompt", "at", "marks"]) {
    chosen[name] = same.querySelector(`[name=${name}]`).value;
  }
  chosen.place = "the-same-prompt";
  showSame();
  writeAddress();
}

if (same) {
  listPrompts();
  same.addEventListener("input", changedSame);
  same.querySelector(".back").addEventListener("click", () => step(-1));
  same.querySelector(".on").addEventListener("click", () => step(1));
}
fromAddress();
addEventListener("hashchange", fromAddress);
