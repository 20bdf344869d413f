"""The loss of a heal step, its gradient, and the scorer that every other stage shares.

    L = (1/n) Σ_t NLL_t + λ (1/b) Σ_row relu(A_row − τ),    A_row = aggregate of KL_t over a row

KL_t = KL(student ‖ reference) for kl_rev, KL(reference ‖ student) for kl_fwd, in nats. With z the
student's logits, p = softmax z and q the reference:

    ∂NLL/∂z = p − onehot      ∂KL(p‖q)/∂z = p ⊙ (log p − log q − KL)      ∂KL(q‖p)/∂z = p − q

Hidden states come in at completion positions only; kernels/chunked.py makes logits of them, one
chunk of whole rows at a time, and takes the gradient back through the head.

Letters: n positions, c positions of a chunk, d width, v vocabulary, b rows (completions).
"""

from typing import NamedTuple, no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerloop.kernels.chunked import ChunkedLoss, fast, likelihood, onehot
from steerloop.kernels.head import Head

States = Float[Tensor, "n d"]
Tokens = Int[Tensor, "n"]
Nats = Float[Tensor, "n"]

EPS = 1e-8  # nats²: at Δ = 0 every KL is 0, where a root has no slope


class Barrier(NamedTuple):
    """The one constraint: its kind, the aggregate of a row's KLs, λ per nat, τ nats."""

    kind: str
    agg: str
    lam: float
    tau: float

    def aggregate(self, kls: Nats) -> Float[Tensor, ""]:
        """KLs of one row → A_row, nats; p95 interpolates between order statistics."""
        if self.agg == "rmse":
            return (kls.square().mean() + EPS).sqrt()
        if self.agg == "p95":
            return kls.quantile(0.95)
        return kls.max() if self.agg == "max" else kls.mean()

    def hinge(self, top: Float[Tensor, "b"], b_total: int) -> Float[Tensor, ""]:
        """(λ/b) Σ relu(A_row − τ), nats: rows below τ are free, those above it pay by the nat."""
        return self.lam / b_total * (top - self.tau).relu().sum()


@no_type_check  # as is the next: the compiler reads these two
def divergence(z: Tensor, z_ref: Tensor, forward: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Log-normalisers of two sets of logits (c v), and KL(p‖q), or KL(q‖p) if `forward`: nats,
    each (c 1), in fp32."""
    z, z_ref = z.float(), z_ref.float()
    norm = z.logsumexp(-1, keepdim=True)
    norm_ref = z_ref.logsumexp(-1, keepdim=True)
    ratio = (z - norm) - (z_ref - norm_ref)
    if forward:
        kl = -((z_ref - norm_ref).exp() * ratio).sum(-1, keepdim=True)
    else:
        kl = ((z - norm).exp() * ratio).sum(-1, keepdim=True)
    return norm, norm_ref, kl


@no_type_check
def slope(
    z: Tensor,
    z_ref: Tensor,
    norms: tuple[Tensor, Tensor, Tensor],
    weights: tuple[float, Tensor],
    hit: Tensor,
    forward: bool,
) -> Tensor:
    """weight · ∂NLL/∂z + pull · ∂KL/∂z (c v), in the dtype of z, rounded once; `norms` is from
    `divergence`, `hit` (c 1) the targets, pull (c 1) ∂hinge/∂KL."""
    (norm, norm_ref, kl), (weight, pull) = norms, weights
    p = (z.float() - norm).exp()
    if forward:
        pushed = p * (weight + pull) - pull * (z_ref.float() - norm_ref).exp()
    else:
        excess = (z.float() - norm) - (z_ref.float() - norm_ref) - kl
        pushed = p * (weight + pull * excess)
    return pushed.sub_(weight * onehot(hit, z)).to(z.dtype)


class Step(NamedTuple):
    """What a micro-batch is a part of: the barrier, and the tokens and rows of the whole optimiser
    step. Both are counted before it, so that micro-batches add up to the same objective however the
    step is cut."""

    barrier: Barrier
    n_total: int
    b_total: int

    def chunk(
        self, z: Tensor, z_ref: Tensor | None, hit: Tensor, sizes: list[int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of a chunk of whole rows, of these many tokens with the targets `hit` (c 1): the
        log-normaliser (c 1), A_row (b) and the hinge (), nats, and ∂L/∂z (c v)."""
        if z_ref is None:
            norm, pushed = likelihood(z, hit, self.n_total)
            return norm, norm.new_zeros(0), norm.new_zeros(()), pushed
        forward = self.barrier.kind == "kl_fwd"
        norms = fast(divergence, z)(z, z_ref, forward)
        with torch.enable_grad():  # ∂hinge/∂KL_t: an aggregate needs no vocabulary
            kls = norms[2].clone().requires_grad_()
            tops = [self.barrier.aggregate(row[:, 0]) for row in kls.split(sizes)]
            top = torch.stack(tops)
            hinge = self.barrier.hinge(top, self.b_total)
            (pull,) = torch.autograd.grad(hinge, kls)
        pushed = fast(slope, z)(z, z_ref, norms, (1 / self.n_total, pull), hit, forward)
        return norms[0], top.detach(), hinge.detach(), pushed


def heal_loss(
    h: States, h_ref: States | None, targets: Tokens, rows: Tokens, head: Head, step: Step
) -> tuple[Float[Tensor, ""], Nats, Float[Tensor, "b"]]:
    """A micro-batch's share of L, with the NLL per token and A_row per row behind it, nats.

    `rows` is sorted. Without `h_ref` (nll, spectral) there is no hinge here and no A_row.
    """
    return ChunkedLoss.apply(h, h_ref, targets, rows, head, step)


@torch.no_grad()
def token_losses(
    h: States, h_ref: States | None, targets: Tokens, head: Head, kind: str = "kl_rev"
) -> tuple[Nats, Nats]:
    """NLL of the targets and KL to the reference at each position, nats (0 without h_ref)."""
    nll = h.new_zeros(len(h), dtype=torch.float32)
    kls = torch.zeros_like(nll)
    for start in range(0, len(h), head.chunk):
        at = slice(start, start + head.chunk)
        z = head(h[at])
        hit = z.gather(-1, targets[at, None])[:, 0]
        nll[at] = z.logsumexp(-1) - hit
        if h_ref is not None:
            _, _, kl = fast(divergence, z)(z, head(h_ref[at]), kind == "kl_fwd")
            kls[at] = kl[:, 0]
    return nll, kls
