"""Output head, NLL and hinge barrier in one autograd function, chunk by chunk.

    L = (1/n) Σ_t NLL_t + (λ/b) Σ_row relu(A_row − τ)

Logits exist for one chunk at a time, in fp32, and the gradient is taken in forward. A chunk holds
whole rows, so a row's hinge is known inside it, and NLL and KL share one gradient product: three
products in all, where composed per-token losses need five. With z the student's logits,
p = softmax z, q the reference:

    ∂NLL/∂z = p − onehot      ∂KL(p‖q)/∂z = p ⊙ (log p − log q − KL)      ∂KL(q‖p)/∂z = p − q

Letters: n positions, d width, v vocabulary, b rows (completions), c positions of a chunk.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

CHUNK_LOGITS = 2**25  # logits alive at once, per copy: 128 MiB in fp32


EPS = 1e-8  # nats²: at Δ = 0 every KL is 0, where a root has no slope


class Head(NamedTuple):
    """Hidden states → logits in fp32: the frozen output embedding, softly capped where needed."""

    weight: Float[Tensor, "v d"]
    softcap: float | None = None

    def __call__(self, h: Float[Tensor, "*n d"]) -> Float[Tensor, "*n v"]:
        z = F.linear(h, self.weight).float()
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)


class Barrier(NamedTuple):
    """The one constraint: its kind, the aggregate of a row's KLs, λ per nat, τ nats."""

    kind: str
    agg: str
    lam: float
    tau: float

    def aggregate(self, kls: Float[Tensor, "n"]) -> Float[Tensor, ""]:
        """KLs of one row → A_row, nats; p95 interpolates between order statistics."""
        if self.agg == "rmse":
            return (kls.square().mean() + EPS).sqrt()
        if self.agg == "p95":
            return kls.quantile(0.95)
        return kls.max() if self.agg == "max" else kls.mean()


def kl(logp: Float[Tensor, "c v"], logq: Float[Tensor, "c v"], kind: str) -> Float[Tensor, "c"]:
    """KL(p‖q), or KL(q‖p) for kl_fwd, nats."""
    a, b = (logq, logp) if kind == "kl_fwd" else (logp, logq)
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
    """(h, h_ref, targets, rows, head, barrier, n_total, b_total) → (L, NLL (n), A_row (b))."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, h_ref: Tensor | None, targets: Tensor, rows: Tensor, head: Head,
        barrier: Barrier, n_total: int, b_total: int,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        grad, loss = torch.zeros_like(h), h.new_zeros((), dtype=torch.float32)
        nlls, tops, stop = [loss.new_zeros(0)], [loss.new_zeros(0)], 0
        for sizes in chunks(rows, len(head.weight)):
            at = slice(stop, stop := stop + sum(sizes))
            z, hit = head(h[at]), targets[at, None]
            logp = z.log_softmax(-1)
            p = logp.exp()
            nlls.append(-logp.gather(-1, hit)[:, 0])
            loss += nlls[-1].sum() / n_total
            slope = p / n_total
            slope.scatter_add_(-1, hit, torch.full_like(hit, -1 / n_total, dtype=slope.dtype))
            if h_ref is not None:
                logq = head(h_ref[at]).log_softmax(-1)
                chunk_kl = kl(logp, logq, barrier.kind)
                with torch.enable_grad():  # ∂hinge/∂KL_t: an aggregate needs no vocabulary
                    leaf = chunk_kl.clone().requires_grad_()
                    top = torch.stack([barrier.aggregate(x) for x in leaf.split(sizes)])
                    hinge = barrier.lam / b_total * (top - barrier.tau).relu().sum()
                    (pull,) = torch.autograd.grad(hinge, leaf)
                loss += hinge.detach()
                tops.append(top.detach())
                if barrier.kind == "kl_fwd":
                    slope += pull[:, None] * (p - logq.exp())
                else:
                    slope += pull[:, None] * p * (logp - logq - chunk_kl[:, None])
            if head.softcap is not None:
                slope *= 1 - (z / head.softcap).square()
            grad[at] = slope.to(h.dtype) @ head.weight
        ctx.save_for_backward(grad)
        nll, top = torch.cat(nlls), torch.cat(tops)
        ctx.mark_non_differentiable(nll, top)
        return loss, nll, top

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return (grad * outer[0], *[None] * 7)
