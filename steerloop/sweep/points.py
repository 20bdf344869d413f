"""The rows of a sweep, one JSON line each, appended as arms end: what is there is not run again.

Whoever makes rows (`rows_of`) writes nothing, whoever writes them (`append`) makes none: rows may
be made on another machine than the one that keeps them.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fcntl import LOCK_EX, flock
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from loguru import logger

from steerloop import UserError
from steerloop.config import Config, parse
from steerloop.loading.hub import EMBEDDED, locate
from steerloop.runfolder.identity import code_version
from steerloop.runfolder.inputs import fingerprint, model_record
from steerloop.sweep.arms import REGIMES, SWEEPS, Arm, arms_in
from steerloop.sweep.climb import climb, whole
from steerloop.sweep.equal import Row, further, setting, turned_down
from steerloop.texts.data import read_data

POINT = ("model", "split", "regime", "seed", "arm", "family", "setting", "round")  # whose row it is
LONG = ("items", "answers", "dropped")


def file_of(folder: Path, sweep: str) -> Path:
    """Where the rows of a sweep are."""
    return folder / f"{sweep}.jsonl"


def read_rows(path: Path) -> list[Row]:
    """The rows of a file of points, none where there is no file. A last line that was cut off is
    not one. Raises UserError naming a line that is none."""
    return parsed(path, path.read_bytes() if path.is_file() else b"")


def parsed(path: Path, data: bytes) -> list[Row]:
    """The rows in the content of a file of points. Raises UserError as `read_rows` does."""
    rows = []
    for number, line in enumerate(data.decode("utf-8", "replace").split("\n")[:-1], 1):
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError) as e:
            raise UserError(f"{path}, line {number} is no row of a sweep: delete that line, then "
                            "the same command runs its point anew") from e
    return rows


def append(path: Path, rows: list[Row]) -> list[Row]:
    """Rows of one model at the end of a file of points, each line whole, but for those that it has;
    returns the new ones. Others, on other machines too, may append to it at the same time.

    Raises UserError where it has rows of another model of that name, or cannot be locked."""
    with FileIO(path, "a+") as file:
        try:
            flock(file, LOCK_EX)  # until it is closed
        except OSError as e:
            raise UserError(f"{path} cannot be locked ({e}): give --points in a folder of a file "
                            "system that has locks (NFS has; Lustre if mounted with flock)") from e
        file.seek(0)
        data = file.read()
        there = parsed(path, data)
        one_model(path, there, rows[0]["model"], rows[0]["weights"])
        known = {point(x) for x in there}
        new = [x for x in rows if point(x) not in known]
        whole = data.rfind(b"\n") + 1  # what comes after it is of somebody who was killed
        file.truncate(whole)
        write(file, "".join(json.dumps(x) + "\n" for x in new).encode(), whole)
    return new


def write(file: FileIO, data: bytes, start: int) -> None:
    """All of it at the end of a file of `start` bytes, or, where the disk is full, nothing."""
    try:
        while data:
            data = data[file.write(data):]
    except OSError:
        file.truncate(start)
        raise


def point(row: Row) -> tuple[Any, ...]:
    """What tells a row from all others of its sweep."""
    return tuple(row.get(x) for x in POINT)


def one_model(path: Path, there: list[Row], name: str, weights: str) -> None:
    """Raises UserError where some of the rows of a model came from other weights than these."""
    if others := {x.get("weights", weights) for x in there if x["model"] == name} - {weights}:
        raise UserError(f"{path} has rows of another model {name}, weights "
                        f"{', '.join(others)}: give the folder of this one a name of its own")


@dataclass(frozen=True)
class Group:
    """Arms that share their first round: those of the sweep, or the ones named `only`; run on a
    device with so many CPU threads."""

    sweep: str
    model: str
    split: str
    regime: str
    seed: int
    out: Path
    only: list[str] | None = field(default=None, hash=False)
    device: str = "cpu"
    threads: int = 1

    def __str__(self) -> str:
        return f"{self.sweep} {' '.join(map(str, self.key.values()))}"

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

    def own(self, rows: Iterable[Row]) -> list[Row]:
        """Those of some rows of the sweep that are of this group."""
        return [x for x in rows if self.key.items() <= x.items()]

    def check(self) -> None:
        """Raises UserError where the rows that are there came from another model of that name,
        where one of the micro-world is asked for a trait of published models, and for an arm that
        is none."""
        if "trait" in REGIMES[self.regime] and of_the_world(self.model):
            raise UserError(f"{self.sweep} {self.regime} is for published models: give --models, "
                            "such as smollm2-135m")
        known = [x.family for x in SWEEPS[self.sweep].arms]
        if wrong := set(self.only or ()) - set(known):
            raise UserError(f"{self.sweep} has no arm {', '.join(sorted(wrong))}; it has "
                            f"{', '.join(dict.fromkeys(known))}")
        path = file_of(self.out, self.sweep)
        one_model(path, read_rows(path), self.key["model"], self.weights)


def of_the_world(model: str) -> bool:
    """Whether a model is of the embedded one's kind, which speaks of the micro-world alone: it has
    its tokenizer. Raises UserError where there is no such model."""
    if model == EMBEDDED:
        return True
    mine, its = (locate(x) / "tokenizer.json" for x in (model, EMBEDDED))
    return mine.is_file() and mine.read_bytes() == its.read_bytes()


def run(group: Group) -> None:
    """Append the missing points of a group to its file, arm by arm."""
    path = file_of(group.out, group.sweep)
    for rows in rows_of(group, read_rows(path)):
        tell(append(path, rows))


def tell(rows: list[Row]) -> None:
    """Log the last of some rows, without what is long."""
    for row in rows[-1:]:
        logger.info(f"{({k: x for k, x in row.items() if k not in LONG})}")


def todo(group: Group, rows: list[Row]) -> list[Arm]:
    """The arms of a group that these rows lack."""
    last = SWEEPS[group.sweep].rounds
    done = {(x["arm"], x["setting"]) for x in group.own(rows) if x["round"] == last or x["ended"]}
    return [arm for arm in group.arms if (arm.family, arm.setting) not in done]


def rows_of(group: Group, there: list[Row]) -> Iterator[list[Row]]:
    """Make the rows of a group that are not `there`, those of an arm at once. Nothing is written
    but, by sweeps that are `whole`, run folders."""
    sweep, mine, arms = SWEEPS[group.sweep], group.own(there), todo(group, there)
    if not arms and not missing(group, mine):
        return
    torch.set_num_threads(group.threads)
    cfg = config(group)
    data, shared = read_data(cfg), {}
    made_by = {"code": code_version(), "weights": group.weights}

    def named(arm: str, where: str, measured: list[Row]) -> list[Row]:
        name = {"arm": arm, "family": arm, "setting": where} | made_by
        return [group.key | name | row for row in measured]

    for arm in arms:
        measured = whole(cfg, arm) if sweep.whole else climb(data, cfg, arm, sweep, shared)
        rows = named(arm.family, arm.setting, measured)
        mine += rows
        yield rows
    for far, near, at in missing(group, mine):
        (arm,) = (x for x in group.arms if x.family == far["arm"])
        row = turned_down(data, cfg, arm, sweep, shared, near, at)
        yield named(far["arm"], setting(at, near["arm"]), [row])


def config(group: Group) -> Config:
    """What all arms of a group have in common: a published model has its own preset, and where the
    regime names none the default trait; those of the micro-world have that of the embedded one."""
    sweep, regime = SWEEPS[group.sweep], dict(REGIMES[group.regime])
    flags = ["--seed", str(group.seed), "--split", group.split, "--device", group.device,
             "--threads", str(group.threads), "--rounds", str(sweep.rounds),
             "--runs", str(group.out / "runs")]
    if trait := regime.pop("trait", ""):
        flags += ["--trait", trait]
    if trait or not of_the_world(group.model):
        flags += ["--model", group.model]
    cfg = parse(flags)
    if not sweep.whole:
        cfg.batch = cfg.step_rows  # the same gradient, sooner
    cfg.model = group.model
    cfg.probes = [x for x in cfg.probes if x.rpartition(":")[2] in sweep.probes]
    for name, value in regime.items():
        setattr(cfg, name, value)
    return cfg


def missing(group: Group, rows: list[Row]) -> list[tuple[Row, Row, str]]:
    """Which arms are still to be measured where they are equal to another: (the point that went
    further, the other, by what), of those that have their own points among these rows."""
    mine = group.own(rows)
    meant = [x.family for x in group.arms]
    ends = {x["arm"]: x for x in mine if not x["setting"] and x["arm"] in meant}
    found = []
    for one, other, at in SWEEPS[group.sweep].equal:
        pair = further(ends[one], ends[other], at) if {one, other} <= ends.keys() else None
        if pair and not any((x["arm"], x["setting"]) == (
                pair[0]["arm"], setting(at, pair[1]["arm"])) for x in mine):
            found.append((*pair, at))
    return found
