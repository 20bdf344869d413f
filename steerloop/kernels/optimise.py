"""Two parts of an optimisation: the schedule of its rate, and gradient checkpointing."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel


def cosine_rate(step: int, warmup: int, steps: int) -> float:
    """Share of the peak rate: linear from 0 over `warmup` steps, then half a cosine down to 0.

    The library's own schedule comes with its trainer, and that with every optional package.
    """
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


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
