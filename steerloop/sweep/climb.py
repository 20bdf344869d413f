"""One arm of a sweep: the loop of train.py without its run folder, on a first round that the arms
of a group share (round 1 starts at the base, so its vector, dose and data are the same for all).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
import torch

from steerloop import UserError, lora, report
from steerloop.config import Config
from steerloop.dose import collect, solve
from steerloop.evaluate import evaluate
from steerloop.filter import calibrate
from steerloop.heal import heal
from steerloop.kernels.files import Data
from steerloop.kernels.options import resolve
from steerloop.model import Model, load
from steerloop.steer import extract
from steerloop.sweep.arms import Arm, Sweep

LIKE = ("coherence", "opening_mass", "sentence_validity", "p_ans_any", "json_is_valid")


@dataclass
class Start:
    """What the arms of a group have in common: the base's measures, the filter's limit, and the
    data of round 1 with the dose c* and its shrink factor κ."""

    base: dict[str, float]
    limit: float
    c_star: float
    kappa: float
    table: pl.DataFrame


def measure(model: Model, data: Data, cfg: Config) -> dict[str, float]:
    """The measures of the model as it stands."""
    return report.measures(*evaluate(model, data, cfg, [resolve(x) for x in cfg.probes]))


def draw(
    model: Model, data: Data, cfg: Config, limit: float, round: int, fixed: float | None = None
) -> tuple[pl.DataFrame, float, float]:
    """Rows of a round, c* and κ; `fixed` is a dose to keep instead of solving for one."""
    vector = extract(model, data.pairs, data.contexts, cfg.steer_blocks, cfg.batch_rows)
    c_star = fixed or solve(model, vector, data, cfg, str(round))[0]
    held = replace(cfg, survival=1e-9) if fixed else cfg  # any survivor ends the walk at κ = 1
    table, kappa = collect(model, vector, c_star, data, held, limit, str(round))
    return table, c_star, kappa


@torch.no_grad()
def start(data: Data, cfg: Config) -> Start:
    """Round 1 up to its data."""
    model = load(cfg)
    base, limit = measure(model, data, cfg), calibrate(model, data, cfg)
    table, c_star, kappa = draw(model, data, cfg, limit, 0)
    return Start(base, limit, c_star, kappa, table)


@torch.no_grad()
def climb(
    data: Data, cfg: Config, arm: Arm, first: Start, sweep: Sweep
) -> Iterator[dict[str, Any]]:
    """Rows of one arm: a row a measured round; the last one says how the loop ended, if early."""
    cfg = replace(cfg, **arm.changes)
    floor = min(cfg.coh_floor, first.base["coherence"] - cfg.coh_drop)
    model, table, c_star, kappa = load(cfg), first.table, first.c_star, first.kappa
    for round in range(cfg.rounds):
        try:
            if round:
                fixed = first.kappa * first.c_star if arm.fixed_dose else None
                table, c_star, kappa = draw(model, data, cfg, first.limit, round, fixed)
            stats = heal(model, table.filter("train"), cfg, round)
        except (UserError, FloatingPointError) as e:
            yield {"round": round + 1, "ended": str(e).partition(":")[0]}
            return
        lora.fold(model.layers, model.gates)
        if sweep.each or round + 1 == cfg.rounds:
            now = measure(model, data, cfg)
            sound = now["coherence"] >= floor
            yield {"round": round + 1, "ended": "" if sound else "below the floor"} | {
                name: now[f"{f}_nats"] - first.base[f"{f}_nats"]
                for name, f in (("down", data.down), ("up", data.up))} | {
                "ppl": now["ppl_mundane"] / first.base["ppl_mundane"],
                "c_star": c_star, "kappa": kappa, "active": stats["active"],
                "operating_kl": stats["operating_kl"]} | {
                k: v for x in LIKE if x in now
                for k, v in ((x, now[x]), (f"{x}_base", first.base[x]))}
            if sweep.each and not sound:
                return
