"""Residual states: what the blocks of the model put out, on average over prompts."""

from contextlib import suppress
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from steerloop.kernels.batch import Ids
from steerloop.model import Model
from steerloop.runfolder.progress import Bar

Vector = dict[int, Float[Tensor, "d"]]  # block index → direction, fp32


class _Deepest(Exception):
    """Ends a forward pass where nothing above is of interest."""


@torch.no_grad()
def mean_states(model: Model, prompts: Ids, blocks: list[int], size: int) -> Vector:
    """Mean over prompts of what each block puts out at the last token. Nothing above the deepest
    block is computed. `size`: rows of one batch."""
    width = model.head.weight.shape[1]
    sums = {b: torch.zeros(width, device=model.device) for b in blocks}

    def read(h: Tensor, block: int) -> Tensor:
        sums[block] += h[:, -1].float().sum(0)
        if block == max(blocks):
            raise _Deepest
        return h

    hooks = {b: partial(read, block=b) for b in blocks}
    for i in Bar(range(0, len(prompts), size), "extract"):
        with model.hooked(hooks), suppress(_Deepest):
            model.trunk(*model.pad(prompts[i : i + size]))
    return {b: total / len(prompts) for b, total in sums.items()}
