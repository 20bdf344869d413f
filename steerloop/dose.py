"""How much to steer: the iso-KL dose c*, and a walk below it until the filter is satisfied.

c* is the coefficient at which the 95th percentile, over rolled-out tokens, of the per-token
KL(steered ‖ unsteered) is `target_kl`. KL alone is necessary, not sufficient: the doses sampled
are κ·α·c*, and κ ≤ 1 shrinks until enough completions survive the filter.
"""

import math

import polars as pl
from loguru import logger

from steerloop import UserError
from steerloop.config import Config, Data
from steerloop.filter import judge
from steerloop.kernels.text import looped, repeated
from steerloop.model import Model
from steerloop.sample import jobs, sample, score
from steerloop.steer import Vector

GRID = [2.0**i for i in range(-3, 4)]
FINE = 6  # steps between the two doses of the grid that bracket the target
REACH = 4  # times the grid may move by a factor of 64


def kl_by_dose(
    model: Model, vector: Vector, data: Data, doses: list[float], cfg: Config, key: str
) -> pl.DataFrame:
    """One batch of rollouts over all doses → per dose the p95 and mean KL(steered ‖ unsteered)
    per token, nats, and `alive`, the share of rollouts that neither loop nor repeat."""
    table = jobs(model, data.prompts[: cfg.dose_prompts], doses)
    table = sample(model, table, vector, cfg, f"{key}|dose", m=cfg.dose_tokens)
    alive = [repeated(x) <= cfg.max_repeat and looped(x) <= cfg.max_loop for x in table["text"]]
    kl = [x.tolist() for x in score(model, table, cfg, vector)[1]]
    table = table.with_columns(pl.Series("kl", kl), pl.Series("alive", alive))
    tokens = pl.col("kl").explode()
    return table.group_by("dose").agg(
        p95=tokens.quantile(0.95, "linear"), mean=tokens.mean(), alive=pl.col("alive").mean()
    ).sort("dose")


def solve(
    model: Model, vector: Vector, data: Data, cfg: Config, key: str
) -> tuple[float, pl.DataFrame]:
    """c* in units of the vector, and the measured curve behind it.

    Candidates are rows of one batch: factors of two, then FINE steps inside the bracket, then log
    KL is interpolated in log dose. The smallest crossing counts: far past it, looping text is
    predictable and KL falls again. Raises UserError when no dose within reach crosses the target.
    """
    start = cfg.dose_start
    for _ in range(REACH):
        curve = kl_by_dose(model, vector, data, [start * x for x in GRID], cfg, key)
        above = (curve["p95"] >= cfg.target_kl).to_list()
        if True in above[1:] and not above[0]:
            break
        start *= 2.0 ** (-6 if above[0] else 6)
    else:
        raise UserError(f"no dose up to {start / 8:.3g} reaches a p95 KL of {cfg.target_kl} nats: "
                        "check --steer_blocks and the persona pair, or move --dose_start")
    low, high = curve["dose"][above.index(True) - 1], curve["dose"][above.index(True)]
    fine = [low * (high / low) ** (i / FINE) for i in range(1, FINE)]
    curve = pl.concat([curve, kl_by_dose(model, vector, data, fine, cfg, key)]).sort("dose")
    points = curve.filter(pl.col("dose") >= low).select("dose", "p95").rows()
    i = next(i for i, (_, kl) in enumerate(points) if kl >= cfg.target_kl)
    (d0, k0), (d1, k1) = points[i - 1], points[i]
    return d0 * (d1 / d0) ** (math.log(cfg.target_kl / k0) / math.log(k1 / k0)), curve


def collect(
    model: Model, vector: Vector, c_star: float, data: Data, cfg: Config, limit: float, key: str
) -> tuple[pl.DataFrame, float]:
    """Sample and filter until n_keep survive. Returns every judged row, and κ.

    First a log bisection of κ in [kappa_min, 1] on small batches, up to the largest κ seen to let
    `survival` through; then the rest there. Survivors of all batches count; column `train` marks
    the n_keep to heal on. Raises UserError with counts and remedy when the budget is spent first.
    """
    bank: list[pl.DataFrame] = []

    def batch(kappa: float, n: int, stage: str) -> float:
        done = sum(map(len, bank))
        doses = [kappa * a * c_star for a in cfg.multiples]
        rows = jobs(model, data.prompts, doses, repeat=done).sample(fraction=1, shuffle=True,
                                                                    seed=cfg.seed + done)[:n]
        rows = sample(model, rows, vector, cfg, f"{key}|{stage}")
        rows = judge(model, rows, data, cfg, limit).with_columns(kappa=pl.lit(kappa))
        bank.append(rows)
        return rows["keep"].mean()

    kappa, good, bad = 1.0, cfg.kappa_min, 1.0
    for _ in range(cfg.walk_steps):
        share = batch(kappa, cfg.walk_rows, "walk")
        logger.info(f"kappa {kappa:.2f}: {share:.0%} of {cfg.walk_rows} completions survive")
        good, bad = (kappa, bad) if share >= cfg.survival else (good, kappa)
        if good >= bad:
            break
        kappa = math.sqrt(good * bad)
    while (kept := sum(x["keep"].sum() for x in bank)) < cfg.n_keep:
        if (tried := sum(map(len, bank))) >= cfg.budget * cfg.n_keep:
            why = pl.concat(bank)["drop_reason"].drop_nulls().value_counts(sort=True).rows()
            raise UserError(f"the filter is starved: {kept} of {tried} completions kept, "
                            f"{cfg.n_keep} needed ({', '.join(f'{n} {x}' for x, n in why)}); lower "
                            "--target_kl or --multiples, raise --ppl_factor or lower --n_keep")
        batch(good, cfg.batch_rows, "sample")
    table = pl.concat(bank).with_row_index("row")
    train = table.filter("keep").sample(cfg.n_keep, shuffle=True, seed=cfg.seed)["row"]
    return table.with_columns(train=pl.col("row").is_in(train.to_list())), good
