"""One arm of a sweep: the loop of train.py under a recorder that keeps nothing on a disk.

Arms of a group differ in how they heal, so what comes before the first heal (the base's measures,
the filter's limit, the first vector, dose and completions) is made once and shared.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import polars as pl
from torch import Tensor

from steerloop import UserError, report
from steerloop.config import Config
from steerloop.evidence.drift import kl_to_base
from steerloop.model import Model, load
from steerloop.readouts.states import Vector
from steerloop.report.against import against
from steerloop.report.arms import costs, steps_between
from steerloop.report.run import beaten, headline_of, last_round, states
from steerloop.report.trait import Frames, unasked
from steerloop.runfolder.recorder import Recorder
from steerloop.sweep.arms import Arm, Sweep
from steerloop.texts.data import Data, read_data
from steerloop.train import loop, train

# Rival → state:
RIVALS = {"steering": "matched", "nll": "nll", "taught": "taught", "prompt": "prompted"}
SHARED = ("evaluate", "calibrate", "extract", "sample", "filter")  # as is dose, of the first round
LIKE = ("coherence", "opening_mass", "sentence_validity", "p_ans_any", "json_is_valid")


def shown(
    now: dict[str, float], base: dict[str, float], found: dict[str, Any]
) -> dict[str, float]:
    """The columns of a point that a state's measures fill, and what it is against base (see
    `against`): `shift` by the headline, and what of it tables show."""
    columns = {name: ends[0] for name, ends in found["moved"].items()}
    if found["headline"]:
        columns["shift"] = found["headline"][0]
    columns["ppl"] = now["ppl_mundane"] / base["ppl_mundane"]
    for measure in LIKE:
        if measure in now:
            columns[measure], columns[f"{measure}_base"] = now[measure], base[measure]
    return columns


class Climb(Recorder):
    """Notes a row a round of one arm. `shared` has what the arms of a group have in common, and is
    filled by the first of them; an arm with a budget draws a first round of its own, since its dose
    depends on it."""

    def __init__(
        self, data: Data, cfg: Config, arm: Arm, sweep: Sweep, shared: dict[str, Any]
    ) -> None:
        self.data, self.cfg, self.arm, self.sweep, self.shared = data, cfg, arm, sweep, shared
        self.round, self.batches, self.held = -1, 0, 0.0
        self.base: dict[str, float] = {}
        self.unmoved: list[pl.DataFrame] = []  # the base as it was measured
        self.now: dict[str, Any] = {}  # of the round under way
        self.rows: list[dict[str, Any]] = []
        self.delta: dict[str, Tensor] = {}  # of the heal that was last

    def rounds(self, rounds: int) -> Iterator[int]:
        for self.round in range(rounds):
            self.batches, self.now = 0, {"round": self.round + 1, "ended": ""}
            yield self.round

    def call(self, stage: Callable[..., Any], *args: Any) -> Any:
        name = stage.__name__
        if name == "dose":
            return self.dose(stage, *args)
        if name == "choose":
            table, self.now["kappa"] = stage(*args)
            self.now["kept"] = table["keep"].mean()
            if self.arm.fixed_dose and self.round == 0:
                self.held = self.now["kappa"] * self.now["c_star"]
            return table, self.now["kappa"]
        if name == "heal":
            stats, delta = stage(*self.piloted(stage, *args))
            self.delta = delta
            self.now |= {"operating_kl": stats["operating_kl"], "pull": stats["pull"],
                         "active": stats["active"] if "kl" in self.cfg.barrier else None}
            return stats, delta
        if name == "drift":
            return self.drift(*args)
        if name == "evaluate" and self.round >= 0:
            return self.evaluate(stage, *args)
        if name in SHARED:
            return self.first(name, stage, *args)
        return stage(*args)

    def first(self, name: str, stage: Callable[..., Any], *args: Any) -> Any:
        """What the arms share of the first round is made by the first of them."""
        self.batches += name == "filter"
        drawn = name in ("sample", "filter")
        own = self.round > 0 or (self.cfg.kl_budget and drawn)
        whose = self.arm.source if drawn else self.arm.vector if name in ("extract", "dose") else ""
        key = f"{name} {whose} {self.round} {self.batches}"
        if own or key not in self.shared:
            made = stage(*args)
            if own:
                return made
            self.shared[key] = made
        if name == "evaluate":
            self.unmoved = self.shared[key]
            self.base = report.measures(self.unmoved, self.unmoved, self.cfg.ppl_factor)
        return self.shared[key]

    def piloted(
        self, stage: Callable[..., Any], model: Model, kept: pl.DataFrame, cfg: Config, *rest: Any
    ) -> tuple[Any, ...]:
        """What to heal with: where the arm asks for it, τ as a share of the mean A_row of the last
        epoch of a heal without a barrier."""
        if self.arm.pilot:
            stats, _ = stage(model, kept, replace(cfg, lam=0.0), *rest)
            cfg = replace(cfg, tau=self.arm.pilot * stats["operating_kl"])
        return model, kept, cfg, *rest

    def dose(self, stage: Callable[..., Any], *args: Any) -> Any:
        """c* and its curve; or the dose that is held, whatever survives it."""
        c_star, curve = (self.held, None) if self.held else self.first("dose", stage, *args)
        self.now["c_star"] = c_star
        return c_star, curve

    def drift(
        self, model: Model, kept: pl.DataFrame, data: Data, cfg: Config, vector: Vector
    ) -> tuple[dict[str, float], None]:
        """The ledger's part of it alone."""
        self.now["kl_base"] = kl_to_base(model, kept, cfg)
        return {"kl_base": self.now["kl_base"]}, None

    def evaluate(self, stage: Callable[..., Any], *args: Any) -> Any:
        """A row for the round; where nobody looks (not `each` round) the base stands in for a
        student that is taken to be above the floor."""
        if not self.sweep.each and self.round + 1 < self.cfg.rounds:
            return self.unmoved
        frames, now = stage(*args), self.now
        order = ("round", "ended", "c_star", "kappa", "kept", "kl_base", "active", "operating_kl",
                 "pull")
        self.rows.append({k: now[k] for k in order} | self.row(args[0], frames))
        return frames

    def row(self, model: Model, frames: Frames) -> dict[str, Any]:
        """What a measured state adds to a point; where the sweep asks for items, them, too."""
        axis = [self.data.down, self.data.up]
        headline = unasked(self.unmoved, axis)["headline"]
        found = against(frames, self.unmoved, axis, headline, asdict(self.cfg))
        row = {"read_by": headline} | shown(
            report.measures(frames, self.unmoved, self.cfg.ppl_factor), self.base, found)
        if self.sweep.items:
            row |= items_of(model, frames, self.unmoved, headline, axis, self.cfg)
        return row


def items_of(
    model: Model, frames: Frames, base: Frames, headline: str, axis: list[str], cfg: Config
) -> dict[str, Any]:
    """What every item of a measured state came to against base, nats; KL to base on the base's own
    answers; and the answers."""
    steps = steps_between(headline, frames, base, axis) | costs(frames, base)
    said = frames[2].sort("prompt_id")
    return {"kl_own": kl_to_base(model, base[2], cfg),
            "items": {k: [round(y, 4) for y in x.tolist()] for k, x in steps.items()},
            "dropped": said["drop_reason"].to_list(), "answers": said["text"].to_list()}


def climb(
    data: Data, cfg: Config, arm: Arm, sweep: Sweep, shared: dict[str, Any]
) -> list[dict[str, Any]]:
    """Rows of one arm: a row a measured round; the last one says how the loop ended, if early.
    What can't go on is a row, too. Where the sweep asks for items, the last Δ is left in
    `shared`."""
    cfg = replace(cfg, **arm.changes)
    data = read_data(cfg) if cfg.guide or cfg.vector else data
    run, model = Climb(data, cfg, arm, sweep, shared), load(cfg)
    try:
        ended = loop(model, data, cfg, run)
    except (UserError, FloatingPointError) as e:
        if run.round < 0:  # no arm of the group can begin
            raise
        ended = str(e).partition(":")[0]
    if sweep.items:
        shared[f"delta {arm.family}"] = run.delta
    last = run.rows[-1] if run.rows else {"round": 0, "kl_base": 0.0}
    if arm.fixed_dose and 0 < cfg.kl_budget < last["kl_base"]:
        last["ended"] = "budget spent"  # a held dose knows no forecast: it is seen afterwards
    elif ended and run.now["round"] == last["round"]:
        last["ended"] = ended
    elif ended:
        run.rows.append({"round": run.now["round"], "ended": ended})
    return run.rows


def whole(cfg: Config, arm: Arm) -> list[dict[str, Any]]:
    """Rows of an arm run by train.py: one for every state beside the last round, `family` its
    name, and whether the student beats it."""
    run = train(replace(cfg, **arm.changes))
    known, headline = states(run), headline_of(run)
    last, base = last_round(known), known[0]["measures"]
    ended = "stopped early" if known[-1]["round"] + 1 < cfg.rounds else ""
    said = {RIVALS[x["rival"]]: x["beaten"] for x in beaten(run, known)}
    return [{"family": state, "round": event["round"] + 1, "ended": ended, "dose": event["dose"],
             "score": event["score"][0] if event["score"] else None, "beaten": said.get(state, ""),
             "read_by": headline} | shown(event["measures"], base, event)
            for state, event in last.items()]
