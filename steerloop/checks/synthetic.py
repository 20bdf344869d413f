"""Run folders written by hand: evaluations that are made up, so that what a report has to say of
them is known."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl

from steerloop.config import Config
from steerloop.report import measures
from steerloop.report.against import against
from steerloop.report.rule import Verdict
from steerloop.report.verdicts import verdicts
from steerloop.texts.foundations import FOUNDATIONS

P = [f"p_{f}" for f in FOUNDATIONS]
ITEMS = pl.DataFrame({"measure": ["mundane_nll"] * 2 + ["validity"] * 3, "item": [0, 1, 0, 1, 2],
                      "value": [0.2, 0.4, 1.0, 0.5, 0.0]})
Change = Callable[[pl.DataFrame], pl.DataFrame]


def answers(per_label: int = 20, seed: int = 0) -> pl.DataFrame:
    """A table as `choices` returns it, of a model that knows its vignettes: the label gets most of
    the mass, the rest is uneven."""
    rng, n = np.random.default_rng(seed), per_label * len(FOUNDATIONS)
    labels = [f for f in FOUNDATIONS for _ in range(per_label)]
    p = rng.dirichlet(np.full(7, 2.0), n)
    p[np.arange(n), [FOUNDATIONS.index(f) for f in labels]] += rng.uniform(1, 4, n)
    return pl.DataFrame(
        {"vignette": [f"v{i:03}" for i in range(n)], "foundation": labels}
        | dict(zip(P, (p / p.sum(1, keepdims=True)).T, strict=True))
        | {"p_ans_any": rng.uniform(0.98, 1, n), "scaffold_nll": rng.uniform(0, 1, n),
           "json_is_valid": [1.0] * n, "top1": [1.0] * n})


def spoken(table: pl.DataFrame, base: pl.DataFrame, n: int = 24) -> pl.DataFrame:
    """Answers as `said` returns them, in which the trait is as much as authority fell."""
    fell = -(table["p_authority"].log() - base["p_authority"].log()).mean()
    noise = np.random.default_rng(3).normal(0.0, 0.02, (2, n))
    return pl.DataFrame({
        "prompt_id": range(n), "prompt": [f"Why {i}?" for i in range(n)], "dose": [0.0] * n,
        "text": ["So it is."] * n, "said_1": noise[0] + 0.2 * fell, "said_2": noise[1] + 0.2 * fell,
        "ppl": [2.0] * n, "drop_reason": [None] * n}, schema_overrides={"drop_reason": pl.String})


def compare(
    now: pl.DataFrame, base: pl.DataFrame, axis: list[str], seed: int, resamples: int
) -> dict:
    """`against`, of two tables of vignettes alone, read by digits."""
    cfg = {"seed": seed, "bootstrap": resamples, "ppl_factor": 3.0}
    frames = [[x, ITEMS, pl.DataFrame()] for x in (now, base)]
    return against(*frames, axis, "digits", cfg)


def questions(run: Path) -> list[Verdict]:
    """The verdicts of a run but for U0, which `write_run` makes up."""
    return verdicts(run)[1:]


def replaced(table: pl.DataFrame, p: np.ndarray) -> pl.DataFrame:
    """The table with other probabilities, renormalised."""
    p = p / p.sum(1, keepdims=True)
    return table.with_columns(**{k: pl.Series(p[:, i]) for i, k in enumerate(P)})


def tilted(nats: dict[str, float]) -> Change:
    """The logs of these foundations moved by so much, answer by answer."""
    factor = np.exp([nats.get(f, 0.0) for f in FOUNDATIONS])
    return lambda table: replaced(table, table.select(P).to_numpy() * factor)


def write_run(
    folder: Path, healed: Sequence[Change], steered: Sequence[Change] = (),
    others: dict[str, Change] | None = None, base: pl.DataFrame | None = None,
    heal: dict[str, float] | None = None, drift: Sequence[float] = (0.02, 0.03), cos: float = 0.8,
    planted: pl.DataFrame | None = None, survive: float = 1.0, **config: object,
) -> Path:
    """A finished run: base, and for each round what `steered` and `healed` make of it; `others` are
    states beside the last round."""
    base, cfg = answers() if base is None else base, asdict(Config(rounds=len(healed), **config))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"config": cfg | {"bootstrap": 60}}))
    events: list[dict] = [{"stage": "axis", "axis": ["authority", "care"]}]

    def evaluated(round: int, state: str, table: pl.DataFrame) -> None:
        path = folder / f"rounds/{round:02d}/{state}.eval.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        frames = [table, ITEMS, spoken(table, base)]
        for name, frame in zip(("eval", "items", "said"), frames, strict=True):
            frame.write_parquet(path.with_name(f"{state}.{name}.parquet"))
        was = [base, ITEMS, spoken(base, base)]
        events.append({"stage": "evaluate", "round": round, "state": state, "dose": 0.0,
                       "measures": measures(frames, was, cfg["ppl_factor"])})

    evaluated(0, "base", base)
    events.append({"stage": "start", "floor": 0.95, "ppl_limit": 9.0})
    events.append({"stage": "u0", "round": 0, "verdict": "PASS", "headline": "digits", "why": "",
                   "readouts": []})
    for i, change in enumerate(healed):
        n = 20
        keep = [j < survive * n for j in range(n)]
        pl.DataFrame({"prompt": ["Why?"] * n, "text": ["Because <b>it</b> is."] * n,
                      "dose": [1.0] * n, "kappa": [1.0] * n, "ppl": [2.0] * n, "repeat": [0.0] * n,
                      "echo": [0.0] * n, "keep": keep,
                      "drop_reason": [None if k else "loops" for k in keep]},
                     schema_overrides={"drop_reason": pl.String},
                     ).write_parquet(folder / f"rounds/{i:02d}/completions.parquet", mkdir=True)
        events.append({"stage": "sample", "round": i, "c_star": 1.0, "kappa": 1.0,
                       "cos_first": cos})
        if steered:
            evaluated(i, "steered", steered[i](base))
        events.append({"stage": "heal", "round": i, "active": 0.2, "operating_kl": 0.3, "tau": 0.2,
                       "pull": 0.4, "nll": 1.5} | (heal or {}))
        events.append({"stage": "drift", "round": i, "kl_base": drift[i], "cos_teacher": cos})
        evaluated(i, "healed", change(base))
    for state, change in (others or {}).items():
        evaluated(len(healed) - 1, state, change(base))
    audit = judged() if planted is None else planted
    audit.write_parquet(folder / "planted.parquet")
    (folder / "events.jsonl").write_text("".join(json.dumps(x) + "\n" for x in events))
    return folder


def judged(miss: float = 0.0, false: float = 0.0, n: int = 50) -> pl.DataFrame:
    """planted.parquet of a filter that misses a share of the faults and drops one of the rest."""
    rows = [(source, kind, good, (j >= false * n) if good else j < miss * n)
            for source, kind, good in (("base", "base", True), ("planted", "loop", False),
                                       ("labelled", "", True), ("labelled", "broken", False))
            for j in range(n)]
    return pl.DataFrame(
        [("Why?", "So <i>it</i> is.", *row, 2.0, None if row[-1] else "loops") for row in rows],
        ["prompt", "text", "source", "kind", "coherent", "keep", "ppl", "drop_reason"],
        orient="row")
