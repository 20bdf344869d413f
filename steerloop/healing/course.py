"""A heal as it goes: its optimiser, what it keeps to go on from, and what its record says (losses,
how often the barrier was active, how hard it pulled)."""

from collections.abc import Callable
from math import isfinite
from statistics import fmean
from typing import Any

import polars as pl
import torch
from loguru import logger

from steerloop.barrier import Barrier
from steerloop.healing.optimiser import Scheduled
from steerloop.runfolder.progress import Bar
from steerloop.runfolder.recorder import Recorder

Losses = list[list[float]]  # of a step: NLLs per token, A_rows; nats
STEPS = {"step": pl.Int64, "epoch": pl.Int64, "nll": pl.Float64, "a_row": pl.Float64,
         "tau": pl.Float64, "active": pl.Float64, "grad_norm": pl.Float64, "lr": pl.Float64}


class Course:
    """The steps of one heal on the factors `live`; `done` epochs are over already, where `run` kept
    the state of one that was interrupted."""

    def __init__(
        self, live: list[torch.nn.Parameter], barrier: Barrier, cfg: Any, round: int,
        per_epoch: int, run: Recorder,
    ) -> None:  # fmt: skip
        self.barrier, self.round, self.per_epoch, self.run = barrier, round, per_epoch, run
        self.name = cfg.barrier  # plain distillation of the same round has its own
        steps = cfg.epochs * per_epoch
        self.optimiser = Scheduled(live, cfg, steps)
        self.step = self.done = 0
        self.log: list[Losses] = []
        self.norms: list[float] = []  # of the gradient of each step, before it was clipped
        self.pulls: list[float] = []
        self.free: torch.Tensor | None = None  # gradient of a step by the NLL alone
        if (state := run.saved(self.name)) is not None:
            tensors, note = state
            self.optimiser.restore(tensors)
            self.step, self.log = note["done"], note["log"]
            self.norms, self.pulls = note["norms"], note["pulls"]
            self.done = self.step // per_epoch
            for step in range(self.step):
                run.step(self.row(step))
        self.bar = Bar(total=steps, initial=self.step, desc="heal", unit="step")

    def begin(self, epoch: int, loss: Callable[..., object]) -> None:
        """An epoch begins, whose first step has this `loss`: but for the first one the state is
        kept, and the gradient of the NLL taken, beside which that of the step shows the pull."""
        if epoch == 0:
            return
        note = {"done": self.step, "log": self.log, "norms": self.norms, "pulls": self.pulls}
        self.run.save(self.name, self.optimiser.state_tensors(), **note)
        if self.barrier.kind != "nll" and self.barrier.lam:
            loss(barrier=self.barrier._replace(lam=0.0))
            self.free = gradient(self.optimiser.live)
            for x in self.optimiser.live:
                x.grad = None

    def advance(self, losses: Losses, rows: list[int]) -> None:
        """Take a step by the gradient that is there; `losses` of it are nats, its `rows` are those
        of the table. Raises FloatingPointError, Δ as it was, where it is not finite."""
        if self.free is not None:
            self.pulls.append(added(gradient(self.optimiser.live), self.free))
            self.free = None
        norm = self.optimiser.advance(self.step)
        if not isfinite(norm):
            self.bar.close()
            raise FloatingPointError(
                f"round {self.round + 1}, heal step {self.step}: the gradient is not finite; "
                f"lower --lr (--force), look at rows {rows}")
        self.log.append(losses)
        self.norms.append(norm)
        self.run.step(self.row(self.step))
        self.step += 1
        self.bar.set_postfix(nll=fmean(losses[0]), kl=fmean(losses[1] or [0]), refresh=False)
        self.bar.update()

    def row(self, step: int) -> dict[str, Any]:
        """A step that was taken, as a row of `steps`."""
        nlls, tops = self.log[step]
        hinge = self.barrier.kind.startswith("kl")
        values = (step, step // self.per_epoch, fmean(nlls), fmean(tops) if tops else None,
                  self.barrier.tau if hinge else None,
                  fmean(x > self.barrier.tau for x in tops) if hinge else None,
                  self.norms[step], self.optimiser.rate(step))
        return dict(zip(STEPS, values, strict=True))

    def steps(self) -> pl.DataFrame:
        """A row an optimiser step, both counted from 0: `nll` per token, mean `a_row` and `tau`,
        nats; `active`, the share of its rows over τ; `grad_norm` before clipping; `lr`. Without a
        barrier there is no `a_row`; of `spectral` it is the mean norm; τ is that of a hinge."""
        return pl.DataFrame([self.row(step) for step in range(self.step)], STEPS)

    def account(self, val: list[float]) -> dict[str, float | None]:
        """What the record says, in nats: NLL per token of the first step (`nll_first`), the last
        epoch (`nll`) and the rows held out (`val_nll`, from `val`); `operating_kl`, the mean A_row
        of the last epoch; `active`, the share of all rows seen that were over τ; `pull`, the size
        of the barrier's gradient over that of the NLL, None where there is none. A barrier that
        never fired is said aloud, and the recorder gets the steps."""
        self.bar.close()
        self.run.steps(self.steps())
        nll, operating = ([x for losses in self.log[-self.per_epoch :] for x in losses[i]]
                          for i in (0, 1))
        barrier = self.barrier
        active = [x > barrier.tau for losses in self.log for x in losses[1]]
        stats = {"nll_first": fmean(self.log[0][0]), "nll": fmean(nll),
                 "operating_kl": fmean(operating or [0]), "active": fmean(active or [0]),
                 "val_nll": fmean(val or [0]), "lam": barrier.lam, "tau": barrier.tau,
                 "steps": len(self.log), "pull": fmean(self.pulls) if self.pulls else None}
        if barrier.kind.startswith("kl") and stats["active"] == 0:
            logger.warning(f"the barrier never fired: τ is {barrier.tau:.3g}; set --tau below the "
                           f"operating KL, {stats['operating_kl']:.3g} nats ({barrier.agg})")
        return stats


def gradient(live: list[torch.nn.Parameter]) -> torch.Tensor:
    """What is accumulated of it, in one vector."""
    return torch.cat([x.grad.flatten() for x in live])


def added(whole: torch.Tensor, part: torch.Tensor) -> float:
    """‖whole − part‖ / ‖part‖, of two gradients."""
    return ((whole - part).norm() / part.norm()).item()
