"""A loss on logits that exist for one chunk of whole rows at a time, and its gradient.

The gradient is taken in forward: what a row's tokens decide together is known inside its chunk, so
all terms of the loss share one product with the head. Three products in all, where composed
per-token losses need five. What is elementwise is compiled where the vocabulary is large.

Letters: n positions, c positions of a chunk, d width, v vocabulary, b rows (completions).
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from steerloop.kernels.hardware import compiled
from steerloop.kernels.head import LARGE, Head


@runtime_checkable
class Terms(Protocol):
    """The loss of a chunk: tokens of the whole optimiser step, and `chunk`: logits (c, v), those of
    the reference if there is one, sizes of the rows → log-normaliser (c, 1), a number per row (b),
    what they add to the loss (), and ∂L/∂z (c, v) but for the one-hot term."""

    n_total: int

    def chunk(
        self, z: Tensor, z_ref: Tensor | None, sizes: list[int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...


def fast(f: Callable[..., Any], z: Tensor) -> Callable[..., Any]:
    """`f` as it should be called on logits z; for a single position it would be compiled anew."""
    return compiled(f, z) if z.shape[-1] >= LARGE and len(z) > 1 else f


def chunks(rows: Int[Tensor, "n"], most: int) -> Iterator[list[int]]:
    """Sizes of consecutive whole rows of `most` positions together, or of one alone."""
    chunk: list[int] = []
    for size in torch.unique_consecutive(rows, return_counts=True)[1].tolist():
        if chunk and sum(chunk) + size > most:
            yield chunk
            chunk = []
        chunk.append(size)
    if chunk:
        yield chunk


class ChunkedLoss(torch.autograd.Function):
    """(h (n, d), h_ref or None, targets (n), rows (n), head, terms) → (L, NLL (n), number (b))."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, h_ref: Tensor | None, targets: Tensor, rows: Tensor, head: Head,
        terms: Terms,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        grad, loss = torch.zeros_like(h), h.new_zeros((), dtype=torch.float32)
        nlls, tops, stop = [loss.new_zeros(0)], [loss.new_zeros(0)], 0
        for sizes in chunks(rows, head.chunk):
            at = slice(stop, stop := stop + sum(sizes))
            z, hit = head(h[at]), targets[at, None]
            norm, top, extra, pushed = terms.chunk(
                z, None if h_ref is None else head(h_ref[at]), sizes)
            nlls.append((norm - z.gather(-1, hit))[:, 0])
            tops.append(top)
            loss += extra
            loss += nlls[-1].sum() / terms.n_total
            pushed[torch.arange(len(hit), device=hit.device), hit[:, 0]] -= 1 / terms.n_total
            grad[at] = head.back(pushed, z).to(h.dtype)
            del z, pushed  # before the next chunk asks for its own
        ctx.save_for_backward(grad)
        nll, top = torch.cat(nlls), torch.cat(tops)
        ctx.mark_non_differentiable(nll, top)
        return loss, nll, top

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return (grad * outer[0], *[None] * 5)
