"""One decoding step after another: as the model runs it, or on CUDA replayed from a recorded graph.

At a few rows a step is hundreds of kernels of microseconds each, and launching them takes longer
than they do. A graph is launched once, but its tensors may not move and its shapes may not change:
keys and values are put into buffers with room for all new tokens, and rows that ended stay in them
until half of the batch has. Elsewhere shapes follow the rows, which costs less there.

Letters: b rows in flight, T tokens so far, v vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from loguru import logger
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from steerloop.kernels.weights import cached, empty_cache

PAYS = 16  # steps from which recording is repaid
KNOWN = (DynamicLayer, DynamicSlidingWindowLayer)


class Eager:
    """Steps of `model` (trunk, head), in the shapes of the rows."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, rows: Any) -> Float[Tensor, "b v"]:
        """Logits of the next token of each row, good until the next step; what was read joins the
        cache."""
        return self.model.head(self.model.trunk(rows.ids, rows.mask, rows.cache)[:, -1])

    def least(self, b: int) -> int:
        """Of b rows, how many may be alive at most for the others to be let go."""
        return b - 1

    def close(self, rows: Any) -> None:
        """The rows are about to change, or the decoding is over."""


class Recorded(Eager):
    """The same from a graph, recorded at the second step, when the prompts have been read."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.replay: Callable[[], Any] | None = None
        self.barred = False  # could not be recorded: said once, then as the model runs it

    def __call__(self, rows: Any) -> Float[Tensor, "b v"]:
        if rows.ids.shape[1] > 1 or self.barred or not self.opened(rows):
            return super().__call__(rows)
        self.ids.copy_(rows.ids)
        self.mask[:, rows.mask.shape[1] - 1] = 1
        self.replay()
        return self.logits

    def least(self, b: int) -> int:
        return b - 1 if self.replay is None else b // 2

    def opened(self, rows: Any) -> bool:
        """Whether there is a graph of these rows, which is recorded if need be."""
        if self.replay is None:
            read = rows.mask.shape[1] - 1  # the last of T is read by this step
            self.ids, self.cache = rows.ids.clone(), fixed(rows.cache, read, rows.draws.shape[1])
            self.mask = torch.nn.functional.pad(rows.mask.long(), (0, rows.draws.shape[1]))
            try:
                self.replay, self.logits = record(self.step)
            except (RuntimeError, TypeError, ValueError) as e:  # what can't be captured
                self.barred = True
                barred(f"{type(e).__name__}: {str(e).splitlines()[0]}")
                return False
            for layer in self.cache.layers:
                layer.cumulative_length.fill_(read)  # recording ran ahead
        return True

    def step(self) -> Float[Tensor, "b v"]:
        """What is recorded: reads and writes the buffers alone."""
        place = self.mask.sum(-1, keepdim=True) - 1
        decoder = self.model.decoder
        out = decoder(input_ids=self.ids, attention_mask=self.mask, position_ids=place,
                      **cached(decoder, self.cache))
        return self.model.head(out.last_hidden_state[:, -1])

    def close(self, rows: Any) -> None:
        if self.replay is not None:
            rows.cache = flowing(self.cache, rows.mask.shape[1] - 1, self.model.hf)
            self.replay = None


def steps(model: Any, rows: Any) -> Eager:
    """The way to take the steps of rows that are to be decoded."""
    whole = hasattr(model, "decoder")  # not one whose gates change while it decodes, as in a chat
    if not (whole and recordable(rows.ids.device) and rows.draws.shape[1] >= PAYS):
        return Eager(model)
    if any(type(x) not in KNOWN for x in rows.cache.layers):
        barred("this model's cache has layers of another kind")
        return Eager(model)
    return Recorded(model)


def recordable(device: torch.device) -> bool:
    """Whether a device has graphs to record."""
    return device.type == "cuda"


def fixed(cache: Cache, read: int, room: int) -> Cache:
    """Keys and values of `read` tokens, in buffers with `room` for as many more.

    Layers with a window keep its tokens alone; they are put where they belong, and the mask of the
    window hides what is missing.
    """
    layers = []
    for old in cache.layers:
        new = StaticLayer(read + room)
        new.lazy_initialization(old.keys, old.values)
        new.keys[:, :, read - old.keys.shape[2] : read] = old.keys
        new.values[:, :, read - old.values.shape[2] : read] = old.values
        new.cumulative_length.fill_(read)
        layers.append(new)
    return Cache(layers=layers)


def flowing(cache: Cache, read: int, hf: Any) -> Cache:
    """The way back: a cache that grows."""
    found = empty_cache(hf)
    for old, new in zip(cache.layers, found.layers, strict=True):
        new.update(old.keys[:, :, :read].contiguous(), old.values[:, :, :read].contiguous())
    return found


def record(run: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
    """A function that repeats what `run` does on the GPU, and the tensor that it fills."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):  # libraries allocate and choose kernels at the first calls
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    return graph.replay, out


_said: set[str] = set()


def barred(why: str) -> None:
    """Says once that, and why, steps are not recorded."""
    if why not in _said:
        _said.add(why)
        logger.warning(f"decoding step by step, slower than from a CUDA graph: {why}")
