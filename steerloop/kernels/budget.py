"""What limits a round: the drift from the base that it may add, the completions it may sample."""

import math
from typing import Any

import polars as pl

from steerloop import UserError

FIRST = 1.1  # of the teacher's root KL: its curve is one of few prompts, and students overshoot

class Ledger:
    """What has been spent of --kl_budget, and how much a round may add.

    KL grows with the square of a shift, so roots add where shifts line up: a round at κ is taken to
    end at √spent + share · κ · √teacher. `teacher` is the mean KL per token at the largest dose of
    κ = 1, scaled from the measured dose that is nearest to it; `share` what a student has taken of
    that: the most of any round so far, and FIRST before there is one. All KL in nats.
    """

    def __init__(self, cfg: Any) -> None:
        self.cfg, self.spent, self.teacher = cfg, 0.0, math.nan
        self.shares: list[float] = []

    def allows(self, curve: pl.DataFrame, c_star: float) -> float:
        """The most κ that should end within the budget, at most 1; 1 without one (0). `curve` is
        that of `solve`. Raises UserError where the budget is too small for even one round."""
        budget, least = self.cfg.kl_budget, self.cfg.kappa_min
        if not budget:
            return 1.0
        top, share = max(self.cfg.multiples) * c_star, max(self.shares, default=FIRST)
        near = curve.sort((pl.col("dose") / top).log().abs()).row(0, named=True)
        self.teacher = near["mean"] * (top / near["dose"]) ** 2
        most = min(1.0, (budget**0.5 - self.spent**0.5) / (share * self.teacher**0.5))
        if most < least and not self.shares:
            raise UserError(f"--kl_budget {budget:g} is too little for one round: raise it to "
                            f"{1.1 * self.teacher * (share * least) ** 2:.2g}, or lower "
                            "--kappa_min")
        return most

    def book(self, kappa: float, spent: float) -> None:
        """The round that was allowed is over, at κ; the student's mean KL to base is `spent`."""
        spent = max(spent, 0.0)  # a KL of nothing can round below 0
        share = (spent**0.5 - self.spent**0.5) / (kappa * self.teacher**0.5)
        self.shares += [share] if share > 0 else []
        self.spent = spent


def starved(table: pl.DataFrame, wanted: int) -> UserError:
    """Of all that was sampled too little was kept: what dropped it, and what to do."""
    why = table["drop_reason"].drop_nulls().value_counts(sort=True).rows()
    return UserError(f"the filter is starved: {table['keep'].sum()} of {len(table)} completions "
                     f"kept, {wanted} needed ({', '.join(f'{n} {x}' for x, n in why)}); lower "
                     "--target_kl or --multiples, raise --ppl_factor or lower --n_keep")
