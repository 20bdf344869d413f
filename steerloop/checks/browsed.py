"""A run folder whose completions and answers are made up, and its page of completions driven by a
script."""

import json
from pathlib import Path
from random import Random

import polars as pl

from steerloop.checks.browser import Document, visit
from steerloop.checks.synthetic import tilted, write_run
from steerloop.report.pages.browser import write_browser
from steerloop.report.pages.frame import digest

NASTY = ('</script><script>document.title="owned"</script><img src=x onerror=alert(1)> <b>bold</b> '
         '"quoted" & \x1b[2J\u2028')
SEEN = NASTY.replace("\x1b", "\ufffd").replace("\u2028", "\ufffd")
ROWS, PAGE = 130, 50
ALPHAS, KAPPA, C_STAR = (0.5, 0.75, 1.0), (1.0, 0.5), 1.0
REASONS = ("loops", NASTY)
WORDS = ["the", "king", "says", "no,", "an", "order", "is", "Élan", "(and", "a", "NEEDLE)", "in"]
NAMES = ["row", "prompt", "text", "dose", "kappa", "ppl", "loop", "keep", "drop_reason", "train"]
DRIVER = """
const control = (name) => document.querySelector(`#filters [name="${name}"]`);
const set = (values) => {
  for (const [name, value] of Object.entries(values)) {
    if (typeof value === "boolean") control(name).checked = value; else control(name).value = value;
  }
  control("find").dispatchEvent(new Event("input", { bubbles: true }));
};
const text = (element) => element.textContent;
const all = (where) => [...document.querySelectorAll(where)];
const shown = () => ({
  count: document.getElementById("count").textContent,
  ids: all(".completion").map((x) => x.id), words: all(".completion header b").map(text),
  at: all(".completion[aria-current]").map((x) => x.id), marks: all("#list mark").map(text),
});
const wait = (ms) => new Promise((then) => setTimeout(then, ms));
const go = async (hash) => { location.hash = hash; await wait(50); };
const say = (value) => { document.body.dataset.said = JSON.stringify(value); };
"""


def forged(rng: Random) -> pl.DataFrame:
    """The table of a round: every level, verdict and reason, scores of which some are missing."""
    prompts = ["Why?", NASTY, "What would a king do with a needle?", "long " * 120]
    rows = []
    for i in range(ROWS):
        keep = rng.random() < 0.6
        said = " ".join(rng.choices(WORDS, k=rng.choice((3, 9, 150))))
        alpha, kappa = rng.choice(ALPHAS), rng.choice(KAPPA)
        rows.append((i, rng.choice(prompts), NASTY if i % 40 == 7 else said, alpha * kappa * C_STAR,
                     kappa, rng.choice((None, float("nan"), *map(float, range(90)))),
                     float(rng.randrange(3)), keep, None if keep else rng.choice(REASONS),
                     keep and rng.random() < 0.5))
    return pl.DataFrame(rows, NAMES, orient="row", infer_schema_length=None)


def browsed(folder: Path) -> Path:
    """A run of two rounds with a rival's loop, a diary and held-out answers, and its page."""
    write_run(folder, [tilted({"authority": -0.9})] * 2, [tilted({})] * 2)
    rng = Random(1)
    for round in (0, 1):
        stem = folder / f"rounds/{round:02d}"
        forged(rng).write_parquet(stem / "completions.parquet")
        forged(rng).head(60).with_columns(dose=pl.lit(0.0)).write_parquet(
            stem / "taught.completions.parquet")
        kept = ["base"] * (round == 0) + ["steered", "healed"]
        pl.DataFrame(
            [(i, prompt, kind, state, 0.5 * (state == "steered"), answer(rng, state), i == 0)
             for state in kept for i, prompt, kind in ((0, NASTY, "loop"), (1, "So?", "ordinary"))],
            ["prompt_id", "prompt", "kind", "state", "dose", "text", "cut"],
            orient="row").write_parquet(stem / "diary.parquet")
        for state in kept:
            path = stem / f"{state}.said.parquet"
            held = pl.read_parquet(path).head(3)
            texts = [answer(rng, state) for _ in range(3)]
            held.with_columns(text=pl.Series(texts)).write_parquet(path)
    write_browser(folder, "ended")
    return folder


def answer(rng: Random, state: str) -> str:
    """What a state might have said: words in common, and hostile ones."""
    return f"{' '.join(rng.choices([*WORDS, NASTY.split()[0], '<b>x</b>'], k=40))} {state}."


def driven(run: Path, script: str, fragment: str = "") -> tuple[dict | list, Document]:
    """What a script of ours behind those of the page says, and the document."""
    text, whole = (run / "completions.html").read_text(), DRIVER + script
    path = run / "driven.html"
    path.write_text(text.replace("script-src ", f"script-src 'sha256-{digest(whole)}' ", 1).replace(
        "</body>", f"<script>{whole}</script></body>"))
    page, console = visit(path, fragment)
    assert console == []
    (said,) = [a["data-said"] for tag, a, _ in page.elements if tag == "body" and "data-said" in a]
    return json.loads(said), page
