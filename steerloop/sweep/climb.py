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
from steerloop.dose import allowance, collect, solve
from steerloop.evaluate import evaluate
from steerloop.evidence import drift
from steerloop.filter import calibrate
from steerloop.heal import heal
from steerloop.kernels.files import Data
from steerloop.kernels.options import resolve
from steerloop.model import Model, load
from steerloop.report.run import beaten, last_round, states
from steerloop.steer import Vector, extract
from steerloop.sweep.arms import Arm, Sweep
from steerloop.train import train

RIVALS = {"steering": "matched", "nll": "nll", "prompt": "prompted"}  # verdict → state
LIKE = ("coherence", "opening_mass", "sentence_validity", "p_ans_any", "json_is_valid")


@dataclass
class Drawn:
    """The data of a round: vector, dose c*, the KL curve behind it, κ and all judged rows."""

    vector: Vector
    c_star: float
    curve: pl.DataFrame | None
    kappa: float
    table: pl.DataFrame


@dataclass
class Start:
    """What the arms of a group have in common: the base's measures, the filter's limit, and the
    data of round 1."""

    base: dict[str, float]
    limit: float
    drawn: Drawn


def measure(model: Model, data: Data, cfg: Config) -> dict[str, float]:
    """The measures of the model as it stands."""
    return report.measures(*evaluate(model, data, cfg, [resolve(x) for x in cfg.probes]))


def draw(
    model: Model, data: Data, cfg: Config, limit: float, round: int, spent: float = 0.0,
    fixed: float | None = None,
) -> Drawn:
    """The data of a round; `spent` of the KL budget is gone. `fixed` is a dose to keep, as it is,
    instead of solving for one and walking down from it."""
    vector = extract(model, data.pairs, data.contexts, cfg.steer_blocks, cfg.batch_rows)
    if fixed:
        held = replace(cfg, survival=1e-9)  # any survivor ends the walk at κ = 1
        table, _ = collect(model, vector, fixed, data, held, limit, str(round))
        return Drawn(vector, fixed, None, 1.0, table)
    c_star, curve = solve(model, vector, data, cfg, str(round))
    table, kappa = collect(model, vector, c_star, data, cfg, limit, str(round),
                           most=allowance(curve, c_star, spent, cfg))
    return Drawn(vector, c_star, curve, kappa, table)


@torch.no_grad()
def start(data: Data, cfg: Config) -> Start:
    """Round 1 up to its data."""
    model = load(cfg)
    base, limit = measure(model, data, cfg), calibrate(model, data, cfg)
    return Start(base, limit, draw(model, data, cfg, limit, 0))


def shown(now: dict[str, float], base: dict[str, float], data: Data) -> dict[str, float]:
    """The columns of a point that a state's measures fill."""
    return {name: now[f"{f}_nats"] - base[f"{f}_nats"]
            for name, f in (("down", data.down), ("up", data.up))} | {
        "ppl": now["ppl_mundane"] / base["ppl_mundane"]} | {
        k: v for x in LIKE if x in now for k, v in ((x, now[x]), (f"{x}_base", base[x]))}


def whole(data: Data, cfg: Config, arm: Arm) -> Iterator[dict[str, Any]]:
    """Rows of an arm run by train.py: one for every state beside the last round, `family` its
    name, and whether the student beats it."""
    run = train(replace(cfg, **arm.changes))
    found = states(run)
    last, base = last_round(found), found[0]["measures"]
    said = {RIVALS[x["rival"]]: x["beaten"] for x in beaten(run, found)}
    for state, event in last.items():
        yield {"family": state, "round": event["round"] + 1, "ended": "", "dose": event["dose"],
               "score": event["score"][0], "beaten": said.get(state, "")} | shown(
            event["measures"], base, data)


@torch.no_grad()
def climb(
    data: Data, cfg: Config, arm: Arm, first: Start, sweep: Sweep
) -> Iterator[dict[str, Any]]:
    """Rows of one arm: a row a measured round; the last one says how the loop ended, if early.

    With a budget, round 1 is the arm's own: its dose depends on it.
    """
    cfg = replace(cfg, **arm.changes)
    floor = min(cfg.coh_floor, first.base["coherence"] - cfg.coh_drop)
    model, drawn, spent = load(cfg), first.drawn, 0.0
    for round in range(cfg.rounds):
        ended = ""
        try:
            if round or cfg.kl_budget:
                fixed = drawn.kappa * drawn.c_star if arm.fixed_dose and round else None
                drawn = draw(model, data, cfg, first.limit, round, spent, fixed)
            kept = drawn.table.filter("train")
            stats = heal(model, kept, cfg, round)
        except (UserError, FloatingPointError) as e:
            yield {"round": round + 1, "ended": str(e).partition(":")[0]}
            return
        lora.fold(model.layers, model.gates)
        if cfg.kl_budget:
            spent = drift(model, kept, data, cfg, drawn.vector)["kl_base"]
            left = cfg.kl_budget - spent if drawn.curve is None else allowance(
                drawn.curve, drawn.c_star, spent, cfg) - cfg.kappa_min
            ended = "budget spent" if left <= 0 else ""
        if sweep.each or ended or round + 1 == cfg.rounds:
            now = measure(model, data, cfg)
            ended = ended if now["coherence"] >= floor else "below the floor"
            yield {"round": round + 1, "ended": ended, "c_star": drawn.c_star,
                   "kappa": drawn.kappa, "kl_base": spent, "active": stats["active"],
                   "operating_kl": stats["operating_kl"], "pull": stats["pull"]} | shown(
                now, first.base, data)
        if ended:
            return
