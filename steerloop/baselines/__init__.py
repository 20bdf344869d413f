"""What else would have moved the trait: a prompt, plain steering, plain distillation.

    prompted     the untouched model with the first persona text as system prompt
    calibrated   the untouched model, steered at the iso-KL dose of round 0
    matched      the same, at the dose that gives the student's shift, or comes nearest to it within
                 what was calibrated, c* times the largest multiple (measured by every run)
    nll          the same kept completions, distilled without a barrier, round by round

A comparison counts at the same shift alone. So the larger of student and rival is turned down with
its gates until both moved the trait alike: `nll_turned` is nll at the student's shift,
`healed_as_X` the student at the shift of rival X. A prompt has no gates: where it moves more, there
is no match.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import polars as pl
import torch

from steerloop import report
from steerloop.baselines.distilled import Loop, distilled
from steerloop.config import Config
from steerloop.evidence.journal import Journal
from steerloop.kernels.search import largest
from steerloop.model import Model
from steerloop.readouts.forced_choice import choices
from steerloop.readouts.states import Vector
from steerloop.steer import steered
from steerloop.texts.data import Data


def turned(model: Model, strength: float) -> torch.Tensor:
    """Gates (R) at one strength for every round."""
    return torch.full((model.gates.rounds,), strength)


@torch.no_grad()
def reaching(
    state: Callable[[float], AbstractContextManager], model: Model, data: Data, cfg: Config,
    goal: float, top: float,
) -> float:
    """The largest x up to `top` at which log mean p of the `down` foundation is still above `goal`
    nats while `state(x)` is open, by the forced choice alone."""
    def above(x: float) -> bool:
        with state(x):
            rows = choices(model, data.vignettes, cfg, free=False)
        return math.log(rows[f"p_{data.down}"].mean()) > goal

    return largest(above, top / 32, top, calls=8)


def strength_for(model: Model, data: Data, cfg: Config, goal: float) -> float:
    """The strength of all gates that brings the `down` foundation to `goal` nats."""
    return reaching(lambda x: model.gates(turned(model, x)), model, data, cfg, goal, 1.0)


def dose_for(
    model: Model, vector: Vector, data: Data, cfg: Config, goal: float, top: float
) -> float:
    """The dose up to `top` (units of the vector) of plain steering that does."""
    return reaching(lambda x: steered(model, vector, x), model, data, cfg, goal, top)


@torch.no_grad()
def rivals(run: Journal, loop: Loop) -> None:
    """Measure what stands beside a finished `loop`, under the round that was healed last: plain
    steering at the student's shift, and with --baselines all the others."""
    model, data, cfg = run.model, run.data, run.cfg
    vector, c_star = run.vectors[0], run.doses[0][0]

    def moved(frames: list[pl.DataFrame]) -> float:
        return report.measures(*frames)[f"{data.down}_nats"]

    base, healed = moved(run.base), moved(run.healed)
    with model.gates(model.gates.before(0)):
        run.measure("matched", vector,
                    dose_for(model, vector, data, cfg, healed, c_star * max(cfg.multiples)))
        if not cfg.baselines:
            return
        run.measure("calibrated", vector, c_star)
        prompted = run.measure("prompted", {}, who=replace(model, persona=data.pairs[0][0]))

    others = {"prompted": moved(prompted)}
    if cfg.barrier != "nll":
        rival = distilled(run, loop)
        others["nll"] = moved(run.measure("nll", {}, who=rival))
        if others["nll"] < healed < base:
            with rival.gates(turned(rival, strength_for(rival, data, cfg, healed))):
                run.measure("nll_turned", {}, who=rival)
    for name, theirs in others.items():
        if healed < theirs < base:
            with model.gates(turned(model, strength_for(model, data, cfg, theirs))):
                run.measure(f"healed_as_{name}", {})
