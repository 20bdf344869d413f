"""Points that have their items → tables: what every arm came to, the first arm less each other one,
and arms beside one another where they are equal. Pooled over loop seeds and items (report/arms.py).
"""

from collections.abc import Iterable
from statistics import fmean
from typing import Any

import numpy as np
import polars as pl

from steerloop.report.arms import pooled, stacked
from steerloop.report.text import interval, markdown
from steerloop.sweep.arms import EQUAL, VECTOR
from steerloop.sweep.equal import column, setting

NONE = "No points yet."
Found = dict[int, dict[str, Any]]  # loop seed → point


def steps(point: dict[str, Any]) -> dict[str, np.ndarray]:
    """What every item came to against base, nats, by label."""
    return {k: np.array(x) for k, x in point["items"].items() if x is not None}


def measured(points: pl.DataFrame) -> dict[tuple[str, str], Found]:
    """(arm, where it was measured) → loop seed → point, of those that came to something."""
    found: dict[tuple[str, str], Found] = {}
    for x in points.to_dicts():
        if x.get("items"):
            found.setdefault((x["arm"], x["setting"]), {})[x["seed"]] = x
    return found


def seeds(found: Iterable[int]) -> dict[str, str]:
    """The cell that names them."""
    return {"seeds": " ".join(map(str, sorted(found)))}


def average(points: list[dict[str, Any]], name: str) -> str:
    """Over the points that have it; coherence is not known where no canary is valid."""
    values = [x[name] for x in points if x.get(name) is not None]
    return f"{fmean(values):.3f}" if values else ""


def held(points: pl.DataFrame) -> dict[str, str]:
    """A row a round of every arm: what it came to by then, in the seeds that came so far; the share
    of rows over τ and the mean A of the last epoch, nats; what ended it before the last round."""
    table = []
    for (arm,), rows in points.group_by("arm", maintain_order=True):
        ended = ", ".join(sorted({x for x in rows["ended"] if x}))
        for (n,), now in rows.group_by("round", maintain_order=True):
            for mine in measured(now).values():
                last = [*mine.values()]
                table.append({"after round": str(n)} | own(arm, mine) | {
                    "rows over τ": average(last, "active"), "A": average(last, "operating_kl"),
                    "ended early": ended})
    return {"rounds": markdown(table) if table else NONE}


def own(arm: str, mine: Found) -> dict[str, str]:
    """What an arm came to; what share of its teacher's completions the filter kept."""
    there, points = [steps(x) for x in mine.values()], [*mine.values()]
    return {"arm": arm} | seeds(mine) | {
        f"Δ{k}": interval(pooled(stacked(there, k)), "+.3f") for k in there[0]} | {
        "KL to base": average(points, "kl_own"), "coherence": average(points, "coherence"),
        "filter kept": average(points, "kept")}


def less(ours: Found, theirs: Found) -> dict[str, str]:
    """One arm less another, of the loop seeds that both have."""
    both = {x: (steps(ours[x]), steps(theirs[x])) for x in ours if x in theirs}
    mine, its = ([x[side] for x in both.values()] for side in (0, 1))
    return seeds(both) | {f"Δ{k}": interval(pooled(stacked(mine, k) - stacked(its, k)), "+.3f")
                          for k in mine[0]}


def equal(found: dict[tuple[str, str], Found], one: str, other: str, at: str) -> dict[str, str]:
    """`one` less `other` where they are equal, whichever of the two was turned down in a seed; how
    far from the base that is, nats."""
    ours, theirs, where = {}, {}, []
    for far, near, mine, its in ((one, other, ours, theirs), (other, one, theirs, ours)):
        for seed, point in found.get((far, setting(at, near)), {}).items():
            mine[seed], its[seed] = point, found[near, ""][seed]
            where.append(its[seed][column(at)])
    if not where:
        return {}
    return {"pair": f"{one}, less {other}", "at equal": f"{at}, {fmean(where):.3f}"} | less(
        ours, theirs)


def real(points: pl.DataFrame) -> dict[str, str]:
    """Three tables; one without a row says so."""
    found = measured(points)
    ends = {arm: x for (arm, where), x in found.items() if not where}
    ours = ends.get(VECTOR, {})
    tables = {
        "arms": [own(arm, mine) for arm, mine in ends.items()],
        "paired": [{f"{VECTOR}, less": arm} | less(ours, x) for arm, x in ends.items()
                   if arm != VECTOR and ours.keys() & x.keys()],
        "equal": [row for pair in EQUAL if (row := equal(found, *pair))]}
    return {name: markdown(rows) if rows else NONE for name, rows in tables.items()}
