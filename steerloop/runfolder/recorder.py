"""What is put on a loop from outside: memory, bars, evidence, pages. Here, nothing."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVarTuple

import polars as pl
from torch import Tensor

Stages = TypeVarTuple("Stages")


class Recorder:
    """Runs each stage as it is. Others (steerloop/evidence/journal.py for a run folder) keep what a
    stage returned, hand it back when it is there already, and look at it."""

    def keeps(self, *stages: *Stages) -> tuple[*Stages]:
        """The stages as the loop is to call them: each call goes through `call`."""
        return tuple(self._kept(stage) for stage in stages)

    def _kept(self, stage: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: self.call(stage, *args)

    def call(self, stage: Callable[..., Any], *args: Any) -> Any:
        """What a stage returns."""
        return stage(*args)

    def rounds(self, rounds: int) -> Iterator[int]:
        """The numbers of the rounds, from 0, as they begin."""
        yield from range(rounds)

    def save(self, name: str, tensors: dict[str, Tensor], **note: Any) -> None:
        """Keep the state of work in progress: tensors of any shape by name, and a note."""

    def saved(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was kept last of the work in progress; None where there is nothing."""

    def step(self, row: dict[str, Any]) -> None:
        """An optimiser step of a heal was taken (columns of `Course.steps`)."""

    def steps(self, table: pl.DataFrame) -> None:
        """What a heal that is over did, a row an optimiser step (`Course.steps`)."""


NOTHING = Recorder()
