"""AdamW with its schedule, which goes on after an interruption; gradient checkpointing."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW
from transformers import PreTrainedModel

from steerloop.healing.repeatable import repeatable
from steerloop.loading.fit import check_trainable


def cosine_rate(step: int, warmup: int, steps: int) -> float:
    """Share of the peak rate: linear from 0 over `warmup` steps, then half a cosine down to 0.

    The library's own schedule comes with its trainer, and that with every optional package.
    """
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class Scheduled(AdamW):
    """AdamW with decoupled decay and clipped gradients under `cosine_rate`. `cfg` has lr, betas,
    weight_decay, warmup (a share of the steps), clip."""

    def __init__(self, live: list[torch.nn.Parameter], cfg: Any, steps: int) -> None:
        super().__init__(live, cfg.lr, tuple(cfg.betas), weight_decay=cfg.weight_decay)
        self.live, self.cfg, self.steps = live, cfg, steps
        self.zero_grad()  # of a heal that was stopped

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        warmup = int(self.cfg.warmup * self.steps)
        return self.cfg.lr * cosine_rate(step, warmup, self.steps)

    def advance(self, step: int) -> float:
        """Take a step, the gradient is gone; returns its norm before it was clipped. Where that is
        not finite, nothing is done."""
        norm = torch.nn.utils.clip_grad_norm_(self.live, self.cfg.clip).item()
        if math.isfinite(norm):
            for group in self.param_groups:
                group["lr"] = self.rate(step)
            self.step()
            self.zero_grad()
        return norm

    def state_tensors(self) -> dict[str, Tensor]:
        """Factors and moments by name, of any shape; the schedule needs but the number of the
        step."""
        moments = {f"{i}.{k}": x for i, p in enumerate(self.live) for k, x in self.state[p].items()}
        return moments | {str(i): p.detach() for i, p in enumerate(self.live)}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state_tensors` gave, of any shape."""
        for key, x in tensors.items():
            i, _, moment = key.partition(".")
            if moment:
                self.state[self.live[int(i)]][moment] = x.cpu() if moment == "step" else x
            else:
                self.live[int(i)].copy_(x)


@contextmanager
def training(model: PreTrainedModel, checkpointing: bool) -> Iterator[None]:
    """Backward passes that the same seed repeats to the bit, activations recomputed in them if
    `checkpointing`. Raises UserError as `checkpointed` does."""
    with checkpointed(model, checkpointing), repeatable(model, model.device):
        yield


@contextmanager
def checkpointed(model: PreTrainedModel, on: bool) -> Iterator[None]:
    """Recompute activations in backward, if `on`; the model is back in eval mode after it.

    The library recomputes in training mode only. Raises UserError for a model with dropout, which
    that mode would switch on.
    """
    if not on:
        yield
        return
    check_trainable(model, on)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    try:
        yield
    finally:
        model.eval()
        model.gradient_checkpointing_disable()
