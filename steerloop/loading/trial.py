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


def apart(found: Float[Tensor, "n v"], wanted: Float[Tensor, "n v"]) -> float:
    """Root mean square of the difference of logits, as a share of the spread of those wanted."""
    return ((found - wanted).square().mean().sqrt() / wanted.std()).item()


def same(found: Float[Tensor, "n v"], wanted: Float[Tensor, "n v"], bound: float, why: str) -> None:
    """Raises UserError where logits are further apart than `bound`, or not finite."""
    if not (gap := apart(found, wanted)) <= bound:
        raise UserError(f"{why} (its logits are off by {gap:.1%}), so it cannot be read in batches;"
                        " take another model")


def check_rows(model: Any, ids: Int[Tensor, "1 n"], alone: Float[Tensor, "n v"]) -> None:
    """A prompt and its first half in one batch: every token has the logits of the prompt `alone`.

    The half is padded with other tokens of the prompt, not with blanks: what leaks is heard. Finds
    out whether the cache goes on by several tokens, else makes the trunk `stepwise`.
    Raises UserError where logits are others.
    """
    n = ids.shape[1]
    m = n // 2
    alone = alone[:m]
    rounded = model.head.weight.dtype != torch.float32
    bound = ROUNDED if rounded else BOUND
    full = torch.full_like(ids, True, dtype=torch.bool)
    mask = torch.cat([full, full.cumsum(-1) > n - m])
    right, left = ids.expand(2, -1), torch.cat([ids, ids.roll(n - m, dims=1)])

    def ended(ids: Int[Tensor, "2 n"]) -> Float[Tensor, "2 m v"]:
        return model.head(model.trunk(ids, mask.flip(1))[:, :m])

    def begun(ids: Int[Tensor, "2 n"], cache: Cache) -> Float[Tensor, "m v"]:
        return model.head(model.trunk(ids[:, :-STEPS], mask[:, :-STEPS], cache)[1, n - m :])

    with watched(model, b=2):
        long, short = ended(right)
    same(long, alone, bound, "a row beside another is not what it is alone")
    same(short, alone, bound, "a token depends on what comes after it")
    cache = empty_cache(model.hf)
    told = "position_ids" in signature(model.decoder.forward).parameters
    if not told and not all(cache.is_linear):
        raise UserError("it counts positions by itself, padding before a row included, so it "
                        "cannot be read in batches; take another model")
    padded = begun(left, cache)
    same(padded, alone[:-STEPS], bound, "padding before a row gets into it")
    if rounded:  # may hide a leak: the same shapes again, the same rounding, but other padding
        loads = apart(ended(right.where(mask.flip(1), right.flip(1)))[1], short)  # of experts
        other = begun(left.where(mask, left.flip(1)), empty_cache(model.hf))
        same(other, padded, max(BOUND, NOISE * loads), "padding before a row gets into it")
    short = torch.tensor([1, 1], device=ids.device)
    arrange(cache, short)
    left, mask = left[short], mask[short]

    def gone_on(cache: Cache) -> Float[Tensor, "s v"]:
        h = [model.trunk(left[:, -STEPS:-1], mask[:, :-1], cache),
             model.trunk(left[:, -1:], mask, cache)]
        return model.head(torch.cat(h, dim=1)).flatten(0, 1)

    wanted = alone[-STEPS:].repeat(2, 1)
    at_once = gone_on(deepcopy(cache))
    model.trunk.stepwise = True
    one_by_one = gone_on(cache)
    same(one_by_one, wanted, bound, "its cache does not go on as one pass does")
    noise = NOISE * apart(one_by_one, wanted)
    model.trunk.stepwise = not apart(at_once, one_by_one) <= max(BOUND, noise)
    if model.trunk.stepwise:
        logger.warning(f"the cache of {type(model.hf).__name__} goes on one token at a time alone: "
                       "evaluation takes longer")
