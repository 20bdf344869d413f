"""The steps of the heal that is under way, kept where its round keeps its work, for pages that
follow the run. Nothing is resumed from them."""

import time
from collections.abc import Callable
from typing import Any

import polars as pl

from steerloop.healing.course import STEPS
from steerloop.ranks import own
from steerloop.runfolder import layout
from steerloop.runfolder.files import kept_so_far
from steerloop.runfolder.folder import Folder

EVERY = 10.0  # seconds, at least, between two looks
SPENT = 0.02  # of the time, at most, is spent on them


class Live:
    """Writes the steps below `folder` and calls `show` after it, after the first step and then now
    and then. Of several ranks, the first one's folder is looked at."""

    def __init__(self, folder: Folder, show: Callable[[], None]) -> None:
        self.folder, self.show = folder, show
        self.name, self.rows = "", list[dict[str, Any]]()
        self.least = 0  # steps that were there to see before a heal was cut off
        self.next = 0.0  # by the clock, when they are written again

    def begin(self, round: int) -> None:
        """A heal begins, or one that was cut off is told from its first step on."""
        self.name, self.rows, self.next = layout.steps_so_far(round), [], 0.0
        before = kept_so_far(self.folder.path / f"{self.name}.parquet")
        self.least = 0 if before is None else before.height

    def step(self, row: dict[str, Any]) -> None:
        """Another step. What was there to see stays, until there is as much again."""
        self.rows.append(row)
        start = time.monotonic()
        if own() == 0 and start >= self.next and len(self.rows) >= self.least:
            self.write()
            self.show()
            end = time.monotonic()
            self.next = end + max(EVERY, (end - start) / SPENT)

    def write(self) -> None:
        """Keep all steps so far."""
        if own() == 0 and self.rows:
            self.folder.table(self.name, pl.DataFrame(self.rows, STEPS))
