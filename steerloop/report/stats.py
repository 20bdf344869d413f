"""Tables of rows → the numbers that are reported."""

import math
from statistics import fmean, stdev
from typing import Any

import numpy as np
import polars as pl

from steerloop.texts.foundations import FOUNDATIONS


def survival(table: pl.DataFrame) -> list[dict[str, Any]]:
    """Per dose: completions, the share kept, and the reasons of the rest."""
    reasons = pl.col("drop_reason").drop_nulls().value_counts(sort=True)
    return table.group_by("dose").agg(
        n=pl.len(), kept=pl.col("keep").mean(), reasons=reasons).sort("dose").to_dicts()


def profile(rows: pl.DataFrame) -> np.ndarray:
    """Probabilities (vignettes, foundations)."""
    return rows.select(f"p_{f}" for f in FOUNDATIONS).to_numpy()


def paired(now: pl.DataFrame, base: pl.DataFrame) -> np.ndarray:
    """Two evaluations of the same vignettes → profiles (2, v, f), base first, in order of the
    vignettes' texts, so that the order of a file plays no part.

    Raises ValueError when the two states saw other vignettes.
    """
    both = [x.sort("vignette") for x in (base, now)]
    if both[0]["vignette"].to_list() != both[1]["vignette"].to_list():
        raise ValueError("the two states were measured on different vignettes")
    return np.stack([profile(x) for x in both])


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


def t95(freedom: float) -> float:
    """Half a 95 % t-interval in standard errors, by degrees of freedom: between the whole ones by
    chords over their inverses, a little too wide (from 10 on by the expansion of Cornish & Fisher);
    without end below one."""
    freedom = round(freedom, 9)  # a one that rounding made a little less is one
    if freedom <= len(T95) - 1:
        low = int(freedom)
        if low in (0, freedom):
            return T95[low]
        share = (1 / low - 1 / freedom) / (1 / low - 1 / (low + 1))
        return (1 - share) * T95[low] + share * T95[low + 1]
    return Z + (Z**3 + Z) / (4 * freedom) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * freedom**2)


def over_seeds(values: list[float]) -> list[float]:
    """[mean, low, high] over loop seeds, a 95 % t-interval; without end for a single one."""
    n, middle = len(values), fmean(values)
    half = t95(n - 1.0) * (stdev(values) / n**0.5 if n > 1 else 1.0)
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
    return studentised(values, errors(w, pull))


def errors(w: np.ndarray, pull: np.ndarray) -> np.ndarray:
    """Standard errors (b) under averages (b, n), by the pull of each of n rows."""
    spread = (w * pull**2).sum(1) - (w * pull).sum(1) ** 2
    return np.sqrt(np.maximum(spread, 0) / w.shape[1])


def studentised(values: np.ndarray, error: np.ndarray) -> list[float]:
    """[value, low, high] of a statistic (b) with its standard errors (b); the first is the
    sample's, the others are of its resamples."""
    sound = error[1:] > 1e-9
    if error[0] < 1e-9 or not sound.any():
        return [float(values[0])] * 3
    t = (values[1:][sound] - values[0]) / error[1:][sound]
    low, high = np.quantile(t, [0.025, 0.975])
    return [float(values[0]), float(values[0] - high * error[0]), float(values[0] - low * error[0])]
