"""One decoding step after another: as the model runs it, or on CUDA replayed from a recorded graph.

At a few rows a step is hundreds of kernels of microseconds each, and launching them takes longer
than they do. A graph is launched once, but its tensors may not move and its shapes may not change:
keys and values are put into buffers with room for all new tokens, and rows that ended stay in them
until half of the batch has. Of a long text the blocks in it are compiled (kernels/blocks.py).
Elsewhere shapes follow the rows, which costs less there.

Letters: b rows in flight, T tokens so far, v vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from traceback import extract_tb
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Float
from loguru import logger
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from steerloop.kernels.blocks import one_block
from steerloop.kernels.caches import Read, empty_cache
from steerloop.kernels.trunk import Trunk

PAYS = 16  # steps from which recording is repaid
LONG = 100  # and compiling, where it was done before; the first time takes thousands
COMPILING = "compiling"  # what is refused, beside batches
KNOWN = (DynamicLayer, DynamicSlidingWindowLayer)
refused: WeakKeyDictionary[Any, set[Any]] = WeakKeyDictionary()  # decoder → batches, reasons
Logits = Callable[[Tensor], Tensor]  # hidden states (b, d) → (b, v)


class Eager:
    """Steps in the shapes of the rows."""

    def __init__(self, trunk: Read, head: Logits) -> None:
        self.trunk, self.head = trunk, head

    def __call__(self, rows: Any) -> Float[Tensor, "b v"]:
        """Logits of the next token of each row, good until the next step; what was read joins the
        cache."""
        return self.head(self.trunk(rows.ids, rows.mask, rows.cache)[:, -1])

    def shrinks(self, alive: int, b: int) -> bool:
        """Whether it is worth it to go on with the rows that are alive alone."""
        return alive < b

    def close(self, rows: Any) -> None:
        """The rows are about to change, or the decoding is over."""


class Recorded(Eager):
    """The same from a graph. It is recorded when the prompts have been read, and again when half
    of the rows have gone; not for the last few steps."""

    def __init__(self, trunk: Trunk, head: Logits, rows: Any) -> None:
        super().__init__(trunk, head)
        self.decoder = trunk.decoder
        self.end = rows.mask.shape[1] + rows.draws.shape[1]  # tokens at most
        self.long = rows.draws.shape[1] >= LONG
        self.replay: Callable[[], Any] | None = None
        self.ids = self.mask = self.logits = rows.ids  # the buffers, once there are some

    def __call__(self, rows: Any) -> Float[Tensor, "b v"]:
        if self.replay is None and not self.record(rows):
            return super().__call__(rows)
        self.ids.copy_(rows.ids)
        self.mask[:, rows.mask.shape[1] - 1] = 1
        self.replay()
        return self.logits

    def shrinks(self, alive: int, b: int) -> bool:
        return alive <= b // 2 if self.replay else alive < b

    def record(self, rows: Any) -> bool:
        """Record a step of these rows, if that is possible and pays."""
        read = rows.mask.shape[1] - 1  # the last of T is read by the step itself
        batch = len(rows.ids), self.end
        if (rows.ids.shape[1] > 1 or not read or self.end - read < PAYS
                or batch in refused.get(self.decoder, ())):
            return False
        self.ids = rows.ids.clone()
        self.mask = F.pad(rows.mask, (0, self.end - read - 1))
        rows.cache = fixed(rows.cache, read, self.end)

        def run() -> Float[Tensor, "b v"]:  # reads and writes the buffers alone
            place = self.mask.sum(-1, keepdim=True) - 1
            return self.head(self.trunk(self.ids, self.mask, rows.cache, place)[:, -1])

        try:
            self.replay, self.logits = self.fastest(run, rows.ids.device)
        except RuntimeError as e:  # what can't be recorded
            refuse(self.decoder, batch, e.__context__ or e)
            rows.cache = flowing(rows.cache, read, self.decoder)
            return False
        for layer in rows.cache.layers:
            layer.cumulative_length.fill_(read)  # recording ran ahead
        return True

    def fastest(
        self, run: Callable[[], Tensor], device: torch.device
    ) -> tuple[Callable[[], Any], Tensor]:
        """`repeatable`, of compiled blocks where that pays and can be done."""
        if self.long and COMPILING not in refused.get(self.decoder, ()):
            try:
                with one_block(self.decoder):
                    return repeatable(run, device)
            except RuntimeError as e:
                refuse(self.decoder, COMPILING, e)
        return repeatable(run, device)

    def close(self, rows: Any) -> None:
        if self.replay:
            self.replay = None
            rows.cache = flowing(rows.cache, rows.mask.shape[1] - 1, self.decoder)


def steps(trunk: Trunk, head: Logits, rows: Any) -> Eager:
    """The way to take the steps of rows that are to be decoded. What is heard beside the base, and
    steers, stays as it is until they are; doses and gates of a row are those of `rows`."""
    if not recordable(rows.ids.device):
        return Eager(trunk, head)
    if any(type(x) not in KNOWN for x in rows.cache.layers):
        refuse(trunk.decoder, len(rows.ids), TypeError("its cache has layers of another kind"))
        return Eager(trunk, head)
    return Recorded(trunk, head, rows)


def recordable(device: torch.device) -> bool:
    """Whether a device has graphs to record."""
    return device.type == "cuda"


def refuse(decoder: PreTrainedModel, batch: Any, why: BaseException) -> None:
    """Steps of such a `batch` are not recorded, or blocks not compiled (COMPILING); why and where
    is said once."""
    first = (str(why).strip() or type(why).__name__).splitlines()[0]
    for frame in extract_tb(why.__traceback__)[-1:]:  # the innermost: there it was asked for
        first += f" ({frame.filename}:{frame.lineno})"
    known = refused.setdefault(decoder, set())
    if first not in known:
        what = "from blocks as they are, slower than compiled" if batch == COMPILING else (
            "step by step, slower than from a CUDA graph")
        logger.warning(f"decoding {what}: {first}")
    known |= {batch, first}


def fixed(cache: Cache, read: int, end: int) -> Cache:
    """Keys and values of `read` tokens in buffers for `end` of them; `cache` is used up.

    Layers with a window keep its tokens alone; they are put where they belong, and the mask of the
    window hides what is missing.
    """
    layers = []
    for old in cache.layers:
        new = StaticLayer(end)
        new.lazy_initialization(old.keys, old.values)
        new.keys[:, :, read - old.keys.shape[2] : read] = old.keys
        new.values[:, :, read - old.values.shape[2] : read] = old.values
        new.cumulative_length.fill_(read)
        old.keys = old.values = None  # memory for one layer twice, not for all
        layers.append(new)
    return Cache(layers=layers)


def flowing(cache: Cache, read: int, decoder: PreTrainedModel) -> Cache:
    """The way back: a cache that grows, of `read` tokens; `cache` is used up."""
    grown = empty_cache(decoder)
    for old, new in zip(cache.layers, grown.layers, strict=True):
        new.update(old.keys[:, :, :read], old.values[:, :, :read])
        old.keys = old.values = None
    return grown


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """Where graphs of a device are recorded: libraries keep workspaces for every stream."""
    return torch.cuda.Stream(device)


@contextmanager
def waits_forbidden() -> Iterator[None]:
    """While open, whatever makes the host wait for the GPU is an error: no graph can hold it."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def repeatable(run: Callable[[], Tensor], device: torch.device
               ) -> tuple[Callable[[], Any], Tensor]:
    """A function that repeats what `run` does on a GPU, and the tensor that it fills.

    Raises RuntimeError where that is not possible, most often before recording begins: a recording
    that breaks off leaves the allocator in disorder.
    """
    with torch.cuda.device(device):
        side = side_stream(device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()  # libraries allocate and choose kernels
            with waits_forbidden():
                run()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=side):
                out = run()
        torch.cuda.current_stream().wait_stream(side)
    return graph.replay, out
