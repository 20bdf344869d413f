"""What limits a round: the drift from the base that it may add, the completions it may sample."""

import math
from typing import Any

import polars as pl

from steerloop import UserError


def allowance(curve: pl.DataFrame, c_star: float, spent: float, cfg: Any) -> float:
    """The most κ for which the round should end within --kl_budget; 1 without a budget (0).

    KL grows with the square of a shift, so roots add where shifts line up: √B ≥ √spent + √teacher,
    where the teacher's mean KL per token at the largest dose sampled is scaled from the measured
    dose that is nearest to it. All in nats; `spent` is the student's mean KL to base now.
    Raises UserError where nothing is spent and the budget is too small for a round.
    """
    top = max(cfg.multiples) * c_star
    near = curve.sort((pl.col("dose") / top).log().abs()).row(0, named=True)
    teacher = near["mean"] * (top / near["dose"]) ** 2
    most = min(1.0, ((cfg.kl_budget or math.inf) ** 0.5 - max(spent, 0) ** 0.5) / teacher**0.5)
    if most < cfg.kappa_min and not spent:
        raise UserError(f"--kl_budget {cfg.kl_budget:g} is too little for one round: raise it to "
                        f"{1.1 * teacher * cfg.kappa_min**2:.2g}, or lower --kappa_min")
    return most


def starved(table: pl.DataFrame, wanted: int) -> UserError:
    """Of all that was sampled too little was kept: what dropped it, and what to do."""
    why = table["drop_reason"].drop_nulls().value_counts(sort=True).rows()
    return UserError(f"the filter is starved: {table['keep'].sum()} of {len(table)} completions "
                     f"kept, {wanted} needed ({', '.join(f'{n} {x}' for x, n in why)}); lower "
                     "--target_kl or --multiples, raise --ppl_factor or lower --n_keep")
