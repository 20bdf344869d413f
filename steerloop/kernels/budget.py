"""What limits a round: the drift from the base that it may add, the completions it may sample."""

import math
from typing import Any

import numpy as np
import polars as pl

from steerloop import UserError

FIRST = 1.1  # of the teacher's root KL: its curve is one of few prompts, and students overshoot
FAR, TINY = math.log(1e6), 1e-12


class Ledger:
    """What has been spent of --kl_budget, and how much a round may add.

    KL grows with the square of a shift, so roots add where shifts line up: a round whose teacher,
    at its largest dose, has a mean KL per token of T is taken to end at √spent + share · √T. T is
    read off the curve that c* was solved on, log in log; `share` is what a student has taken of its
    teacher's root: the most of any round so far, and FIRST before there is one. All KL in nats.
    """

    def __init__(self, cfg: Any) -> None:
        self.cfg, self.spent = cfg, 0.0
        self.shares: list[float] = []
        self.top, self.dose, self.kl = math.nan, np.empty(0), np.empty(0)  # both in logs

    def teacher(self, kappa: float) -> float:
        """T of a round at κ."""
        return float(np.exp(np.interp(math.log(kappa * self.top), self.dose, self.kl)))

    def allows(self, curve: pl.DataFrame, c_star: float) -> float:
        """The most κ that should end within the budget, at most 1; 1 without one (0). `curve` is
        that of `solve`. Raises UserError where the budget is too small for even one round."""
        budget, least = self.cfg.kl_budget, self.cfg.kappa_min
        share = max(self.shares, default=FIRST)
        if not budget:
            return 1.0
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
        return most

    def book(self, kappa: float, spent: float) -> None:
        """The round that was allowed is over, at κ; the student's mean KL to base is `spent`."""
        spent = max(spent, 0.0)  # a KL of nothing can round below 0
        if self.cfg.kl_budget and spent > self.spent:
            took = spent**0.5 - self.spent**0.5
            self.shares.append(took / self.teacher(kappa) ** 0.5)
        self.spent = spent


def starved(table: pl.DataFrame, wanted: int) -> UserError:
    """Of all that was sampled too little was kept: what dropped it, and what to do."""
    why = table["drop_reason"].drop_nulls().value_counts(sort=True).rows()
    return UserError(f"the filter is starved: {table['keep'].sum()} of {len(table)} completions "
                     f"kept, {wanted} needed ({', '.join(f'{n} {x}' for x, n in why)}); lower "
                     "--target_kl or --multiples, raise --ppl_factor or lower --n_keep")
