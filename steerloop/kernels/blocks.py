"""One compiled block in the place of all: what lies between a decoding step's products is a few
kernels, where the library launches some sixty of microseconds each (docs/bench/README.md).

The blocks of a decoder differ in their weights, and in the number under which they keep keys and
values. Compiled with that number there would be one compilation a block, so each sees a cache that
does not ask for it. Kinds of blocks (with a window, with a stack beside the weights) are compiled
once each, for all shapes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, no_type_check

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from steerloop.kernels.hardware import compiled

KINDS = 32  # compilations of a block, above which torch would run it as it is
CACHES = ("cache", "past_key_values")  # what versions of the library call it


class Own:
    """A cache as one block sees it: what the block adds goes to its own layer."""

    def __init__(self, layer: CacheLayerMixin) -> None:
        self.layer = layer

    @no_type_check  # the compiler reads it
    def update(
        self, keys: Tensor, values: Tensor, number: int, *more: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values read so far, with these."""
        return self.layer.update(keys, values, *more, **named)


def forward(run: Any, block: nn.Module, number: int, *given: Any, **named: Any) -> Any:
    """A block of this number by `run`, the forward function of its class."""
    for name in CACHES:
        if isinstance(cache := named.get(name), Cache):
            named[name] = Own(cache.layers[number])
    return run(block, *given, **named)


@contextmanager
def one_block(decoder: nn.Module) -> Iterator[None]:
    """While open, every block of a decoder runs compiled; as it is where there is no compiler. No
    gradient may pass. A block that cannot be compiled raises RuntimeError when it runs."""
    try:
        for number, block in enumerate(decoder.layers):
            run = compiled(type(block).forward, next(block.parameters()))
            block.forward = partial(forward, run, block, number)
        with torch._dynamo.config.patch(recompile_limit=KINDS):
            yield
    finally:
        for block in decoder.layers:
            vars(block).pop("forward", None)
