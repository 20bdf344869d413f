"""A loss on logits that exist for one chunk of whole rows at a time, and its gradient.

The gradient is taken in forward: what a row's tokens decide together is known inside its chunk, so
all terms of the loss share one product with the head. Three products in all, where composed
per-token losses need five. What is elementwise is compiled where the vocabulary is large: logits
are read and written in the dtype they are multiplied in, and nowhere held in another.

Letters: n positions, c positions of a chunk, d width, v vocabulary, b rows (completions).
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, no_type_check, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerloop.kernels.hardware import compiled
from steerloop.kernels.head import LARGE, Head


@runtime_checkable
class Terms(Protocol):
    """The loss of a chunk: tokens of the whole optimiser step, and `chunk`: logits (c, v) as they
    were multiplied, those of the reference if there is one, targets (c, 1), sizes of the rows →
    log-normaliser (c, 1), a number per row (b), what they add to the loss (), ∂L/∂z (c, v)."""

    n_total: int

    def chunk(
        self, z: Tensor, z_ref: Tensor | None, hit: Tensor, sizes: list[int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...


def fast(f: Callable[..., Any], z: Tensor) -> Callable[..., Any]:
    """`f` as it should be called on logits z; for a single position it would be compiled anew."""
    return compiled(f, z) if z.shape[-1] >= LARGE and len(z) > 1 else f


@no_type_check  # the compiler reads it
def onehot(hit: Tensor, z: Tensor) -> Tensor:
    """(c, v): whether a token is the target, of logits (c, v) and targets (c, 1). Not scattered,
    which in several dimensions a GPU need not repeat to the bit."""
    return torch.arange(z.shape[-1], device=z.device) == hit


def likelihood(
    z: Float[Tensor, "c v"], hit: Int[Tensor, "c 1"], n_total: int
) -> tuple[Float[Tensor, "c 1"], Float[Tensor, "c v"]]:
    """Log-normaliser of logits, and the gradient of Σ NLL / n_total at the targets `hit`."""
    z = z.float()
    norm = z.logsumexp(-1, keepdim=True)
    return norm, (z - norm).exp() / n_total - onehot(hit, z) / n_total


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
            z, hit = head.product(h[at]), targets[at, None]
            z_ref = None if h_ref is None else head.product(h_ref[at])
            norm, top, extra, pushed = terms.chunk(z, z_ref, hit, sizes)
            nlls.append((norm - z.gather(-1, hit))[:, 0])
            tops.append(top)
            loss += extra
            loss += nlls[-1].sum() / terms.n_total
            grad[at] = head.back(pushed, z).to(h.dtype)
            del z, z_ref, pushed  # before the next chunk asks for its own
        ctx.save_for_backward(grad)
        nll, top = torch.cat(nlls), torch.cat(tops)
        ctx.mark_non_differentiable(nll, top)
        return loss, nll, top

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return (grad * outer[0], *[None] * 5)
