"""Arms of a group once more where two of them are equal: equally far from the base, or with the
trait moved as far. The gates of the one that went further are turned down until they are."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import polars as pl
import torch

from steerloop.baselines import Headline, turned
from steerloop.config import Config
from steerloop.evaluate import evaluate
from steerloop.evidence.drift import kl_to_base
from steerloop.kernels.search import meeting
from steerloop.lora import fold
from steerloop.model import Model, load
from steerloop.sweep.arms import Arm, Sweep
from steerloop.sweep.climb import Climb, climb
from steerloop.texts.data import Data

KL = "kl"
CALLS, CLOSE = 5, 0.05  # of the search for a strength: at most, and share of the way
Row = dict[str, Any]


def setting(at: str, other: str) -> str:
    """How a point names where it was measured."""
    return f"at the {at} of {other}"


def column(at: str) -> str:
    """Which column of a point says how far from the base it is, nats."""
    return "kl_own" if at == KL else "shift"


def further(one: Row, other: Row, at: str) -> tuple[Row, Row] | None:
    """The point that went further, and the other one; None where that did not move at all."""
    if "items" not in one or "items" not in other:
        return None
    near, far = sorted((one, other), key=lambda x: x[column(at)])
    return (far, near) if near[column(at)] > 0 else None


def ruler(
    model: Model, headline: Headline, answers: pl.DataFrame, at: str
) -> Callable[[float], float]:
    """Strength of all gates → how far the student then is, nats: by "kl" the root of its KL to base
    on the base's own `answers`, which is close to linear, else where the headline finds it."""
    def measured(strength: float) -> float:
        with torch.no_grad(), model.gates(turned(model, strength)):
            return (math.sqrt(kl_to_base(model, answers, headline.cfg)) if at == KL
                    else headline.now(model, {}, 0.0))

    return measured


@torch.no_grad()
def turned_down(
    data: Data, cfg: Config, arm: Arm, sweep: Sweep, shared: dict[str, Any], other: Row, at: str
) -> Row:
    """What a student is like, turned down to where `other` is; its Δ is made again where `shared`
    does not have it."""
    cfg = replace(cfg, **arm.changes)
    if f"delta {arm.family}" not in shared:
        climb(data, cfg, arm, sweep, shared)
    run, model = Climb(data, cfg, arm, sweep, shared), load(cfg)
    run.first("evaluate", evaluate, model, data, cfg)
    fold(model.layers, model.gates, shared[f"delta {arm.family}"])
    headline = Headline(other["read_by"], data, cfg)
    start = 0.0 if at == KL else headline.of(run.unmoved)
    goal = math.sqrt(other["kl_own"]) if at == KL else start + other["shift"]
    now = ruler(model, headline, run.unmoved[2], at)
    strength = meeting(now, start, goal, 1.0, CALLS, CLOSE * (goal - start))
    with model.gates(turned(model, strength)):
        frames = evaluate(model, data, cfg)
        return {"round": 1, "ended": "", "strength": strength} | run.row(model, frames)
