"""Students beside a run's own: its very loop with a second model and

    nll      no barrier, on the run's own vectors, doses and completions (plain distillation)
    taught   another teacher, the prompted base, and all else as in the run (prompt distillation)
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from steerloop.config import Config
from steerloop.evidence.journal import Journal
from steerloop.model import Model, load
from steerloop.runfolder import layout
from steerloop.runfolder.layout import of_rival, of_round, work
from steerloop.runfolder.recorder import Recorder
from steerloop.texts.data import Data

PLAIN, TAUGHT = "nll", "taught"
CHANGES: dict[str, dict[str, Any]] = {
    PLAIN: {"barrier": "nll", "tau": 0.0, "tau_share": 0.0},
    TAUGHT: {"teacher": "prompt", "guide": "", "vector": ""},
}
Loop = Callable[[Model, Data, Config, Recorder], str]  # that of train.py, which runs this


class Rival(Recorder):
    """Hands the loop what the run recorded; what is done anew is kept in the folder of the run, by
    the name of the rival. What it is like is not measured round by round."""

    def __init__(self, run: Journal, name: str) -> None:
        self.run, self.name, self.round = run, name, 0
        self.limit = run.folder.read(layout.LIMIT)

    def rounds(self, rounds: int) -> Iterator[int]:
        for self.round in range(rounds):
            yield self.round

    def call(self, stage: Callable[..., Any], *args: Any) -> Any:
        run, round = self.run, self.round
        match stage.__name__:
            case "evaluate":
                return run.base  # never below the floor: the rival has to come as far as the run
            case "calibrate":
                return self.limit
            case "extract":
                return run.vectors[round]
            case "dose":
                return run.doses[round]
            case "short":
                return not run.folder.has(self.chosen()) and stage(*args)
            case "choose":
                return tuple(run.folder.once(self.chosen(), stage, *args))
            case "heal":
                return self.heal(stage, *args)
            case "drift":
                return {"kl_base": 0.0}, None
        return stage(*args)

    def chosen(self) -> list[str]:
        """Where the rows it learns from are: those of the run, but of another teacher its own."""
        names = (layout.COMPLETIONS, layout.KAPPA)
        if self.name == PLAIN:
            return [of_round(self.round, x) for x in names]
        return [of_rival(self.round, self.name, x) for x in names]

    def heal(self, stage: Callable[..., Any], *args: Any) -> Any:
        """As the run keeps its own, under names of its own."""
        names = [of_rival(self.round, self.name, x) for x in (layout.HEAL, layout.ADAPTER)]
        stats, delta = self.run.folder.once(names, stage, *args)
        self.run.folder.event(f"heal_{self.name}", round=self.round, **stats)
        self.run.folder.done(work(self.round))
        return stats, delta

    def step(self, row: dict[str, Any]) -> None:
        self.run.mirror.step(f"{layout.HEAL}_{self.name}", self.round, row)

    def save(self, name: str, tensors: dict[str, Tensor], **note: Any) -> None:
        self.run.folder.tensors(f"{work(self.round)}/{name}", tensors, **note)

    def saved(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return self.run.folder.latest(f"{work(self.round)}/{name}")


def distilled(run: Journal, loop: Loop, name: str) -> Model:
    """A second copy of the base (accelerator memory has to hold both) after as many rounds as the
    run has healed, as the rival of this name."""
    cfg = replace(run.cfg, **CHANGES[name], kl_budget=0.0)
    rival = load(cfg)
    loop(rival, run.data, replace(cfg, rounds=run.last + 1), Rival(run, name))
    return rival
