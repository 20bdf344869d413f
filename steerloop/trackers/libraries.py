"""One adapter a library, each the same to its caller; a library is imported by its own alone.

    tensorboard    event files in the run folder. What they have is read back, so a point is there
                   once, whenever the run was killed.
    wandb          a run whose id is made of the run folder's name and config. Rows are numbered as
                   the library's own steps; a server says how many it has. Offline a directory of
                   its own is made by every session, and holds all that came before, too: when they
                   are synced in order, the last one replaces the others.
    trackio        a run of the same name. What is in the local database is read back; of a server,
                   and of a database that others write, a note in the run folder says how many rows
                   they have (it lags by seconds, so after a kill a few rows may be there twice, and
                   none is missing).
"""

import json
import os
import re
import time
from pathlib import Path
from typing import Any, Protocol

from steerloop.runfolder.events import crc
from steerloop.runfolder.layout import RECORDS, TENSORBOARD, TRACKIO
from steerloop.trackers.names import HEALS, ROUND

PROJECT = "steerloop"
SHOWN = {f"evaluate/healed/{x}": None for x in ("coherence", "ppl_mundane")} | {
    "heal/nll": None, "drift/kl_base": None}  # beside hyper-parameters
SENT = 2.0  # seconds in which what was handed to trackio has arrived


class Library(Protocol):
    """What is asked of an adapter. It is opened on a run folder with what config.json said, all
    versions in their order; whatever its library raises comes through."""

    def __init__(self, run: Path, documents: list[dict[str, Any]]) -> None: ...

    @staticmethod
    def check() -> None:
        """Import the library. Raises what its import, or its login, raises."""

    def row(self, number: int, axis: str, at: int, values: dict[str, float]) -> None:
        """Numbers by name, each in its own unit, at a place of an axis: row `number` (from 0) of
        the run. Left out, where the tracker has it."""

    def words(self, at: int, said: dict[str, str]) -> None:
        """Words by name, at a place of the axis of rounds."""

    def close(self, failed: bool) -> None:
        """All was told; the run failed, or came to its end."""


def label(run: Path, documents: list[dict[str, Any]]) -> str:
    """A name of a run that it keeps wherever it lies, and that another run of the same second,
    with another config or other inputs, has not."""
    first = json.dumps([documents[0]["config"], documents[0].get("inputs", {})])
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', run.name)[-100:]}-{crc(first)}"


class TensorBoard:
    """See above."""

    def __init__(self, run: Path, documents: list[dict[str, Any]]) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        folder = str(run / TENSORBOARD)
        self.there: set[tuple[str, int]] = set()
        if (run / TENSORBOARD).is_dir():
            kept = EventAccumulator(folder, size_guidance={"scalars": 0, "tensors": 0}).Reload()
            for kind, read in (("scalars", kept.Scalars), ("tensors", kept.Tensors)):
                self.there |= {(tag, x.step) for tag in kept.Tags()[kind] for x in read(tag)}
        self.writer = SummaryWriter(folder)
        told = {k: x if isinstance(x, bool | int | float | str) else str(x)
                for k, x in documents[-1]["config"].items()}
        for part in hparams(told, SHOWN):
            self.writer.file_writer.add_summary(part)
        self.words(0, {"run": run.name})

    @staticmethod
    def check() -> None:
        from tensorboard.backend.event_processing import event_accumulator  # noqa: F401
        from torch.utils.tensorboard import SummaryWriter  # noqa: F401

    def row(self, number: int, axis: str, at: int, values: dict[str, float]) -> None:
        for name, x in values.items():
            if (name, at) not in self.there:
                self.writer.add_scalar(name, x, at)
        self.writer.flush()

    def words(self, at: int, said: dict[str, str]) -> None:
        for name, x in said.items():
            if (f"{name}/text_summary", at) not in self.there:
                self.writer.add_text(name, x, at)
        self.writer.flush()

    def close(self, failed: bool) -> None:
        self.writer.close()


class Wandb:
    """See above. Where the user has said nothing else, its files are in the run folder, and the
    project is `steerloop`. The terminal is not captured: log.txt has it."""

    def __init__(self, run: Path, documents: list[dict[str, Any]]) -> None:
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), id=label(run, documents),
            name=run.name, config=documents[-1]["config"], resume="allow",
            dir=os.environ.get("WANDB_DIR", str(run.absolute())), reinit="create_new",
            settings=wandb.Settings(console="off"))
        self.next = self.run.step  # the first row that is not there
        for stage in RECORDS:
            self.run.define_metric(f"{stage}/*", step_metric=ROUND)
        for heal in HEALS:
            self.run.define_metric(f"{heal}_steps/*", step_metric=f"{heal}_steps/step")

    @staticmethod
    def check() -> None:
        import wandb

        if os.environ.get("WANDB_MODE", "online") == "online":
            wandb.login(verify=False)  # asks for a key, where there is a terminal and none is known

    def row(self, number: int, axis: str, at: int, values: dict[str, float]) -> None:
        if number >= self.next:
            self.run.log(values | {axis: at}, step=number)

    def words(self, at: int, said: dict[str, str]) -> None:
        self.run.summary.update(said)

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class Trackio:
    """See above. The project is `steerloop`, or that of TRACKIO_PROJECT."""

    def __init__(self, run: Path, documents: list[dict[str, Any]]) -> None:
        import trackio
        from trackio.sqlite_storage import SQLiteStorage
        from trackio.utils import get_storage_mode

        project, name = os.environ.get("TRACKIO_PROJECT", PROJECT), label(run, documents)
        self.there = {(key, x["step"]) for x in SQLiteStorage.get_logs(project, name) for key in x}
        self.note, self.elsewhere = run / TRACKIO, get_storage_mode() == "jsonl" or any(
            os.environ.get(x) for x in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"))
        known = self.elsewhere and self.note.exists()
        self.noted = int(self.note.read_text(encoding="utf-8")) if known else 0
        self.rows = self.given = self.noted  # in all, and at the time `since`
        self.since = time.monotonic()
        self.run = trackio.init(project=project, name=name, resume="allow", embed=False,
                                config=documents[-1]["config"])

    @staticmethod
    def check() -> None:
        from trackio import sqlite_storage, utils  # noqa: F401

    def row(self, number: int, axis: str, at: int, values: dict[str, float]) -> None:
        new = {k: x for k, x in values.items() if (k, at) not in self.there}
        if new and number >= self.noted:
            self.run.log(new, step=at)
        if number > self.given and time.monotonic() > self.since + SENT:
            self.arrived(self.given)
            self.given, self.since = number, time.monotonic()
        self.rows = number + 1

    def words(self, at: int, said: dict[str, str]) -> None:
        new = {k: x for k, x in said.items() if (k, at) not in self.there}
        if new:
            self.run.log(new, step=at)

    def close(self, failed: bool) -> None:
        self.run.finish()
        self.arrived(self.rows)

    def arrived(self, rows: int) -> None:
        """Note that so many rows are elsewhere."""
        if not self.elsewhere:
            return
        part = self.note.with_name(f".{self.note.name}.part")
        part.write_text(f"{rows}\n", encoding="utf-8")
        os.replace(part, self.note)


LIBRARIES: dict[str, type[Library]] = {
    "tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio}
