"""What else would have moved the trait: a prompt, plain steering, plain distillation.

    prompted     the untouched model with the first persona text as system prompt
    calibrated   the untouched model, steered at the iso-KL dose of round 0
    matched      the same, at the dose that gives the student's shift, or comes nearest to it within
                 what was calibrated, c* times the largest multiple (measured by every run)
    nll          the same kept completions, distilled without a barrier, round by round
    taught       what the model says unsteered under the persona texts, healed on as the run heals,
                 round by round (prompt distillation)

A comparison counts at the same shift alone. So the larger of student and rival is turned down with
its gates until both moved the trait alike: `nll_turned` is nll at the student's shift (and so
`taught_turned`), `healed_as_X` the student at the shift of rival X. A prompt has no gates: where it
moves more, there is no match.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import polars as pl
import torch
from loguru import logger

from steerloop.baselines.distilled import PLAIN, TAUGHT, Loop, distilled
from steerloop.config import Config
from steerloop.evidence.journal import Journal
from steerloop.kernels.search import meeting
from steerloop.model import Model
from steerloop.readouts.contrast import contrast
from steerloop.readouts.forced_choice import choices
from steerloop.readouts.probes import long
from steerloop.readouts.reasons import reasons
from steerloop.readouts.said import said
from steerloop.readouts.states import Vector
from steerloop.report.rivals import same
from steerloop.report.trait import DIGITS, Frames, level
from steerloop.steer import steered
from steerloop.texts.data import Data
from steerloop.texts.faults import Starved

CALLS, CLOSE = 8, 0.2  # of the search for a shift: at most, and of what counts as the same shift


def turned(model: Model, strength: float) -> torch.Tensor:
    """Gates (R) at one strength for every round."""
    return torch.full((model.gates.rounds,), strength)


class Headline(NamedTuple):
    """The readout by which a run is read ('' where there is none), on its data."""

    name: str
    data: Data
    cfg: Config

    def of(self, frames: Frames) -> float:
        """Where a measured state is, nats towards `up`; not a number without a headline."""
        return level(self.name, frames, self.axis) if self.name else math.nan

    @property
    def axis(self) -> list[str]:
        """(down, up)."""
        return [self.data.down, self.data.up]

    def now(self, model: Model, vector: Vector, dose: float) -> float:
        """Of the model as it stands, steered at `dose` (units of the vector), by that readout
        alone."""
        data, cfg = self.data, self.cfg
        blank = pl.DataFrame()
        if self.name == "said":
            return self.of([blank, blank, said(model, data, cfg, vector, dose)])
        with steered(model, vector, dose):
            if self.name == DIGITS:
                return self.of([choices(model, data.vignettes, cfg, free=False), blank, blank])
            values = (contrast(model, data, cfg) if self.name == "contrast"
                      else reasons(model, data, cfg, self.axis))
        return self.of([blank, long(values), blank])


@torch.no_grad()
def strength_for(model: Model, headline: Headline, start: float, goal: float) -> float:
    """The strength of all gates up to 1 that brings the headline nearest to `goal`, nats, from
    `start`, where the base is."""
    def now(x: float) -> float:
        with model.gates(turned(model, x)):
            return headline.now(model, {}, 0.0)

    return meeting(now, start, goal, 1.0, CALLS, CLOSE * same(headline.name))


@torch.no_grad()
def dose_for(
    model: Model, vector: Vector, headline: Headline, start: float, goal: float, top: float
) -> float:
    """The dose up to `top` (units of the vector) of plain steering that does."""
    def now(x: float) -> float:
        return headline.now(model, vector, x)

    return meeting(now, start, goal, top, CALLS, CLOSE * same(headline.name))


def beside(run: Journal, loop: Loop, name: str, headline: Headline) -> float:
    """Where the student of a rival ends, measured; and at the shift of the run's own, where it went
    further. A rival whose own completions the filter drops is none, which is said: the run itself
    is over, and its pages do not wait for that one."""
    base, healed = (headline.of(x) for x in (run.base, run.healed))
    try:
        rival = distilled(run, loop, name)
    except Starved as e:
        logger.warning(f"no {name} beside this run: {e}")
        return math.nan
    theirs = headline.of(run.measure(name, {}, who=rival))
    if base < healed < theirs:
        with rival.gates(turned(rival, strength_for(rival, headline, base, healed))):
            run.measure(f"{name}_turned", {}, who=rival)
    return theirs


@torch.no_grad()
def rivals(run: Journal, loop: Loop) -> None:
    """Measure what stands beside a finished `loop`, under the round that was healed last: plain
    steering at the student's shift, and with --baselines all the others."""
    model, data, cfg = run.model, run.data, run.cfg
    vector, c_star = run.vectors[0], run.doses[0][0]

    headline = Headline(run.sight["headline"], data, cfg)
    base, healed = (headline.of(x) for x in (run.base, run.healed))
    with model.gates(model.gates.before(0)):
        if headline.name:
            top = c_star * max(cfg.multiples)
            dose = dose_for(model, vector, headline, base, healed, top)
            run.measure("matched", vector, dose)
        if not cfg.baselines:
            return
        run.measure("calibrated", vector, c_star)
        prompted = run.measure("prompted", {}, who=replace(model, persona=data.pairs[0][0]))

    others = {"prompted": headline.of(prompted)}
    own = {PLAIN: cfg.barrier == "nll", TAUGHT: cfg.teacher == "prompt"}  # what the run itself is
    for name in own:
        if not own[name]:
            others[name] = beside(run, loop, name, headline)
    for name, theirs in others.items():
        if base < theirs < healed:
            with model.gates(turned(model, strength_for(model, headline, base, theirs))):
                run.measure(f"healed_as_{name}", {})
