"""A measured state against base on the same items: how far it moved, at what coherence, and what
became of the answers."""

from typing import Any

import numpy as np
import polars as pl

from steerloop.report.coherence import coherent, least, weighed
from steerloop.report.estimates import Weighed, shifts
from steerloop.report.stats import (
    agresti_min,
    averages,
    errors,
    estimate,
    paired,
    studentised,
    wilson,
)
from steerloop.report.trait import DIGITS, Frames, shift, weights
from steerloop.texts.foundations import FOUNDATIONS

OFF_AXIS = 0.1  # weight of what moved and should not have
LEAST = 0.1  # nats of trait below which a cost per nat means nothing


def against(
    now: Frames, base: Frames, axis: list[str], headline: str, cfg: dict[str, Any]
) -> dict[str, Any]:
    """Every entry that is a number is [estimate, low, high] with a 95 % interval; `cfg` has seed,
    bootstrap and ppl_factor.

    headline   shift by the readout of that name, nats towards `up` (see trait.py); None without one
    moved      what tables and map show, by label: of digits both foundations, else the headline
    coherence  against base, within [0, 1], and `canary`, what it comes from (see coherence.py);
               None and '' where no canary is valid, and score is without it
    score      (headline, or of digits half the clr movement along the axis (down, up) − OFF_AXIS ×
               the mean size of the others') × coherence²; None without a headline
    slope      change of coherence per nat of headline; None where that is less than LEAST
    shift      where there are vignettes, per foundation {"nats", "clr"}: the change of the log of
               the mean probability, and the same centred over the seven foundations (Aitchison's
               centred log-ratio)
    flips      share of vignettes whose most probable foundation changed
    leaves     share of vignettes that chose `down` under base and do not now, less the reverse
    """
    digits = answered(now[0], base[0], axis, cfg) if len(base[0]) else {}
    canary, ends, n = coherent(now, base, cfg)
    found = digits | {"coherence": ends if n else None, "canary": canary, "headline": None,
                      "moved": {}, "score": None, "slope": None}
    if not headline:
        return found
    w = weights(headline, base, cfg)
    trait = gain = shift(headline, now, base, axis, w)
    found["headline"] = estimate(w, trait.values, trait.pull)
    found["moved"] = {f"Δ{axis[1]}": found["headline"]}
    if headline == DIGITS:
        found["moved"] = {f"Δ{f}": digits["shift"][f]["nats"] for f in axis}
        gain = surgical(now[0], base[0], axis, w)
    return found | costs(gain, trait, w, now, base, cfg)


def costs(
    gain: Weighed, trait: Weighed, w: np.ndarray, now: Frames, base: Frames, cfg: dict[str, Any]
) -> dict[str, Any]:
    """Score and slope. Answers are other items than those that the trait was read on: there the
    two errors add up, elsewhere every item pulls on both."""
    name, ours, theirs = least(now, base, cfg["ppl_factor"])
    if not name:
        return {"score": estimate(w, gain.values, gain.pull), "slope": None}
    same = name != "kept" and len(ours) == w.shape[1]
    other = w if same else averages(len(ours), cfg["seed"] + 1, cfg["bootstrap"])
    share = weighed(ours, theirs, other)
    share = Weighed(np.minimum(share.values, 1.0), share.pull * (share.values < 1.0)[:, None])
    score = gain.values * share.values**2
    by_gain = (share.values**2)[:, None] * gain.pull
    by_share = (2 * share.values * gain.values)[:, None] * share.pull
    found: dict[str, Any] = {"score": joined(score, (w, by_gain), (other, by_share), same),
                             "slope": None}
    size = trait.values
    if abs(size[0]) >= LEAST:
        per_nat = (share.values - 1.0) / size
        by_size = -(per_nat / size)[:, None] * trait.pull
        found["slope"] = joined(per_nat, (w, by_size), (other, share.pull / size[:, None]), same)
    return found


def joined(
    values: np.ndarray, one: tuple[np.ndarray, np.ndarray], two: tuple[np.ndarray, np.ndarray],
    same: bool,
) -> list[float]:
    """[value, low, high] of a statistic with two parts, each (averages, pull): of the `same` items,
    or independent."""
    if same:
        return estimate(one[0], values, one[1] + two[1])
    return studentised(values, np.hypot(errors(*one), errors(*two)))


def centred(
    now: pl.DataFrame, base: pl.DataFrame, w: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Centred log-ratios (b, f), and the pull of each vignette on them (b, n, f)."""
    moves = shifts(now, base, w)
    nats, pull = np.stack([x.values for x in moves], -1), np.stack([x.pull for x in moves], -1)
    return nats - nats.mean(-1, keepdims=True), pull - pull.mean(-1, keepdims=True)


def surgical(now: pl.DataFrame, base: pl.DataFrame, axis: list[str], w: np.ndarray) -> Weighed:
    """Half the clr movement along the axis less OFF_AXIS times the mean size of the others'."""
    clr, pull = centred(now, base, w)
    down, up = (FOUNDATIONS.index(x) for x in axis)
    rest = [i for i in range(len(FOUNDATIONS)) if i not in (down, up)]
    gain = (clr[:, up] - clr[:, down]) / 2 - OFF_AXIS * np.abs(clr[:, rest]).mean(1)
    gain_pull = (pull[..., up] - pull[..., down]) / 2 - OFF_AXIS * (
        np.sign(clr[:, None, rest]) * pull[..., rest]).mean(-1)
    return Weighed(gain, gain_pull)


def answered(
    now: pl.DataFrame, base: pl.DataFrame, axis: list[str], cfg: dict[str, Any]
) -> dict[str, Any]:
    """Of the table of vignettes: shift, flips and leaves (closed forms for the two shares)."""
    w = averages(len(base), cfg["seed"], cfg["bootstrap"])
    moves, (clr, pull) = shifts(now, base, w), centred(now, base, w)
    pick = paired(now, base).argmax(-1)
    known = {
        "shift": {f: {"nats": estimate(w, moves[i].values, moves[i].pull),
                      "clr": estimate(w, clr[:, i], pull[..., i])}
                  for i, f in enumerate(FOUNDATIONS)},
        "flips": wilson((pick[0] != pick[1]).astype(float)),
    }
    if axis[0] in FOUNDATIONS:
        down = FOUNDATIONS.index(axis[0])
        gone = (pick[0] == down).astype(float) - (pick[1] == down)
        known["leaves"] = agresti_min(gone)
    return known
