"""Parts of an optimisation: AdamW with its schedule, what a term adds to the gradient, the account
of its steps, gradient checkpointing."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import Any

import torch
from loguru import logger
from torch.optim import AdamW
from transformers import PreTrainedModel

from steerloop.kernels.fused_loss import Barrier


def cosine_rate(step: int, warmup: int, steps: int) -> float:
    """Share of the peak rate: linear from 0 over `warmup` steps, then half a cosine down to 0.

    The library's own schedule comes with its trainer, and that with every optional package.
    """
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


Log = list[list[list[float]]]  # of each step, its NLLs per token and A_rows, nats


class Scheduled(AdamW):
    """AdamW with decoupled decay and clipped gradients under `cosine_rate`, which goes on after an
    interruption. `cfg` has lr, betas, weight_decay, warmup (a share of the steps), clip."""

    def __init__(self, live: list[torch.nn.Parameter], cfg: Any, steps: int) -> None:
        super().__init__(live, cfg.lr, tuple(cfg.betas), weight_decay=cfg.weight_decay)
        self.live, self.cfg, self.steps = live, cfg, steps
        self.zero_grad()  # of a heal that was stopped

    def advance(self, step: int) -> bool:
        """Take a step, the gradient is gone; False, and nothing done, where it is not finite."""
        if not torch.isfinite(torch.nn.utils.clip_grad_norm_(self.live, self.cfg.clip)):
            return False
        for group in self.param_groups:
            warmup = int(self.cfg.warmup * self.steps)
            group["lr"] = self.cfg.lr * cosine_rate(step, warmup, self.steps)
        self.step()
        self.zero_grad()
        return True

    def keep(self, run: Any, name: str, **note: Any) -> None:
        """Factors and moments into a run folder; the schedule needs but the number of the step."""
        tensors = {f"{i}.{k}": x for i, p in enumerate(self.live)
                   for k, x in self.state[p].items()}
        run.tensors(name, tensors | {str(i): p.detach() for i, p in enumerate(self.live)}, **note)

    @torch.no_grad()
    def resume(self, run: Any, name: str) -> tuple[int, Log, list[float]]:
        """Take over what was kept: steps done, the log of their losses, pulls."""
        if (found := run.latest(name)) is None:
            return 0, [], []
        tensors, note = found
        for key, x in tensors.items():
            i, _, moment = key.partition(".")
            if moment:
                self.state[self.live[int(i)]][moment] = x.cpu() if moment == "step" else x
            else:
                self.live[int(i)].copy_(x)
        return note["done"], note["log"], note["pulls"]


def added(
    live: list[torch.nn.Parameter], whole: Callable[[], object], part: Callable[[], object]
) -> float:
    """‖∇whole − ∇part‖ / ‖∇part‖, where both accumulate gradients; none is left behind."""
    grads = []
    for run in (whole, part):
        run()
        grads.append(torch.cat([x.grad.flatten() for x in live]))
        for x in live:
            x.grad = None
    return ((grads[0] - grads[1]).norm() / grads[1].norm()).item()


def account(
    log: Log, last: int, barrier: Barrier, val: list[float], pulls: list[float]
) -> dict[str, float | None]:
    """What the record of a heal says: NLL of its first step, of the `last` ones and of `val`, A_row
    of those, the share of all rows over τ, the mean of `pulls`. A barrier that never fired is said
    aloud."""
    nll, operating = ([x for losses in log[-last:] for x in losses[i]] for i in (0, 1))
    active = [x > barrier.tau for losses in log for x in losses[1]]
    found = {"nll_first": fmean(log[0][0]), "nll": fmean(nll),
             "operating_kl": fmean(operating or [0]), "active": fmean(active or [0]),
             "val_nll": fmean(val or [0]), "lam": barrier.lam, "tau": barrier.tau,
             "steps": len(log), "pull": fmean(pulls) if pulls else None}
    if barrier.kind.startswith("kl") and found["active"] == 0:
        logger.warning(f"the barrier never fired: set --tau, {barrier.tau:g}, below the operating "
                       f"KL, {found['operating_kl']:.3g} nats ({barrier.agg})")
    return found


@contextmanager
def checkpointed(model: PreTrainedModel, on: bool) -> Iterator[None]:
    """Recompute activations in backward, if `on`; the model is back in eval mode after it.

    The library recomputes in training mode only. Raises ValueError for a model with dropout,
    which that mode would switch on.
    """
    if not on:
        yield
        return
    config = model.config.get_text_config()
    if any(value for key, value in vars(config).items() if "dropout" in key):
        raise ValueError("checkpointing needs training mode, where this model's dropout is active")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    try:
        yield
    finally:
        model.eval()
        model.gradient_checkpointing_disable()
