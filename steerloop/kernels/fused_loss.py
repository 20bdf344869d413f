"""Output head, NLL and hinge barrier in one autograd function, chunk by chunk.

    L = (1/n) Σ_t NLL_t + (λ/b) Σ_row relu(A_row − τ)

Logits exist for one chunk at a time, in fp32, and the gradient is taken in forward. A chunk holds
whole rows, so a row's hinge is known inside it, and NLL and KL share one gradient product: three
products in all, where composed per-token losses need five. With z the student's logits,
p = softmax z, q the reference:

    ∂NLL/∂z = p − onehot      ∂KL(p‖q)/∂z = p ⊙ (log p − log q − KL)      ∂KL(q‖p)/∂z = p − q

Letters: n positions, d width, v vocabulary, b rows (completions), c positions of a chunk.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

CHUNK_LOGITS = 2**25  # logits alive at once, per copy: 128 MiB in fp32


class Constraint(NamedTuple):
    """What the hinge needs: KL direction, aggregate of a row's KLs, λ / b, and τ."""

    forward_kl: bool
    aggregate: Callable[[Float[Tensor, "n"]], Float[Tensor, ""]]
    weight: float
    tau: float


def logits(
    h: Float[Tensor, "*c d"], weight: Float[Tensor, "v d"], cap: float | None
) -> Float[Tensor, "*c v"]:
    """Head with optional soft-capping, fp32."""
    z = F.linear(h, weight).float()
    return z if cap is None else cap * torch.tanh(z / cap)


def kl(
    logp: Float[Tensor, "c v"], logq: Float[Tensor, "c v"], forward_kl: bool
) -> Float[Tensor, "c"]:
    """KL(p‖q), or KL(q‖p) if forward_kl, nats."""
    a, b = (logq, logp) if forward_kl else (logp, logq)
    return (a.exp() * (a - b)).sum(-1)


def chunks(rows: Int[Tensor, "n"], v: int) -> Iterator[list[int]]:
    """Sizes of consecutive whole rows whose logits fit CHUNK_LOGITS together, or of one alone."""
    chunk: list[int] = []
    for size in torch.unique_consecutive(rows, return_counts=True)[1].tolist():
        if chunk and (sum(chunk) + size) * v > CHUNK_LOGITS:
            yield chunk
            chunk = []
        chunk.append(size)
    if chunk:
        yield chunk


class FusedLoss(torch.autograd.Function):
    """(h, h_ref, targets, rows, weight, cap, n_total, constraint) → (L, NLL (n), A_row (b))."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, h_ref: Tensor | None, targets: Tensor, rows: Tensor, weight: Tensor,
        cap: float | None, n_total: int, constraint: Constraint,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        grad, loss = torch.zeros_like(h), h.new_zeros((), dtype=torch.float32)
        nlls, tops, stop = [loss.new_zeros(0)], [loss.new_zeros(0)], 0
        for sizes in chunks(rows, len(weight)):
            at = slice(stop, stop := stop + sum(sizes))
            z, hit = logits(h[at], weight, cap), targets[at, None]
            logp = z.log_softmax(-1)
            p = logp.exp()
            nlls.append(-logp.gather(-1, hit)[:, 0])
            loss += nlls[-1].sum() / n_total
            slope = p / n_total
            slope.scatter_add_(-1, hit, torch.full_like(hit, -1 / n_total, dtype=slope.dtype))
            if h_ref is not None:
                logq = logits(h_ref[at], weight, cap).log_softmax(-1)
                chunk_kl = kl(logp, logq, constraint.forward_kl)
                with torch.enable_grad():  # ∂hinge/∂KL_t: an aggregate needs no vocabulary
                    leaf = chunk_kl.clone().requires_grad_()
                    top = torch.stack([constraint.aggregate(x) for x in leaf.split(sizes)])
                    hinge = constraint.weight * (top - constraint.tau).relu().sum()
                    (pull,) = torch.autograd.grad(hinge, leaf)
                loss += hinge.detach()
                tops.append(top.detach())
                if constraint.forward_kl:
                    slope += pull[:, None] * (p - logq.exp())
                else:
                    slope += pull[:, None] * p * (logp - logq - chunk_kl[:, None])
            if cap is not None:
                slope *= 1 - (z / cap).square()
            grad[at] = slope.to(h.dtype) @ weight
        ctx.save_for_backward(grad)
        nll, top = torch.cat(nlls), torch.cat(tops)
        ctx.mark_non_differentiable(nll, top)
        return loss, nll, top

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return (grad * outer[0], *[None] * 7)
