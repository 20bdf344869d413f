"""Residual states: what the blocks of the model put out."""

from contextlib import suppress
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from steerloop.kernels.batch import Ids, by_length
from steerloop.model import Model
from steerloop.ranks import dealt, gathered
from steerloop.runfolder.progress import Bar
from steerloop.texts.data import Data, Pairs

Vector = dict[int, Float[Tensor, "... d"]]  # block index → direction (or k of them), fp32


class _Deepest(Exception):
    """Ends a forward pass where nothing above is of interest."""


@torch.no_grad()
def states(
    model: Model, prompts: Ids, blocks: list[int], size: int
) -> dict[int, Float[Tensor, "n d"]]:
    """What each block puts out at the last token of each of n prompts. Nothing above the deepest
    block is computed. `size`: rows of one batch."""
    found: dict[int, list[Tensor]] = {b: [] for b in blocks}
    order, back = by_length([len(x) for x in prompts])
    mine = dealt(order)

    def read(h: Tensor, block: int) -> Tensor:
        found[block] += h[:, -1].float()
        if block == max(blocks):
            raise _Deepest
        return h

    hooks = {b: partial(read, block=b) for b in blocks}
    with model.dense():
        for i in Bar(range(0, len(mine), size), "extract"):
            with model.hooked(hooks), suppress(_Deepest):
                model.trunk(*model.pad([prompts[j] for j in mine[i : i + size]]))
    return {b: torch.stack(gathered(rows))[back] for b, rows in found.items()}


def differences(
    model: Model, pairs: Pairs, contexts: list[str], blocks: list[int], size: int
) -> dict[int, Float[Tensor, "n d"]]:
    """What the positive pole of a persona pair changes against the negative one, in each of n
    contexts; context i speaks under pair i modulo their number."""
    found = []
    for pole in (0, 1):
        prompts = []
        for i, context in enumerate(contexts):
            persona = pairs[i % len(pairs)][pole]
            prompts.append(model.render(context, persona))
        found.append(states(model, prompts, blocks, size))
    positive, negative = found
    return {b: positive[b] - negative[b] for b in blocks}


def mixed(
    model: Model, data: Data, blocks: list[int], size: int
) -> dict[int, Float[Tensor, "n d"]]:
    """`differences` by each pack of persona pairs that steers, added with their weights: a vector
    is a mean over contexts, so that of the sum is the sum of theirs. `size`: rows of one batch."""
    found = []
    for weight, pairs in data.mix:
        each = differences(model, pairs, data.contexts, blocks, size)
        found.append({b: weight * x for b, x in each.items()})
    first, *others = found
    return {b: sum((x[b] for x in others), first[b]) for b in blocks}
