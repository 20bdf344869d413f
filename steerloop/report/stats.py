"""Tables of rows → the numbers that are reported."""

import math
from functools import partial
from statistics import fmean, stdev
from typing import Any

import numpy as np
import polars as pl

from steerloop.texts.foundations import FOUNDATIONS, H


def measures(rows: pl.DataFrame, items: pl.DataFrame) -> dict[str, float]:
    """Means over the two frames of `evaluate`. `<foundation>_nats` is the log of a mean p,
    `ppx_json` and `ppl_mundane` are perplexities; coherence is the smaller of p_ans_any and
    json_is_valid. Where people rated the vignettes, `overlap` is the mean mass that the answer and
    their ratings have in common, 1 at best."""
    mean = rows.select(pl.col(pl.Float64).mean()).row(0, named=True)
    extra = dict(items.group_by("measure").agg(pl.mean("value")).sort("measure").rows())
    if set(H) <= set(rows.columns):
        people = rows.select(H).to_numpy()
        shared = np.minimum(profile(rows), people)[people.sum(1) > 0]
        if len(shared):
            extra["overlap"] = float(shared.sum(1).mean())
    return ({f"{f}_nats": math.log(mean[f"p_{f}"]) for f in FOUNDATIONS}
            | {k: mean[k] for k in ("p_ans_any", "json_is_valid", "top1")}
            | {"coherence": min(mean["p_ans_any"], mean["json_is_valid"]),
               "ppx_json": math.exp(mean["scaffold_nll"]),
               "ppl_mundane": math.exp(extra.pop("mundane_nll"))} | extra)


def survival(table: pl.DataFrame) -> list[dict[str, Any]]:
    """Per dose: completions, the share kept, and the reasons of the rest."""
    reasons = pl.col("drop_reason").drop_nulls().value_counts(sort=True)
    return table.group_by("dose").agg(
        n=pl.len(), kept=pl.col("keep").mean(), reasons=reasons).sort("dose").to_dicts()


def profile(rows: pl.DataFrame) -> np.ndarray:
    """Probabilities (vignettes, foundations)."""
    return rows.select(f"p_{f}" for f in FOUNDATIONS).to_numpy()


OFF_AXIS = 0.1  # weight of what moved and should not have
LEAST = 0.1  # nats of trait below which a cost per nat means nothing


def paired(now: pl.DataFrame, base: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Two evaluations of the same vignettes → profiles (2, v, f) and coherence terms (2, v, 2),
    in order of the vignettes' texts, so that the order of a file plays no part.

    Raises ValueError when the two states saw other vignettes.
    """
    both = [x.sort("vignette") for x in (base, now)]
    if both[0]["vignette"].to_list() != both[1]["vignette"].to_list():
        raise ValueError("the two states were measured on different vignettes")
    return (np.stack([profile(x) for x in both]),
            np.stack([x.select("p_ans_any", "json_is_valid").to_numpy() for x in both]))


def compare(
    now: pl.DataFrame, base: pl.DataFrame, axis: list[str], seed: int, resamples: int
) -> dict[str, Any]:
    """A state against base on the same vignettes; every entry is [estimate, low, high].

    shift   per foundation {"nats", "clr"}: the change of the log of the mean probability, and the
            same centred over the seven foundations (Aitchison's centred log-ratio)
    score   nats: (half the clr movement along the axis (down, up) − OFF_AXIS × the mean size of the
            others') × coherence²; coherence is the smaller mean of p_ans_any and json_is_valid
    slope   change of coherence per nat that `down` fell; None where it moved by less than LEAST
    flips   share of vignettes whose most probable foundation changed
    leaves  share of vignettes that chose `down` under base and do not now, less the reverse

    Intervals are 95 %: bootstraps over vignettes, paired and seeded (see `estimate`), and closed
    forms for the two shares.
    """
    pair, sound = paired(now, base)
    n = pair.shape[1]
    w = averages(n, seed, resamples)
    means = w @ pair  # (2, b, f)
    nats = np.log(means[1]) - np.log(means[0])
    pull = pair[1] / means[1][:, None] - pair[0] / means[0][:, None]  # of a vignette, (b, n, f)
    clr, clr_pull = (x - x.mean(-1, keepdims=True) for x in (nats, pull))
    interval = partial(estimate, w)

    down, up = (FOUNDATIONS.index(x) for x in axis)
    rest = [i for i in range(len(FOUNDATIONS)) if i not in (down, up)]
    gain = (clr[:, up] - clr[:, down]) / 2 - OFF_AXIS * np.abs(clr[:, rest]).mean(1)
    gain_pull = (clr_pull[..., up] - clr_pull[..., down]) / 2 - OFF_AXIS * (
        np.sign(clr[:, None, rest]) * clr_pull[..., rest]).mean(-1)
    least = [x[..., (w[0] @ x).argmin()] for x in sound]  # of a vignette, in both states
    was, coherence = (w @ x for x in least)
    coherence_pull = least[1] - coherence[:, None]
    score_pull = (coherence**2)[:, None] * gain_pull + (
        2 * coherence * gain)[:, None] * coherence_pull

    size, slope = -nats[:, down], None
    if abs(size[0]) >= LEAST:
        per_nat = (coherence - was) / size
        pulled = coherence_pull - (least[0] - was[:, None]) + per_nat[:, None] * pull[..., down]
        slope = interval(per_nat, pulled / size[:, None])

    pick = pair.argmax(-1)
    flipped = (pick[0] != pick[1]).astype(float)
    gone = (pick[0] == down).astype(float) - (pick[1] == down)
    return {
        "shift": {f: {"nats": interval(nats[:, i], pull[..., i]),
                      "clr": interval(clr[:, i], clr_pull[..., i])}
                  for i, f in enumerate(FOUNDATIONS)},
        "score": interval(gain * coherence**2, score_pull),
        "slope": slope,
        "flips": wilson(flipped),
        "leaves": agresti_min(gone),
    }


def averages(n: int, seed: int, resamples: int) -> np.ndarray:
    """Ways to average n rows, (b, n): the sample's, then those of its resamples."""
    resampled = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples) / n
    return np.concatenate([np.full((1, n), 1 / n), resampled])


def difference(steps: np.ndarray, seed: int, resamples: int) -> list[float]:
    """[mean, low, high] of paired differences: by the same bootstrap, or in closed form where they
    are those of yes-or-no values, among which the bootstrap misjudges rare ones."""
    if np.isin(steps, (-1, 0, 1)).all():
        return agresti_min(steps)
    w = averages(len(steps), seed, resamples)
    means = w @ steps
    return estimate(w, means, steps - means[:, None])


Z = 1.959964
T95 = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # by n − 1


def over_seeds(values: list[float]) -> list[float]:
    """[mean, low, high] over loop seeds, a 95 % t-interval; without end for a single one."""
    n, middle = len(values), fmean(values)
    half = T95[min(n, len(T95)) - 1] * (stdev(values) / n**0.5 if n > 1 else 1.0)
    return [middle, middle - half, middle + half]


def wilson(hits: np.ndarray) -> list[float]:
    """[share, low, high] of yes-or-no values (Wilson 1927): sound for rare events, too."""
    n, p = len(hits), hits.mean()
    middle, width = p + Z**2 / (2 * n), Z * np.sqrt(p * (1 - p) / n + (Z / (2 * n)) ** 2)
    return [float(p), *((middle + side * width) / (1 + Z**2 / n) for side in (-1, 1))]


def agresti_min(steps: np.ndarray) -> list[float]:
    """[mean, low, high] of paired differences -1, 0, 1 (Agresti & Min 2005)."""
    n, total = len(steps) + 2, steps.sum()
    spread = np.sqrt(np.abs(steps).sum() + 1 - total**2 / n) / n
    return [float(steps.mean()), float(total / n - Z * spread), float(total / n + Z * spread)]


def estimate(w: np.ndarray, values: np.ndarray, pull: np.ndarray) -> list[float]:
    """[value, low, high] by the studentised bootstrap (Efron & Tibshirani 1993, ch. 12).

    `values` (b) are a statistic under the averages `w` (b, n), of which the first is the sample and
    the others its resamples; `pull` (b, n) is its influence function there, whose weighted variance
    over n is the squared standard error. Plain percentiles of means of skewed probabilities cover
    some 92 % where these cover 95. Without spread the interval has no width.
    """
    n = w.shape[1]
    spread = (w * pull**2).sum(1) - (w * pull).sum(1) ** 2
    error = np.sqrt(np.maximum(spread, 0) / n)
    sound = error[1:] > 1e-9
    if error[0] < 1e-9 or not sound.any():
        return [float(values[0])] * 3
    t = (values[1:][sound] - values[0]) / error[1:][sound]
    low, high = np.quantile(t, [0.025, 0.975])
    return [float(values[0]), float(values[0] - high * error[0]), float(values[0] - low * error[0])]
