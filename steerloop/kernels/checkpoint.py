"""Gradient checkpointing for the length of a `with` block."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel


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
