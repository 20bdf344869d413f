"""What ends a loop: coherence below that of the base, or a budget of drift that is spent."""

import math
from dataclasses import asdict

import numpy as np
import polars as pl
from loguru import logger

from steerloop import UserError
from steerloop.config import Config
from steerloop.report.coherence import coherent
from steerloop.report.text import interval
from steerloop.report.trait import Frames

FIRST = 1.1  # of the teacher's root KL: its curve is one of few prompts, and students overshoot
FAR, TINY = math.log(1e6), 1e-12


def floor_of(cfg: Config) -> float:
    """The share of the base's coherence below which a student is not taken on."""
    return 1 - cfg.coh_drop


class Bounds:
    """What has been spent of --kl_budget, and how much a round may add.

    KL grows with the square of a shift, so roots add where shifts line up: a round whose teacher,
    at its largest dose, has a mean KL per token of T is taken to end at √spent + share · √T. T is
    read off the curve that c* was solved on, log in log; `share` is what a student has taken of its
    teacher's root: the most of any round so far, and FIRST before there is one. All KL in nats.
    """

    def __init__(self, cfg: Config, base: Frames) -> None:
        self.cfg, self.base, self.spent = cfg, base, 0.0
        self.shares: list[float] = []
        self.top, self.dose, self.kl = math.nan, np.empty(0), np.empty(0)  # both in logs

    def holds(self, state: Frames) -> bool:
        """Whether a measured student is not known to be below the floor of coherence; if it is,
        that is said. Where no canary is valid nothing is known (the run says so at its start)."""
        floor = floor_of(self.cfg)
        canary, ends, n = coherent(state, self.base, asdict(self.cfg))
        low = n > 0 and ends[2] < floor
        if low:
            logger.warning(f"stopped: coherence {interval(ends, '.3f')} ({canary}) is below "
                           f"{floor:.3f}")
        return not low

    def teacher(self, kappa: float) -> float:
        """T of a round at κ, nats."""
        return float(np.exp(np.interp(math.log(kappa * self.top), self.dose, self.kl)))

    def allows(self, c_star: float, curve: pl.DataFrame | None) -> tuple[float, float] | None:
        """The least and the most κ for a round: kappa_min and 1, or the share of c_star (units of
        the vector) that should end within the budget; None where not even kappa_min would. `curve`
        is that of `dose`; without one the dose is held, whatever it does: κ is 1, until the budget
        is spent. Raises UserError where the budget is too small for even one round."""
        budget, least = self.cfg.kl_budget, self.cfg.kappa_min
        if curve is None:
            return self.within((1.0, 1.0), self.spent <= budget or not budget)
        share = max(self.shares, default=FIRST)
        if not budget:
            return least, 1.0
        self.top = max(self.cfg.multiples) * c_star
        dose, kl = (np.log(curve.sort("dose")[x].to_numpy().clip(TINY)) for x in ("dose", "mean"))
        ends = np.array([-FAR, FAR])  # quadratic beyond what was measured
        self.dose = np.r_[dose[0] + ends[0], dose, dose[-1] + ends[1]]
        self.kl = np.maximum.accumulate(np.r_[kl[0] + 2 * ends[0], kl, kl[-1] + 2 * ends[1]])
        left = max(budget**0.5 - self.spent**0.5, TINY) / share
        reach = np.interp(2 * math.log(left), self.kl, self.dose)
        most = min(1.0, math.exp(reach) / self.top)
        if most < least and not self.shares:
            raise UserError(f"--kl_budget {budget:g} is too little for one round: raise it to "
                            f"{1.1 * share**2 * self.teacher(least):.2g}, or lower --kappa_min")
        return self.within((least, most), most >= least)

    def within(self, kappas: tuple[float, float], fits: bool) -> tuple[float, float] | None:
        """These κ if they fit the budget; if not, that is said."""
        if not fits:
            logger.warning(f"stopped: {self.spent:.3f} nats spent, no dose fits --kl_budget "
                           f"{self.cfg.kl_budget:g}")
        return kappas if fits else None

    def book(self, kappa: float, went: dict[str, float]) -> None:
        """The round that was allowed is over, at κ; `went` is the student's `drift`, nats."""
        spent = max(went["kl_base"], 0.0)  # a KL of nothing can round below 0
        if self.cfg.kl_budget and spent > self.spent and len(self.dose):
            took = spent**0.5 - self.spent**0.5
            self.shares.append(took / self.teacher(kappa) ** 0.5)
        self.spent = spent
