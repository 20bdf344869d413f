"""What else would have moved the trait: a prompt, plain steering, plain distillation.

    prompted     the untouched model with the first persona text as system prompt
    calibrated   the untouched model, steered at the iso-KL dose of round 0
    matched      the same, at the dose that gives the student's shift (measured by every run)
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

from steerloop import lora
from steerloop.config import Config
from steerloop.evaluate import choices
from steerloop.heal import heal
from steerloop.kernels.files import Data
from steerloop.kernels.folder import Folder, work
from steerloop.kernels.search import largest
from steerloop.model import Model, load
from steerloop.steer import Vector, steered


def turned(model: Model, strength: float) -> torch.Tensor:
    """Gates at one strength for every round."""
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
    """The dose up to `top` of plain steering that does."""
    return reaching(lambda x: steered(model, vector, x), model, data, cfg, goal, top)


@torch.no_grad()
def rivals(
    model: Model, data: Data, cfg: Config, run: Folder, measure: Callable[..., dict[str, float]],
    vector: Vector, base: dict[str, float], healed: dict[str, float],
) -> None:
    """Measure what stands beside a finished loop, under the round that was healed last: plain
    steering at the student's shift, and with --baselines all the others.

    `measure(state, round, vector, dose, who)` evaluates and records; `vector` is that of round 0,
    `base` and `healed` what was measured of the untouched model and the student.
    """
    c_star = next(e["c_star"] for e in run.events() if e["stage"] == "sample")
    last, key = model.gates.live - 1, f"{data.down}_nats"
    with model.gates(model.gates.before(0)):
        measure("matched", last, vector,
                dose_for(model, vector, data, cfg, healed[key], 8 * c_star))
        if not cfg.baselines:
            return
        measure("calibrated", last, vector, c_star)
        model.persona = data.pairs[0][0]
        try:
            prompted = measure("prompted", last, {})
        finally:
            model.persona = None

    found = {"prompted": prompted}
    if cfg.barrier != "nll":
        found["nll"] = distilled(cfg, data, run, measure, last, base, healed)
    for name, theirs in found.items():
        if healed[key] < theirs[key] < base[key]:
            with model.gates(turned(model, strength_for(model, data, cfg, theirs[key]))):
                measure(f"healed_as_{name}", last, {})


def distilled(
    cfg: Config, data: Data, run: Folder, measure: Callable[..., dict[str, float]], last: int,
    base: dict[str, float], healed: dict[str, float],
) -> dict[str, float]:
    """Measure plain distillation of every round's kept completions, in a second copy of the model
    (so accelerator memory has to hold the base twice), turned down where it moved more."""
    rival, plain, key = load(cfg), replace(cfg, barrier="nll", tau="0"), f"{data.down}_nats"

    def healed_round(kept: pl.DataFrame, round: int) -> tuple[dict, dict[str, torch.Tensor]]:
        return heal(rival, kept, plain, round, run), lora.fold(rival.layers, rival.gates)

    for round in range(last + 1):
        table = pl.read_parquet(run.path / f"rounds/{round:02d}/completions.parquet")
        stem, kept = f"rounds/{round:02d}/nll", table.filter("train")
        stats, adapter = run.once([f"{stem}.heal", f"{stem}.adapter"], healed_round, kept, round)
        if rival.gates.live == round:
            lora.load_round(rival.layers, rival.gates, adapter)
        run.event("heal_nll", round=round, **stats)
        run.done(work(round))
    nll = measure("nll", last, {}, who=rival)
    if nll[key] < healed[key] < base[key]:
        with rival.gates(turned(rival, strength_for(rival, data, cfg, healed[key]))):
            measure("nll_turned", last, {}, who=rival)
    return nll
