"""What a loaded model has to be, tried on a prompt: its blocks put out one residual stream, and a
row of a batch is what it is alone, padded on either side, and read on from a cache.

Letters: b rows, t tokens, d width; v vocabulary; n tokens of the prompt, m of its first half.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import partial
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from loguru import logger
from torch import Tensor, nn
from transformers import Cache

from steerloop import UserError
from steerloop.kernels.caches import arrange, empty_cache

STEPS = 3  # tokens that are read on from a cache: two, then one
BOUND, ROUNDED = 5e-3, 0.3  # share of their spread by which logits may differ: fp32, 16 bits
NOISE = 3  # times what rounding alone makes


@contextmanager
def watched(model: Any, b: int) -> Iterator[None]:
    """A pass over a batch of b rows in this block has to go through the model as steering and the
    stack assume.

    Raises UserError where a block puts out something else than one vector a token, or runs several
    times; where a target flattens its rows, or is passed by.
    """
    runs: Counter[int] = Counter()
    heard: set[str] = set()

    def one_stream(block: nn.Module, inputs: Any, out: Any, i: int) -> None:
        h, runs[i] = out[0] if isinstance(out, tuple) else out, runs[i] + 1
        if not isinstance(h, Tensor) or h.ndim != 3 or len(h) != b:
            shape = list(h.shape) if isinstance(h, Tensor) else type(h).__name__
            raise UserError(f"block {i} puts out {shape}, not one residual stream of [rows, tokens,"
                            " width], to which a steering vector could be added; take a model with "
                            "one stream")

    def rows_kept(layer: nn.Module, inputs: tuple[Tensor], path: str) -> None:
        heard.add(path.rpartition(".")[2])
        if inputs[0].ndim != 3 or len(inputs[0]) != b:
            raise UserError(f"{path} flattens its rows, as mixtures of experts do; leave it out of "
                            "--targets")

    with ExitStack() as hooks:
        for path, layer in model.layers.items():
            watch = layer.register_forward_pre_hook(partial(rows_kept, path=path))
            hooks.callback(watch.remove)
        for i, block in enumerate(model.decoder.layers):
            hooks.callback(block.register_forward_hook(partial(one_stream, i=i)).remove)
        yield
    if again := [i for i in range(len(model.decoder.layers)) if runs[i] != 1]:
        raise UserError(f"its block {again[0]} runs {runs[again[0]]} times for a token, where a "
                        "steering vector is added once; take another model")
    if passed := sorted({path.rpartition(".")[2] for path in model.layers} - heard):
        raise UserError(f"--targets {' '.join(passed)}: its weights are taken without calling "
                        "it, so no training would reach it; leave it out")


def apart(found: Float[Tensor, "*n v"], wanted: Float[Tensor, "*n v"]) -> float:
    """Root mean square of the difference of logits, as a share of the spread of those wanted."""
    return ((found - wanted).square().mean().sqrt() / wanted.std()).item()


def same(
    found: Float[Tensor, "*n v"], wanted: Float[Tensor, "*n v"], bound: float, why: str
) -> None:
    """Raises UserError where logits are further apart than `bound`, or not finite."""
    if not (gap := apart(found, wanted)) <= bound:
        raise UserError(f"{why} (its logits are off by {gap:.1%}), so it cannot be read in batches;"
                        " take another model")


class Pair:
    """A prompt and its first half in one batch, the half padded on either side: not with blanks but
    with other tokens of the prompt, so that what leaks is heard."""

    def __init__(self, model: Any, ids: Int[Tensor, "1 n"]) -> None:
        self.model = model
        self.n = ids.shape[1]
        self.m = self.n // 2
        self.right, self.left = ids.expand(2, -1), torch.cat([ids, ids.roll(self.n - self.m, 1)])
        start = torch.tensor([[0], [self.n - self.m]], device=ids.device)
        self.mask = torch.arange(self.n, device=ids.device) >= start  # of the left-padded

    def ended(self, other: bool = False) -> Float[Tensor, "2 m v"]:
        """Logits of the first half of both rows; the padding after the second is this or `other`.
        """
        mask = self.mask.flip(1)
        ids = self.right.where(mask, self.right.flip(1)) if other else self.right
        return self.model.head(self.model.trunk(ids, mask)[:, : self.m])

    def begun(self, cache: Cache, other: bool = False) -> Float[Tensor, "m v"]:
        """Logits of the half, read into an empty cache but for its last tokens."""
        ids = self.left.where(self.mask, self.left.flip(1)) if other else self.left
        h = self.model.trunk(ids[:, :-STEPS], self.mask[:, :-STEPS], cache)
        return self.model.head(h[1, self.n - self.m :])

    def gone_on(self, cache: Cache) -> Float[Tensor, "2 s v"]:
        """Logits of those last tokens, from a cache in which the half is there twice."""
        ids, mask = self.left[[1, 1]], self.mask[[1, 1]]
        h = [self.model.trunk(ids[:, -STEPS:-1], mask[:, :-1], cache),
             self.model.trunk(ids[:, -1:], mask, cache)]
        return self.model.head(torch.cat(h, dim=1))


def check_rows(model: Any, ids: Int[Tensor, "1 n"], alone: Float[Tensor, "n v"]) -> None:
    """Every token of a row has the logits of the prompt `alone`: beside another row, before and
    after padding, and read on from a cache. Raises UserError where that is not so."""
    pair, cache = Pair(model, ids), empty_cache(model.hf)
    rounded = model.head.weight.dtype != torch.float32
    bound, alone = ROUNDED if rounded else BOUND, alone[: pair.m]
    with watched(model, b=2):
        long, short = pair.ended()
    same(long, alone, bound, "a row beside another is not what it is alone")
    same(short, alone, bound, "a token depends on what comes after it")
    told = "position_ids" in signature(model.decoder.forward).parameters
    if not told and not all(cache.is_linear):
        raise UserError("it counts positions by itself, padding before a row included, so it "
                        "cannot be read in batches; take another model")
    padded = pair.begun(cache)
    same(padded, alone[:-STEPS], bound, "padding before a row gets into it")
    if rounded:  # which may hide a leak: the same shapes round alike, whatever the padding is
        loads = apart(pair.ended(other=True)[1], short)  # experts round by how many tokens they get
        other = pair.begun(empty_cache(model.hf), other=True)
        same(other, padded, max(BOUND, NOISE * loads), "padding before a row gets into it")
    arrange(cache, torch.tensor([1, 1], device=ids.device))
    check_cache(pair, cache, alone[-STEPS:].expand(2, -1, -1), bound)


def check_cache(pair: Pair, cache: Cache, wanted: Float[Tensor, "2 s v"], bound: float) -> None:
    """Find out whether a cache goes on by several tokens at once, else make the trunk `stepwise`.
    Raises UserError where it does not go on at all."""
    trunk = pair.model.trunk
    at_once = pair.gone_on(deepcopy(cache))
    trunk.stepwise = True
    one_by_one = pair.gone_on(cache)
    same(one_by_one, wanted, bound, "its cache does not go on as one pass does")
    noise = NOISE * apart(one_by_one, wanted)
    trunk.stepwise = not apart(at_once, one_by_one) <= max(BOUND, noise)
    if trunk.stepwise:
        logger.warning(f"the cache of {type(pair.model.hf).__name__} goes on one token at a time "
                       "alone: evaluation takes longer")
