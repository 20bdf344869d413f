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
from steerloop.kernels.budget import Ledger
from steerloop.kernels.files import Data
from steerloop.kernels.options import resolve
from steerloop.model import Model, load
from steerloop.report.run import beaten, last_round, states
from steerloop.sample import score
from steerloop.steer import extract
from steerloop.sweep.arms import Arm, Sweep
from steerloop.train import train

RIVALS = {"steering": "matched", "nll": "nll", "prompt": "prompted"}  # verdict → state
LIKE = ("coherence", "opening_mass", "sentence_validity", "p_ans_any", "json_is_valid")


@dataclass
class Drawn:
    """The data of a round: dose c* or the fixed one, κ, and all judged rows."""

    c_star: float
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
    model: Model, data: Data, cfg: Config, limit: float, round: int, ledger: Ledger,
    fixed: float | None = None,
) -> Drawn:
    """The data of a round, within what the `ledger` allows. `fixed` is a dose to keep, as it is,
    instead of solving for one and walking down from it."""
    vector = extract(model, data.pairs, data.contexts, cfg.steer_blocks, cfg.batch_rows)
    if fixed:
        held = replace(cfg, survival=1e-9)  # any survivor ends the walk at κ = 1
        table, kappa = collect(model, vector, fixed, data, held, limit, round)
        return Drawn(fixed, kappa, table)
    c_star, curve = solve(model, vector, data, cfg, str(round))
    if (most := ledger.allows(curve, c_star)) < cfg.kappa_min:
        raise UserError("budget spent")
    table, kappa = collect(model, vector, c_star, data, cfg, limit, round, most)
    return Drawn(c_star, kappa, table)


@torch.no_grad()
def start(data: Data, cfg: Config) -> Start:
    """Round 1 up to its data."""
    model = load(cfg)
    base, limit = measure(model, data, cfg), calibrate(model, data, cfg)
    return Start(base, limit, draw(model, data, cfg, limit, 0, Ledger(cfg)))


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
    ended = "stopped early" if found[-1]["round"] + 1 < cfg.rounds else ""
    said = {RIVALS[x["rival"]]: x["beaten"] for x in beaten(run, found)}
    for state, event in last.items():
        yield {"family": state, "round": event["round"] + 1, "ended": ended, "dose": event["dose"],
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
    model, drawn, ledger, held = load(cfg), first.drawn, Ledger(cfg), None
    for round in range(cfg.rounds):
        try:
            if round or cfg.kl_budget:
                drawn = draw(model, data, cfg, first.limit, round, ledger, held)
            if arm.fixed_dose and round == 0:
                held = drawn.kappa * drawn.c_star
            kept = drawn.table.filter("train")
            stats = heal(model, kept, cfg, round)
        except (UserError, FloatingPointError) as e:
            yield {"round": round + 1, "ended": str(e).partition(":")[0]}
            return
        lora.fold(model.layers, model.gates)
        spent = torch.cat(score(model, kept, cfg, ref=model.gates.before(0))[1]).mean().item()
        ledger.book(drawn.kappa, spent)
        if not sweep.each and round + 1 < cfg.rounds:
            continue
        now = measure(model, data, cfg)
        ended = "" if now["coherence"] >= floor else "below the floor"
        if arm.fixed_dose and 0 < cfg.kl_budget < spent:
            ended = "budget spent"
        yield {"round": round + 1, "ended": ended, "c_star": drawn.c_star, "kappa": drawn.kappa,
               "kl_base": spent, "active": stats["active"] if "kl" in cfg.barrier else None,
               "operating_kl": stats["operating_kl"], "pull": stats["pull"]} | shown(
            now, first.base, data)
        if ended and sweep.each:
            return
