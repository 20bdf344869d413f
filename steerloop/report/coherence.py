"""Coherence on any model: the least, over the canaries that are valid on its base, of state over
base on the same items, 1 at most.

    answer mass    probability of the digits, where the base's digits see (report/sight.py)
    JSON           free answers that parse, where half of the base's do
    kept           answers of its own (readouts/said.py) that the run's filter keeps

Of no valid canary nothing is known, and it says so.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

from steerloop.report.estimates import Weighed
from steerloop.report.sight import accurate
from steerloop.report.stats import averages, estimate, wilson
from steerloop.report.trait import Frames
from steerloop.texts.foundations import FOUNDATIONS

PARSES = 0.5  # least share of the base's free answers that are JSON, for JSON to be a canary
FEWEST = 6  # items: of fewer, all may well be alike by chance
Terms = Callable[[Frames], np.ndarray]


def limit_of(said: pl.DataFrame, factor: float) -> float:
    """The filter's limit of perplexity: `factor` times the 99th percentile of the base's own
    answers."""
    return factor * float(said["ppl"].quantile(0.99, "linear") or math.inf)


def kept(base: Frames, factor: float) -> Terms:
    """Whether answers pass the filter, by the limit that the base's own set."""
    limit = limit_of(base[2], factor)

    def terms(frames: Frames) -> np.ndarray:
        answers = frames[2].sort("prompt_id")
        keep = answers.select(pl.col("drop_reason").is_null() & (pl.col("ppl") <= limit))
        return keep.to_numpy()[:, 0].astype(float)

    return terms


def column(name: str) -> Terms:
    """A column of the table of vignettes."""
    return lambda frames: frames[0].sort("vignette")[name].to_numpy()


def canaries(base: Frames, factor: float) -> dict[str, Terms]:
    """The valid ones by name: frames of a state → a value per item."""
    rows, _, said = base
    found = {}
    if len(rows) and not accurate(rows["top1"].to_numpy(), len(FOUNDATIONS)):
        found["answer mass"] = column("p_ans_any")
    if len(rows) and rows["json_is_valid"].mean() >= PARSES:
        found["JSON"] = column("json_is_valid")
    if len(said):
        found["kept"] = kept(base, factor)
    return {k: f for k, f in found.items() if f(base).mean() > 0}


def doubts(base: Frames, cfg: dict[str, Any]) -> str:
    """What is wrong with the canaries on this base; '' if nothing is."""
    known = canaries(base, cfg["ppl_factor"])
    if not known:
        return ("no canary of coherence is valid on this base, so the loop cannot stop by itself: "
                "read its answers (docs/spec.md)")
    if "kept" in known and (share := known["kept"](base).mean()) < cfg["coh_floor"]:
        return (f"the filter keeps {share:.0%} of the base's own free answers, less than "
                f"--coh_floor {cfg['coh_floor']:g}: what it says of students is as doubtful")
    return ""


def least(now: Frames, base: Frames, factor: float) -> tuple[str, np.ndarray, np.ndarray]:
    """The canary that sang last, and its values per item for the state and for base; '' where none
    is valid."""
    pairs = [(x, f(now), f(base)) for x, f in canaries(base, factor).items()]
    nothing = ("", np.ones(0), np.ones(0))
    return min(pairs, key=lambda x: x[1].mean() / x[2].mean(), default=nothing)


def side_by_side(states: list[tuple[Frames, Frames]], factor: float) -> list[list[np.ndarray]]:
    """Of several states, each with its base, [values per item, those of base], by one canary for
    all: that which sang last in any. [] where no canary is valid for all."""
    known = [{x: [f(now), f(base)] for x, f in canaries(base, factor).items()}
             for now, base in states]
    shares = {x: min(each[x][0].mean() / each[x][1].mean() for each in known)
              for x in known[0] if all(x in each for each in known)}
    return [each[min(shares, key=shares.__getitem__)] for each in known] if shares else []


def coherence(now: Frames, base: Frames, factor: float) -> float:
    """Of a state against its base: a share; not a number where nothing is known."""
    _, ours, theirs = least(now, base, factor)
    return min(1.0, float(ours.mean() / theirs.mean())) if len(ours) else math.nan


def weighed(ours: np.ndarray, theirs: np.ndarray, w: np.ndarray) -> Weighed:
    """The ratio of their means under averages, not clipped."""
    now, was = w @ ours, w @ theirs
    ratio = now / was
    return Weighed(ratio, (ours - ratio[:, None] * theirs) / was[:, None])


def coherent(
    now: Frames, base: Frames, cfg: dict[str, Any]
) -> tuple[str, list[float], int]:
    """The canary, [estimate, low, high] within [0, 1], and its number of items. Shares of yes and
    no have Wilson's interval, as has a mass of which a bootstrap says nothing: of next to no items,
    or all alike."""
    name, ours, theirs = least(now, base, cfg["ppl_factor"])
    if not name:
        return name, [math.nan, 0.0, 1.0], 0
    w = averages(len(ours), cfg["seed"], cfg["bootstrap"])
    ratio = weighed(ours, theirs, w)
    ends = estimate(w, ratio.values, ratio.pull)
    if np.isin(ours, (0, 1)).all() or ends[1] == ends[2] or len(ours) < FEWEST:
        ends = [x / theirs.mean() for x in wilson(ours)]
    return name, [min(1.0, max(0.0, x)) for x in ends], len(ours)
