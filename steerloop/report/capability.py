"""What states came to in tasks of lm-evaluation-harness, against one another on the same items.

A measure is Σ value / Σ weight over its items: the mean of most metrics; of log perplexities, nats
by word or byte. Of a group of tasks it is that of all its items together.
"""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from steerloop import UserError
from steerloop.report.estimates import Estimate, Weighed
from steerloop.report.rule import Bound, Verdict
from steerloop.report.stats import Z, agresti_min, averages, errors, estimate
from steerloop.report.text import interval
from steerloop.runfolder import layout
from steerloop.runfolder.files import read_table

KEYS = ["task", "measure", "part", "item", "doc"]
LESS = "less able"
MANY = 5000  # items, of which means are normal: no resample of them is held in memory


def asked(run: Path, round: int, state: str) -> pl.DataFrame | None:
    """The table of a measured state (harness/items.py); None where it was asked nothing."""
    path = layout.tasks(run, round, state)
    return read_table(path) if path.is_file() else None


def changes(now: pl.DataFrame, base: pl.DataFrame, cfg: dict[str, Any]) -> dict[str, Any]:
    """Per measure, by its label: the `level` of a state, its `change` against another as [estimate,
    low, high], whether more of it is `better` (1) or less (−1), and how many items `n`. `cfg` has
    seed and bootstrap. Raises ValueError where the two states were asked different items."""
    ours, theirs = (x.sort(KEYS) for x in (now, base))
    if not ours.select(KEYS).equals(theirs.select(KEYS)):
        raise ValueError("the two states were asked different items of --tasks")
    found = {}
    for (task, measure), mine in ours.group_by("task", "measure", maintain_order=True):
        its = theirs.filter(task=task, measure=measure)
        value, weight = mine["value"].to_numpy(), mine["weight"].to_numpy()
        found[f"{task} {measure}"] = {
            "level": float(value.sum() / weight.sum()), "change": change(mine, its, cfg),
            "better": mine["better"][0], "n": len(mine)}
    return found


def change(now: pl.DataFrame, base: pl.DataFrame, cfg: dict[str, Any]) -> list[float]:
    """[estimate, low, high] of the difference of one measure, paired by item; of more than MANY
    items a normal interval."""
    (a, b), (c, d) = (x.select("value", "weight").to_numpy().T for x in (now, base))
    if (b == 1).all() and (d == 1).all() and np.isin(a - c, (-1, 0, 1)).all():
        return agresti_min(a - c)
    w = averages(len(a), cfg["seed"], cfg["bootstrap"] if len(a) <= MANY else 0)
    found = ratio(a, b, w) - ratio(c, d, w)
    if len(a) <= MANY:
        return estimate(w, found.values, found.pull)
    value, half = found.values[0], Z * errors(w, found.pull)[0]
    return [float(x) for x in (value, value - half, value + half)]


def ratio(top: np.ndarray, bottom: np.ndarray, w: np.ndarray) -> Weighed:
    """Σ top / Σ bottom under averages, and the pull of each item on it."""
    over = w @ bottom
    found = w @ top / over
    return Weighed(found, (top - found[:, None] * bottom) / over[:, None])


def of_states(run: Path, measured: list[dict[str, Any]], cfg: dict[str, Any]) -> None:
    """Put into each record of a measured state what it came to in `tasks` against the first one
    (see `changes`). Nothing where there is nothing. Raises UserError for one that was asked other
    items."""
    base = asked(run, 0, layout.BASE)
    for event in measured:
        now = asked(run, event["round"], event["state"])
        if base is not None and now is not None:
            try:
                event["tasks"] = changes(now, base, cfg)
                if event["state"] == layout.BASE:
                    event["tasks"] = {k: x | {"change": [0.0] * 3}
                                      for k, x in event["tasks"].items()}
            except ValueError as e:
                path = layout.tasks(run, event["round"], event["state"])
                raise UserError(f"{path}: {e}, base and {event['state']}: delete it, then --resume "
                                f"{run} asks it anew") from e


def cells(measured: list[dict[str, Any]], event: dict[str, Any]) -> dict[str, str]:
    """What a state came to, for a row of a table whose first row is base; {} in a run without
    tasks. Blank where a state was not asked."""
    return {label: said(event["tasks"][label]) if label in event.get("tasks", {}) else ""
            for label in measured[0].get("tasks", {})}


def said(known: dict[str, Any]) -> str:
    """One cell: the level, and the change against base where there is any."""
    level, same = f"{known['level']:.3f}", known["change"] == [0.0, 0.0, 0.0]
    return level if same else f"{level}; {interval(known['change'], '+.3f')}"


def beside(
    run: Path, round: int, pair: tuple[str, str], cfg: dict[str, Any]
) -> dict[str, tuple[float, ...]]:
    """Of a student and a rival at one shift, by measure: both levels, and by how much the student
    is better, [estimate, low, high] as three numbers. {} where one of them was not asked."""
    ours, theirs = (asked(run, round, x) for x in pair)
    if ours is None or theirs is None:
        return {}
    mine, its = changes(ours, theirs, cfg), changes(theirs, theirs, cfg)
    return {k: (x["level"], its[k]["level"], *gain(x)) for k, x in mine.items()}


def gain(known: dict[str, Any]) -> list[float]:
    """A change, turned so that more is better."""
    value, low, high = known["change"]
    return [value, low, high] if known["better"] > 0 else [-value, -high, -low]


def tasks_verdict(cfg: dict[str, Any], last: dict[str, Any], moved: bool) -> Verdict:
    """Whether the student `last` (a measured state) can do what the base could, within
    --tasks_loss; `moved`: its trait is known to have."""
    verdict = Verdict("Tasks: can it do what it could?", moved)
    least = Bound(-cfg["tasks_loss"])
    for label, known in last.get("tasks", {}).items():
        sign = "" if known["better"] > 0 else ", less of it is better"
        verdict.line(f"{label}: gain on base{sign}",
                     Estimate(*gain(known), known["n"], form="+.3f"), least, name=LESS)
    return verdict
