"""How much to steer: the iso-KL dose c*, and a walk below it until the filter is satisfied.

c* is the coefficient at which the 95th percentile, over rolled-out tokens, of the per-token
KL(steered ‖ unsteered) is `target_kl`. KL alone is necessary, not sufficient: the doses sampled
are κ·α·c*, and κ ≤ 1 shrinks until enough completions survive the filter.
"""

from dataclasses import replace

import polars as pl

from steerloop.config import Config
from steerloop.kernels.search import bisected, crossing
from steerloop.model import Model
from steerloop.readouts.states import Vector
from steerloop.sample import completion_losses, jobs, sample
from steerloop.teacher import taught_at
from steerloop.texts.data import Data
from steerloop.texts.faults import alive, starved

WALK = 5  # most steps of the survival walk
Span = tuple[float, float]  # the least and the most κ


def kl_by_dose(
    model: Model, vector: Vector, data: Data,
    doses: list[float], cfg: Config, key: str,
) -> pl.DataFrame:
    """One batch of rollouts over all doses → per dose the p95 and mean KL(steered ‖ unsteered)
    per token, nats, and `alive`, the share of rollouts that neither loop nor repeat."""
    rollout = replace(cfg, max_new_tokens=cfg.dose_tokens)
    table = jobs(model, data.prompts[: cfg.dose_prompts], doses)
    table = sample(model, table, vector, rollout, f"{key}|dose")
    _, kls = completion_losses(model, table, cfg, vector)
    table = table.with_columns(
        kl=pl.Series([kl.tolist() for kl in kls]),
        alive=pl.Series(alive(table["text"], cfg)),
    )
    tokens = pl.col("kl").explode()
    curve = table.group_by("dose").agg(
        p95=tokens.quantile(0.95, "linear"),
        mean=tokens.mean(),
        alive=pl.mean("alive"),
    )
    return curve.sort("dose")


def dose(
    model: Model, vector: Vector, data: Data, cfg: Config, key: str
) -> tuple[float, pl.DataFrame]:
    """c* in units of the vector, to three digits, and the measured curve behind it.

    The smallest crossing counts: far past it looping text is predictable and KL falls again.
    Raises UserError when no dose within reach brings the KL to the target.
    """
    curves = []

    def p95(doses: list[float]) -> list[float]:
        curves.append(kl_by_dose(model, vector, data, doses, cfg, key))
        return curves[-1]["p95"].to_list()

    c_star = crossing(p95, cfg.target_kl, "check --steer_blocks, the persona pairs, --target_kl")
    return float(f"{c_star:.3g}"), pl.concat(curves).sort("dose")


def walk(batches: list[pl.DataFrame], kappas: Span, cfg: Config) -> tuple[float, bool]:
    """κ to sample at next, and whether it is settled: by a log bisection between the least and the
    most κ, on the judged batches so far, the largest seen to let the share `survival` through."""
    passed = [batch["keep"].mean() >= cfg.survival for batch in batches]
    return bisected(passed, *kappas, WALK)


def short(batches: list[pl.DataFrame], kappas: Span, cfg: Config) -> bool:
    """Whether κ is not settled yet, or less than n_keep completions are kept."""
    _, settled = walk(batches, kappas, cfg)
    kept = sum(batch["keep"].sum() for batch in batches)
    return not settled or kept < cfg.n_keep


def ask(
    model: Model,
    data: Data,
    cfg: Config,
    batches: list[pl.DataFrame],
    c_star: float,
    kappas: Span,
) -> tuple[pl.DataFrame, str]:
    """The `jobs` of the next batch, with their κ, and the name of its stage: "walk" or "sample".

    Prompts and doses are drawn anew each time. Raises UserError with counts and remedy when
    --budget runs out.
    """
    kappa, settled = walk(batches, kappas, cfg)
    drawn = sum(len(batch) for batch in batches)
    if settled and drawn >= cfg.budget * cfg.n_keep:
        raise starved(pl.concat(batches), cfg.n_keep)
    doses = [multiple * taught_at(cfg, kappa * c_star) for multiple in cfg.multiples]
    rows = jobs(model, data.prompts, doses, copy=len(batches))
    size = min(cfg.batch_rows if settled else cfg.walk_rows, len(rows))
    rows = rows.sample(size, shuffle=True, seed=cfg.seed + drawn)
    return rows.with_columns(kappa=pl.lit(kappa)), "sample" if settled else "walk"


def choose(
    batches: list[pl.DataFrame], kappas: Span, cfg: Config
) -> tuple[pl.DataFrame, float]:
    """Every judged row, survivors of the walk among them, and κ (a share of c*). Column `train`
    marks the n_keep to heal on."""
    kappa, _ = walk(batches, kappas, cfg)
    table = pl.concat(batches).with_row_index("row")
    train = table.filter("keep").sample(cfg.n_keep, shuffle=True, seed=cfg.seed)
    chosen = pl.col("row").is_in(train["row"].to_list())
    return table.with_columns(train=chosen), kappa
