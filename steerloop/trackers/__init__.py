"""What a run records, told to a tracker that the user has installed (--track), as it comes.

events.jsonl stays what the run is read by. Every record of it becomes numbers over rounds and words
(names.py), every optimiser step of a heal numbers over steps; an adapter (libraries.py) hands them
on. A library is imported only where it was asked for.

Of a run that goes on all records are told again, and steps that are kept in tables: the adapter
leaves out what the tracker has. So what was lost by a kill is made up for, nothing is there twice,
and a run can be tracked from any resume on, from its beginning. Steps of rivals' heals are kept
nowhere: those that came before cannot be told again.
"""

import traceback
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from loguru import logger

from steerloop import UserError
from steerloop.ranks import own
from steerloop.runfolder.files import read_table
from steerloop.runfolder.folder import Folder
from steerloop.runfolder.layout import HEAL, STEPS, of_all_rounds
from steerloop.trackers.libraries import LIBRARIES, Library
from steerloop.trackers.names import (
    HEALS,
    ROUND,
    number_of_steps,
    numbers,
    of_step,
    plain,
    words,
)


def usable(track: str) -> None:
    """Import the library of a tracker and see whether it can be used; '' is none. Raises UserError
    naming the package."""
    if not track or own() > 0:
        return
    try:
        LIBRARIES[track].check()
    except ImportError as e:
        raise UserError(f"--track {track} needs the package {track}, which cannot be imported here "
                        f"({first_line(e)}): pip install {track}") from e
    except Exception as e:  # whatever a library comes to
        raise UserError(f"--track {track}: {first_line(e)}; mend that, or leave it out") from e


def first_line(error: Exception) -> str:
    """What an error of others says first."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class Mirror:
    """Tells the tracker of the name `track` ('': none) what is recorded in a folder, from its first
    record on; rank 0 alone does. Where the library fails, a warning says so, once, nothing more is
    mirrored, and the run goes on."""

    def __init__(self, folder: Folder, track: str) -> None:
        self.folder, self.track = folder, track
        self.library: Library | None = None  # none, or none any more
        self.rows = 0  # told so far, those that the tracker had among them
        self.before: dict[str, int] = defaultdict(int)  # steps of all heals of a name that are over
        self.under_way: dict[str, int] = defaultdict(int)  # and of the one that is not
        self.over: set[tuple[str, int]] = set()  # heals by name and round
        if track and own() == 0:
            self.guarded(self.open)

    def open(self) -> None:
        """Open the library, and tell it what the folder knows."""
        documents = [x["document"] for x in self.folder.known.values() if "document" in x]
        self.library = LIBRARIES[self.track](self.folder.path, documents)
        for record in self.folder.known.values():
            self.tell(record)
        self.folder.mirror = self.record

    def guarded(self, call: Callable[..., None], *args: Any) -> None:
        """A call into the library, which must not end the run."""
        try:
            call(*args)
        except Exception as e:  # whatever a library comes to
            self.library = None
            logger.debug("".join(traceback.format_exception(e)))
            logger.warning(f"--track {self.track} failed ({type(e).__name__}: {first_line(e)}): "
                           "nothing more is mirrored, the run goes on; the log has the traceback, "
                           "and what is missing comes when the run is resumed")

    def record(self, record: dict[str, Any]) -> None:
        """A record is new in events.jsonl."""
        if self.library is not None:
            self.guarded(self.tell, record)

    def step(self, heal: str, round: int, row: dict[str, Any]) -> None:
        """An optimiser step (columns of `Course.steps`) of a heal of a round was taken, or is told
        again; `heal` as its record is named."""
        if self.library is not None:
            self.guarded(self.tell_step, heal, round, row)

    def verdicts(self, summary: dict[str, Any]) -> None:
        """What the run came to."""
        if self.library is not None:
            said = {plain(f"verdict/{x['question']}"): x["verdict"] for x in summary["verdicts"]}
            self.guarded(self.library.words, max(len(summary["healed"]) - 1, 0), said)

    def close(self, error: BaseException | None) -> None:
        """The run is over, by an error or without."""
        if self.library is not None:
            self.guarded(self.library.close, error is not None)

    def tell(self, record: dict[str, Any]) -> None:
        """A record; before that of a heal the steps of it that were not told."""
        name, round = record["stage"], record.get(ROUND, 0)
        if name in HEALS:
            self.tell_rest(name, round, number_of_steps(record))
        if found := numbers(record):
            self.row(ROUND, round, found)
        if said := words(record):
            self.library.words(round, said)

    def tell_step(self, heal: str, round: int, row: dict[str, Any]) -> None:
        """A step, unless it was told."""
        if (heal, round) not in self.over and row["step"] == self.under_way[heal]:
            self.under_way[heal] += 1
            axis, at = f"{heal}_steps/step", self.before[heal] + row["step"]
            self.row(axis, at, of_step(heal, row))

    def tell_rest(self, heal: str, round: int, steps: int) -> None:
        """A heal of so many steps is over. Those that nobody kept count among the rows all the
        same: the rows that follow have the numbers that they had."""
        kept = of_all_rounds(self.folder.path, STEPS)
        if heal == HEAL and self.under_way[heal] < steps and round in kept:
            for row in read_table(kept[round]).iter_rows(named=True):
                self.tell_step(heal, round, row)
        self.rows += steps - self.under_way[heal]
        self.before[heal] += steps
        self.under_way[heal] = 0
        self.over.add((heal, round))

    def row(self, axis: str, at: int, values: dict[str, float]) -> None:
        """Numbers by name, each in its own unit, at a place of an axis."""
        self.library.row(self.rows, axis, at, values)
        self.rows += 1
