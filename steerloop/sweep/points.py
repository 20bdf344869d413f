"""The rows of a sweep, one JSON line each, appended as arms end: what is there is not run again."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from loguru import logger

from steerloop import UserError
from steerloop.config import Config, parse
from steerloop.runfolder.identity import code_version
from steerloop.runfolder.inputs import fingerprint, model_record
from steerloop.sweep.arms import REGIMES, SWEEPS, Arm, arms_in
from steerloop.sweep.climb import climb, whole
from steerloop.sweep.equal import Row, further, setting, turned_down
from steerloop.texts.data import read_data


def file_of(folder: Path, sweep: str) -> Path:
    """Where the rows of a sweep are."""
    return folder / f"{sweep}.jsonl"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of points, none where there is no file. A last line that was cut off is
    not one. Raises UserError naming a line that is none."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    rows = []
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError) as e:
            raise UserError(f"{path}, line {number} is no row of a sweep: delete that line, then "
                            "the same command runs its point anew") from e
    return rows


def clear_torn(path: Path) -> None:
    """Take away a last line that was cut off."""
    data = path.read_bytes() if path.is_file() else b""
    if (whole := data.rfind(b"\n") + 1) < len(data):
        os.truncate(path, whole)


@dataclass(frozen=True)
class Group:
    """Arms that share their first round: those of the sweep, or the ones named `only`."""

    sweep: str
    model: str
    split: str
    regime: str
    seed: int
    out: Path
    only: list[str] | None = None

    @property
    def key(self) -> dict[str, str | int]:
        """The columns of its points."""
        return {"model": Path(self.model).name, "split": self.split, "regime": self.regime,
                "seed": self.seed}

    @property
    def weights(self) -> str:
        """What tells its model from another of the same name."""
        return fingerprint({"model": model_record(self.model)})[:12]

    @property
    def arms(self) -> list[Arm]:
        """Those that it is for."""
        arms = arms_in(SWEEPS[self.sweep], self.regime)
        return [x for x in arms if not self.only or x.family in self.only]

    def check(self) -> None:
        """Raises UserError where the rows that are there came from another model of that name,
        where the embedded one is asked for a trait of published models, and for an arm that is
        none."""
        if "trait" in REGIMES[self.regime] and self.model == "embedded":
            raise UserError(f"{self.sweep} {self.regime} is for published models: give --models, "
                            "such as smollm2-135m")
        known = [x.family for x in SWEEPS[self.sweep].arms]
        if wrong := set(self.only or ()) - set(known):
            raise UserError(f"{self.sweep} has no arm {', '.join(sorted(wrong))}; it has "
                            f"{', '.join(dict.fromkeys(known))}")
        path, name, mine = file_of(self.out, self.sweep), self.key["model"], self.weights
        there = {x.get("weights", mine) for x in read_rows(path) if x["model"] == name} - {mine}
        if there:
            raise UserError(f"{path} has rows of another model {name}, weights "
                            f"{', '.join(there)}: give the folder of this one a name of its own")


def run(group: Group) -> None:
    """Append the missing points of a group to its file."""
    path, sweep = file_of(group.out, group.sweep), SWEEPS[group.sweep]
    done = {(x["arm"], x["setting"]) for x in read_rows(path)
            if group.key.items() <= x.items() and (x["round"] == sweep.rounds or x["ended"])}
    todo = [arm for arm in group.arms if (arm.family, arm.setting) not in done]
    if not todo and not missing(group):
        return
    torch.set_num_threads(1)
    cfg = config(group)
    data, shared = read_data(cfg), {}
    for arm in todo:
        measured = whole(cfg, arm) if sweep.whole else climb(data, cfg, arm, sweep, shared)
        append(group, arm.family, arm.setting, measured)
    for far, near, at in missing(group):
        (arm,) = (x for x in group.arms if x.family == far["arm"])
        row = turned_down(data, cfg, arm, sweep, shared, near, at)
        append(group, far["arm"], setting(at, near["arm"]), [row])


def config(group: Group) -> Config:
    """What all arms of a group have in common: a published model has its own preset."""
    sweep, regime = SWEEPS[group.sweep], dict(REGIMES[group.regime])
    flags = ["--seed", str(group.seed), "--split", group.split, "--device", "cpu",
             "--rounds", str(sweep.rounds), "--runs", str(group.out / "runs")]
    if trait := regime.pop("trait", ""):
        flags += ["--model", group.model, "--trait", trait]
    cfg = parse(flags)
    if not sweep.whole:
        cfg.batch = cfg.step_rows  # the same gradient, sooner
    cfg.model = group.model
    cfg.probes = [x for x in cfg.probes if x.rpartition(":")[2] in sweep.probes]
    for name, value in regime.items():
        setattr(cfg, name, value)
    return cfg


def missing(group: Group) -> list[tuple[Row, Row, str]]:
    """Which arms are still to be measured where they are equal to another: (the point that went
    further, the other, by what), of those that have their own points."""
    mine = [x for x in read_rows(file_of(group.out, group.sweep))
            if group.key.items() <= x.items()]
    meant = [x.family for x in group.arms]
    ends = {x["arm"]: x for x in mine if not x["setting"] and x["arm"] in meant}
    found = []
    for one, other, at in SWEEPS[group.sweep].equal:
        pair = further(ends[one], ends[other], at) if {one, other} <= ends.keys() else None
        if pair and not any((x["arm"], x["setting"]) == (
                pair[0]["arm"], setting(at, pair[1]["arm"])) for x in mine):
            found.append((*pair, at))
    return found


def append(group: Group, arm: str, where: str, measured: list[Row]) -> None:
    """Rows of an arm at the end of the file, each line whole."""
    path = file_of(group.out, group.sweep)
    name = {"arm": arm, "family": arm, "setting": where, "code": code_version(),
            "weights": group.weights}
    rows = [group.key | name | row for row in measured]
    clear_torn(path)
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    last = {k: x for k, x in rows[-1].items() if k not in ("items", "answers", "dropped")}
    logger.info(f"{last}")
