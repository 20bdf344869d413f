"""How far a state moved along the trait, by one readout for all of a run: the headline.

    digits     fall of the log of the mean probability of the foundation `down`
    reasons    likelihood of the reasons of `up` less those of `down`, mean over vignettes
    said       what the base reads in the state's own answers, mean over prompts
    contrast   answers that show the trait less those that show its opposite, mean over items

All in nats towards `up`, against the base on the same items; the last three per token.
"""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from steerloop import UserError
from steerloop.report.estimates import Weighed, shifts
from steerloop.report.sight import OFF, READOUTS, axis_values, columns
from steerloop.report.stats import averages, estimate
from steerloop.texts.foundations import FOUNDATIONS

Frames = list[pl.DataFrame]  # what `evaluate` returns: per vignette, per item, per answer
DIGITS = "digits"


def measured(base: Frames, axis: list[str]) -> list[str]:
    """The readouts that there are of this axis, in the order in which one is the headline."""
    rows, items, said = base
    moral = set(axis) <= set(FOUNDATIONS)
    there = {"digits": moral and len(rows) > 0, "said": len(said) > 0,
             "reasons": moral and all(columns(items, f"reasons_{x}") for x in axis),
             "contrast": bool(columns(items, "contrast_positive"))}
    return [x for x in READOUTS if there[x]]


def unit(readout: str) -> str:
    """What a readout's shifts are in, as text: digits alone are no likelihood of a text."""
    return "nats" if readout == DIGITS else "nats per token"


def need(readout: str, run: Path, base: Frames, first: Path, axis: list[str]) -> None:
    """Whether `run`, with these tables of its base, was measured by what the `first` of several is
    read by. Raises UserError where it was not."""
    if readout and readout not in (known := measured(base, axis)):
        raise UserError(f"{first} is read by {readout}, and {run} was not measured by it "
                        f"({', '.join(known) or 'by nothing'}): name a run first that is read by "
                        "what all of them were measured by, or leave one of the two out")


def values(readout: str, frames: Frames, axis: list[str]) -> np.ndarray:
    """A readout's value per item, nats towards `up`, in order of the items."""
    rows, items, said = frames
    if readout == DIGITS:
        return np.array(axis_values(DIGITS, rows.sort("vignette"), axis))
    if readout == "said":
        return said.sort("prompt_id").select("said_1", "said_2").to_numpy().mean(1)
    return np.array(axis_values(readout, columns(items, f"{readout}_"), axis))


def level(readout: str, frames: Frames, axis: list[str]) -> float:
    """Where a state is, nats: the difference of two levels is a shift."""
    if readout == DIGITS:
        return float(-np.log(frames[0][f"p_{axis[0]}"].mean()))
    return float(values(readout, frames, axis).mean())


def weights(readout: str, base: Frames, cfg: dict[str, Any]) -> np.ndarray:
    """Ways to average the items of a readout (see `averages`)."""
    rows, items, said = base
    known = columns(items, f"{readout}_")
    sizes = {DIGITS: len(rows), "said": len(said)}
    n = sizes[readout] if readout in sizes else len(next(iter(known.values())))
    return averages(n, cfg["seed"], cfg["bootstrap"])


def shift(readout: str, now: Frames, base: Frames, axis: list[str], w: np.ndarray) -> Weighed:
    """How far a state moved against another, nats towards `up`. Raises ValueError where they saw
    other items."""
    if readout == DIGITS:
        down = shifts(now[0], base[0], w)[FOUNDATIONS.index(axis[0])]
        return Weighed(-down.values, -down.pull)
    ours, theirs = (values(readout, x, axis) for x in (now, base))
    if len(ours) != len(theirs):
        raise ValueError(f"the two states were read by {readout} on different items")
    steps = ours - theirs
    means = w @ steps
    return Weighed(means, steps - means[:, None])


def sides(now: Frames, base: Frames) -> dict[str, np.ndarray]:
    """Per contrasted item, how much more likely a state finds answers that show the trait
    (`positive`), and their opposites (`negative`), than another did: nats per token. {} where there
    are none."""
    found = {}
    for side in ("positive", "negative"):
        ours, theirs = (columns(x[1], f"contrast_{side}") for x in (now, base))
        if ours and theirs:
            found[side] = np.subtract(*(next(iter(x.values())) for x in (ours, theirs)))
    return found


def moved(
    readout: str, now: Frames, base: Frames, axis: list[str], cfg: dict[str, Any]
) -> list[float]:
    """The same as [estimate, low, high]; `cfg` has seed and bootstrap."""
    w = weights(readout, base, cfg)
    found = shift(readout, now, base, axis, w)
    return estimate(w, found.values, found.pull)


def asks(cfg: dict[str, Any]) -> bool:
    """Whether a run asks U0. Where another vector than the trait's steers, there is no use: that
    one is what readouts should not see."""
    return cfg["u0"] and cfg["teacher"] not in ("pack", "null")


def unasked(base: Frames, axis: list[str], asked: bool = False) -> dict[str, Any]:
    """What U0 is of a run that does not ask, or `asked` for where there is no use: the first
    readout that was measured, whatever it sees."""
    found, why = measured(base, axis), "nobody asked (--no_u0)"
    if asked:
        why = "not asked of a teacher that the trait's vector does not steer: a run of the same " \
              "trait with --teacher vector says it"
    return {"verdict": OFF, "headline": found[0] if found else "", "readouts": [],
            "why": f"whether the readouts see, and see the vector: {why}"}
