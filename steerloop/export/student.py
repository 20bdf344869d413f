"""A finished (or interrupted) run folder → its student in memory, at a round and under gates."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from steerloop import UserError, lora
from steerloop.cli.knobs import DIAL
from steerloop.config import Config
from steerloop.model import Model, load
from steerloop.readouts.states import Vector
from steerloop.runfolder import folder, layout
from steerloop.runfolder.events import read_events
from steerloop.runfolder.files import read_document, read_summary, verify
from steerloop.runfolder.inputs import compared, fingerprint, model_record


@dataclass
class Student:
    """A run's model with its first `rounds` rounds baked, to be heard under `gates`; `forced` is
    what of the model is not as the run found it, and was let pass."""

    run: Path
    cfg: Config
    model: Model
    rounds: int
    gates: Float[Tensor, "R"]  # one a slot of the stack; slots after `rounds` are 0
    forced: dict[str, str] = field(default_factory=dict)

    @property
    def weights(self) -> str:
        """One hash for all files of the base, as it was loaded."""
        return fingerprint({"model": model_record(self.cfg.model)})


def config_of(run: Path) -> Config:
    """The config that a run was made with, its inputs by where it found them. Raises UserError
    where the folder is no run, or one of another version."""
    knobs = layout.located(read_document(run))
    if unknown := set(knobs) - {x.name for x in fields(Config)}:
        raise UserError(f"{run}/{layout.CONFIG} has knobs that this version lacks "
                        f"({', '.join(sorted(unknown))}): use the version that made the run")
    return Config(**knobs)


def finished_rounds(run: Path) -> int:
    """How many rounds of a run were folded and saved, without a gap."""
    count = 0
    while layout.adapter(run, count).is_file():
        count += 1
    return count


def rounds_of(run: Path, wanted: str) -> int:
    """'best' or a number as the tables count (1: after the first round) → how many rounds to bake.

    Raises UserError for a round that the run does not have, and where no round is the best.
    """
    there = finished_rounds(run)
    if not there:
        raise UserError(f"{run} has no finished round: let `python -m steerloop.train` get further")
    if wanted == "best":
        try:
            best = read_summary(run)["best_round"]
        except (UserError, KeyError) as e:
            raise UserError(f"{run} has no {layout.SUMMARY} that names the best round: write it "
                            f"with `python -m steerloop.report {run}`, or take --round 1 to {there}"
                            ) from e
        if best is None:
            raise UserError(f"{run}: no round stayed above the coherence floor, so none is the "
                            f"best; --round 1 to {there} takes one all the same")
        return best + 1
    if not wanted.isdecimal() or not 1 <= int(wanted) <= there:
        raise UserError(f"--round {wanted}: this run has rounds 1 to {there}, or best")
    return int(wanted)


def read_gates(text: str, rounds: int, slots: int) -> Float[Tensor, "R"]:
    """'1,1,0.5', or one strength for all → a gate per slot of the stack, 0 for rounds not baked.

    Raises UserError for anything but one number of a dial, or one a round.
    """
    try:
        values = torch.tensor([float(x) for x in text.replace(",", " ").split()])
    except ValueError:
        values = torch.zeros(0)
    if len(values) not in (1, rounds) or not all(map(DIAL.holds, values.tolist())):
        raise UserError(f"gates '{text}': give one number {DIAL}, or one a round ({rounds}), as in "
                        f"{','.join(['1'] * rounds)}")
    return torch.cat([values.expand(rounds), torch.zeros(slots - rounds)])


def open_student(
    run: Path, round: str = "best", gates: str = "1", device: str = "", model: str = "",
    force: bool = False,
) -> Student:
    """Load the run's base, from where the run found it or from `model`, and bake its rounds,
    exactly as the run did.

    Raises UserError where the folder, the round, the gates or the model do not fit, where a file of
    the run is damaged, and where a file of the model is not what it was, unless `force` allows it.
    """
    cfg = config_of(run)
    verify(run)
    cfg = replace(cfg, device=device or cfg.device, model=model or cfg.model)
    rounds = rounds_of(run, round)
    heard = read_gates(gates, rounds, cfg.rounds)
    forced = compared(run, cfg, ["model", "template"], force)
    wrapped = load(cfg)
    for k in range(rounds):
        path = layout.adapter(run, k)
        try:
            lora.fold(wrapped.layers, wrapped.gates, folder.read_adapter(run, k))
        except (KeyError, RuntimeError) as e:
            raise UserError(f"{path} does not fit {cfg.model} "
                            f"({e}): is it the model that the run was made with?") from e
    return Student(run, cfg, wrapped, rounds, heard.to(wrapped.device), forced)


def read_vector(run: Path, round: int, device: torch.device) -> Vector:
    """The vector extracted in a round (counted from 1), at its raw size."""
    tensors = folder.read_vector(run, round - 1, str(device))
    return {block: v.float() for block, v in tensors.items()}


def records(run: Path, stage: str) -> list[dict]:
    """The records of one stage, in order. Raises UserError where the run has no record, or a
    damaged one."""
    try:
        events = read_events(run)
    except OSError as e:
        raise UserError(f"{run} is not a run folder (no readable {layout.EVENTS} in it)") from e
    return [x for x in events if x["stage"] == stage]


def c_star(run: Path, round: int) -> float:
    """The iso-KL dose that was solved in a round (counted from 1), in units of its vector.

    Raises UserError where the run does not say."""
    doses = [x["c_star"] for x in records(run, "sample") if x["round"] == round - 1]
    if not doses:
        raise UserError(f"{run}/{layout.EVENTS} has no dose of round {round}")
    return doses[-1]
