"""How much to steer: the iso-KL dose c*, and a walk below it until the filter is satisfied.

c* is the coefficient at which the 95th percentile, over rolled-out tokens, of the per-token
KL(steered ‖ unsteered) is `target_kl`. KL alone is necessary, not sufficient: the doses sampled
are κ·α·c*, and κ ≤ 1 shrinks until enough completions survive the filter.
"""

import polars as pl
from loguru import logger

from steerloop.config import Config
from steerloop.filter import judge
from steerloop.kernels.budget import starved
from steerloop.kernels.files import Data
from steerloop.kernels.folder import NOWHERE, Nowhere, work
from steerloop.kernels.search import crossing, largest
from steerloop.kernels.text import looped, repeated
from steerloop.model import Model
from steerloop.sample import jobs, sample, score
from steerloop.steer import Vector

WALK = 5  # most steps of the survival walk


def kl_by_dose(
    model: Model, vector: Vector, data: Data, doses: list[float], cfg: Config, key: str
) -> pl.DataFrame:
    """One batch of rollouts over all doses → per dose the p95 and mean KL(steered ‖ unsteered)
    per token, nats, and `alive`, the share of rollouts that neither loop nor repeat."""
    table = jobs(model, data.prompts[: cfg.dose_prompts], doses)
    table = sample(model, table, vector, cfg, f"{key}|dose", m=cfg.dose_tokens)
    alive = [repeated(x) <= cfg.max_repeat and looped(x) <= cfg.max_loop for x in table["text"]]
    kl = [x.tolist() for x in score(model, table, cfg, vector)[1]]
    tokens = pl.col("kl").explode()
    return table.with_columns(kl=pl.Series(kl), alive=pl.Series(alive)).group_by("dose").agg(
        p95=tokens.quantile(0.95, "linear"), mean=tokens.mean(), alive=pl.col("alive").mean()
    ).sort("dose")


def solve(
    model: Model, vector: Vector, data: Data, cfg: Config, key: str
) -> tuple[float, pl.DataFrame]:
    """c* in units of the vector, and the measured curve behind it.

    The smallest crossing counts: far past it looping text is predictable and KL falls again.
    Raises UserError when no dose within reach brings the KL to the target.
    """
    curves = []

    def p95(doses: list[float]) -> list[float]:
        curves.append(kl_by_dose(model, vector, data, doses, cfg, key))
        return curves[-1]["p95"].to_list()

    c_star = crossing(p95, cfg.target_kl, "check --steer_blocks, the persona pairs, --target_kl")
    return c_star, pl.concat(curves).sort("dose")


def collect(
    model: Model, vector: Vector, c_star: float, data: Data, cfg: Config, limit: float,
    round: int, most: float = 1.0, run: Nowhere = NOWHERE,
) -> tuple[pl.DataFrame, float]:
    """Sample and filter until n_keep survive. Returns every judged row, and κ: a share of c*.

    A log bisection of κ in [kappa_min, most] on small batches finds the largest κ seen to let
    `survival` through; the rest is sampled there. Survivors of all batches count; column `train`
    marks the n_keep to heal on. A `run` folder keeps each batch, to go on from after an
    interruption. Raises UserError with counts and remedy when --budget runs out.
    """
    bank = []

    def batch(kappa: float, n: int, stage: str) -> float:
        done, doses = sum(map(len, bank)), [kappa * a * c_star for a in cfg.multiples]
        rows = jobs(model, data.prompts, doses, copy=done)
        rows = rows.sample(min(n, len(rows)), shuffle=True, seed=cfg.seed + done)
        rows = run.once(f"{work(round)}/batch-{len(bank)}", lambda: judge(
            model, sample(model, rows, vector, cfg, f"{round}|{stage}"), data, cfg, limit))
        bank.append(rows.with_columns(kappa=pl.lit(kappa)))
        run.survived(bank, cfg.n_keep)
        return rows["keep"].mean()

    def survives(kappa: float) -> bool:
        share = batch(kappa, cfg.walk_rows, "walk")
        logger.info(f"at {kappa:.2f} of c*: {share:.0%} of {cfg.walk_rows} pass the filter")
        return share >= cfg.survival

    kappa = largest(survives, cfg.kappa_min, most, calls=WALK)
    while sum(x["keep"].sum() for x in bank) < cfg.n_keep:
        if sum(map(len, bank)) >= cfg.budget * cfg.n_keep:
            raise starved(pl.concat(bank), cfg.n_keep)
        batch(kappa, cfg.batch_rows, "sample")
    table = pl.concat(bank).with_row_index("row")
    train = table.filter("keep").sample(cfg.n_keep, shuffle=True, seed=cfg.seed)["row"]
    return table.with_columns(train=pl.col("row").is_in(train.to_list())), kappa
