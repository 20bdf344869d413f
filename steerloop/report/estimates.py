"""The numbers of verdicts.md, each with its 95 % interval and the rows behind it.

Shares have Wilson's interval. What is averaged over vignettes has that of the studentised bootstrap
(`stats.estimate`): all states of a run are resampled alike, so that each vignette is compared with
itself. Differences and ratios of two states carry the pull of a vignette on both.
"""

import math
from dataclasses import dataclass

import numpy as np
import polars as pl

from steerloop.report.stats import estimate, paired, profile, wilson
from steerloop.report.text import interval


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval, and the rows it comes from."""

    value: float
    low: float
    high: float
    n: int  # with 0 there is no number
    share: bool = False  # a mean of n numbers from 0 to 1
    form: str = "+.2f"

    @property
    def text(self) -> str:
        """For reading."""
        if not self.n:
            return "of none" if self.share else "not defined"
        return f"{self.brief}, n {self.n}"

    @property
    def brief(self) -> str:
        """The same without n."""
        return interval([self.value, self.low, self.high], self.form)


@dataclass(frozen=True)
class Weighed:
    """A statistic under each of the b averages of `stats.averages`, of which the first is the
    sample's, and its influence function there: the pull of each of n vignettes on it."""

    values: np.ndarray  # (b)
    pull: np.ndarray  # (b, n)

    def __sub__(self, other: "Weighed") -> "Weighed":
        return Weighed(self.values - other.values, self.pull - other.pull)

    def __truediv__(self, other: "Weighed") -> "Weighed":
        ratio = self.values / other.values
        return Weighed(ratio, (self.pull - ratio[:, None] * other.pull) / other.values[:, None])

    def __abs__(self) -> "Weighed":
        return Weighed(np.abs(self.values), np.sign(self.values)[:, None] * self.pull)

    def within(self, w: np.ndarray, form: str = "+.2f") -> Estimate:
        """With its interval."""
        return Estimate(*estimate(w, self.values, self.pull), w.shape[1], form=form)


def mean(parts: list[Weighed]) -> Weighed:
    """Of several statistics."""
    return Weighed(np.mean([x.values for x in parts], 0), np.mean([x.pull for x in parts], 0))


def ratio(top: Weighed, bottom: Weighed, w: np.ndarray, least: float = 0.0) -> Estimate:
    """Their ratio; not defined unless the whole interval of `bottom` is beyond `least` in size:
    what is divided by next to nothing can come out as anything."""
    below = bottom.within(w)
    if max(below.low, -below.high) <= least:
        return Estimate(math.nan, -math.inf, math.inf, 0)
    return (top / bottom).within(w, ".2f")


def share(hits: pl.Series) -> Estimate:
    """The share of rows that are true."""
    if not len(hits):
        return Estimate(math.nan, 0.0, 1.0, 0, share=True)
    return Estimate(*wilson(hits.cast(pl.Float64).to_numpy()), len(hits), share=True, form=".2f")


def shifts(now: pl.DataFrame, base: pl.DataFrame, w: np.ndarray) -> list[Weighed]:
    """Change of the log of each foundation's mean probability, nats, in order of FOUNDATIONS."""
    was, is_now = paired(now, base)
    before, after = w @ was, w @ is_now
    return [Weighed(np.log(after[:, i] / before[:, i]),
                    is_now[:, i] / after[:, [i]] - was[:, i] / before[:, [i]])
            for i in range(was.shape[1])]


def entropy(p: np.ndarray) -> np.ndarray:
    """Of distributions along the last axis, nats."""
    return -(p * log(p)).sum(-1)


def log(p: np.ndarray) -> np.ndarray:
    """The logarithm, finite at 0."""
    return np.log(np.maximum(p, 1e-30))


def information(rows: pl.DataFrame, w: np.ndarray) -> Weighed:
    """What an answer says about its vignette: mutual information of the two, nats."""
    p = profile(rows)
    means, own = w @ p, entropy(p)
    whole, left = entropy(means), w @ own
    pull = -log(means) @ p.T - whole[:, None] - (own - left[:, None])
    return Weighed(whole - left, pull)
