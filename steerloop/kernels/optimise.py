"""Parts of an optimisation: AdamW with its schedule, what a term adds to the gradient, the account
of its steps, gradient checkpointing."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import fmean

import torch
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import PreTrainedModel


def cosine_rate(step: int, warmup: int, steps: int) -> float:
    """Share of the peak rate: linear from 0 over `warmup` steps, then half a cosine down to 0.

    The library's own schedule comes with its trainer, and that with every optional package.
    """
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def adamw(
    live: list[torch.nn.Parameter], lr: float, betas: list[float], decay: float, warmup: float,
    steps: int,
) -> tuple[Optimizer, LRScheduler]:
    """AdamW with decoupled decay under `cosine_rate`; `warmup` is a share of the steps."""
    optimiser = AdamW(live, lr, tuple(betas), weight_decay=decay)
    return optimiser, LambdaLR(
        optimiser, partial(cosine_rate, warmup=int(warmup * steps), steps=steps))


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


def account(log: list[list[list[float]]], last: int, tau: float) -> dict[str, float]:
    """What the record of a heal says of its steps' (NLL per token, A_row per row), nats: NLL of the
    first step and of the `last` ones, A_row of those, and the share of all rows over τ."""
    nll, operating = ([x for losses in log[-last:] for x in losses[i]] for i in (0, 1))
    active = [x > tau for losses in log for x in losses[1]]
    return {"nll_first": fmean(log[0][0]), "nll": fmean(nll),
            "operating_kl": fmean(operating or [0]), "active": fmean(active or [0])}


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
