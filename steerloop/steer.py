"""Steering vectors: extract one from persona pairs, add it to the residual stream, compare two.

    v_l = mean_x [ h_l(s⁺ ⊕ x) − h_l(s⁻ ⊕ x) ]     at the last prompt token, for l in the band

Mean difference of activations (Rimsky et al. 2023; persona vectors: Chen et al. 2025) at its raw
size: the dose is calibrated in KL, so units do not matter.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerloop.kernels.batch import Ids
from steerloop.kernels.hooks import hooked
from steerloop.kernels.live import Bar
from steerloop.model import Model

Vector = dict[int, Float[Tensor, "d"]]  # block index → direction, fp32


class _Deepest(Exception):
    """Ends a forward pass where nothing above is of interest."""


@torch.no_grad()
def mean_states(model: Model, prompts: Ids, blocks: list[int], size: int) -> Vector:
    """Mean over prompts of what each block puts out at the last token. Nothing above the deepest
    block is computed. `size`: rows of one batch."""
    sums = {b: torch.zeros(model.head.weight.shape[1], device=model.device) for b in blocks}

    def read(h: Tensor, block: int) -> Tensor:
        sums[block] += h[:, -1].float().sum(0)
        if block == max(blocks):
            raise _Deepest
        return h

    hooks = [(model.decoder.layers[b], partial(read, block=b)) for b in blocks]
    for i in Bar(range(0, len(prompts), size), "extract"):
        with hooked(hooks), suppress(_Deepest):
            model.trunk(*model.pad(prompts[i : i + size]))
    return {b: total / len(prompts) for b, total in sums.items()}


def extract(
    model: Model, pairs: list[tuple[str, str]], contexts: list[str], blocks: list[int], size: int
) -> Vector:
    """Mean residual difference between the poles over all contexts, for each block of the band.

    Context i speaks under pair i modulo their number, so that wordings average out.
    """
    plus, minus = (mean_states(model, [model.render(x, pairs[i % len(pairs)][pole])
                                       for i, x in enumerate(contexts)], blocks, size)
                   for pole in (0, 1))
    return {b: plus[b] - minus[b] for b in blocks}


@contextmanager
def steered(model: Model, vector: Vector, rows: Any) -> Iterator[None]:
    """Add dose · v_l at every position of every steered block.

    `rows` is one dose for all, or has the doses `rows.dose` (b,) of the rows that are in the model:
    it is read at each pass, so rows may leave a batch while it is decoded.
    Raises RuntimeError while gradients are recorded: students are trained unsteered.
    """
    if torch.is_grad_enabled():
        raise RuntimeError("steering is for sampling and scoring: use torch.no_grad()")

    def add(h: Tensor, v: Tensor) -> Tensor:
        dose = rows if isinstance(rows, float) else rows.dose[:, None, None]
        return h + (dose * v).to(h.dtype)

    with hooked([(model.decoder.layers[b], partial(add, v=v)) for b, v in vector.items()]):
        yield
