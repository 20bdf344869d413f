"""Output head, NLL and hinge barrier in one autograd function, chunk by chunk.

    L = (1/n) Σ_t NLL_t + (λ/b) Σ_row relu(A_row − τ)

Logits exist for one chunk at a time, in fp32, and the gradient is taken in forward. A chunk holds
whole rows, so a row's hinge is known inside it, and NLL and KL share one gradient product: three
products in all, where composed per-token losses need five. With z the student's logits,
p = softmax z, q the reference:

    ∂NLL/∂z = p − onehot      ∂KL(p‖q)/∂z = p ⊙ (log p − log q − KL)      ∂KL(q‖p)/∂z = p − q

What is elementwise goes over a chunk twice (`divergence`, `slope`), compiled where v is large.

Letters: n positions, d width, v vocabulary, b rows (completions), c positions of a chunk.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple, no_type_check

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from steerloop.kernels.blocked import Blocked, suits
from steerloop.kernels.hardware import SHARE_TRAINING, compiled, memory, multiplies

CHUNK_LOGITS = 2**26  # logits alive at once, per copy, where memory allows: 256 MiB in fp32
COPIES = 6  # of them at the peak, counted: a check repeats it
TILE = 2**9  # words of a weight that a CPU takes at once: it stays in the cache
LARGE = 2**15  # vocabulary from which compiling and tiles pay
EPS = 1e-8  # nats²: at Δ = 0 every KL is 0, where a root has no slope


class Head:
    """Hidden states → logits in fp32: the frozen output embedding, softly capped where needed.

    On a CPU a large one is multiplied as a blocked copy, if memory allows, else tile by tile; in
    fp32, where the device is slow in the dtype of the weight.
    """

    def __init__(self, weight: Float[Tensor, "v d"], softcap: float | None = None) -> None:
        self.weight, self.softcap = weight, softcap
        large = weight.device.type == "cpu" and len(weight) >= LARGE
        self.tiled = not multiplies(weight) or (large and weight.dtype == torch.float32)
        room = memory(weight.device) * SHARE_TRAINING
        self.blocks = self.tiled and suits(weight) and weight.nbytes <= room

    @property
    def chunk(self) -> int:
        """Positions whose logits may be alive at once: all their copies fit the share of memory
        that training leaves them."""
        room = memory(self.weight.device) * SHARE_TRAINING
        return max(1, int(min(CHUNK_LOGITS, room / (4 * COPIES))) // len(self.weight))

    @cached_property
    def blocked(self) -> Blocked:
        """The copy, made when it is first needed."""
        return Blocked(self.weight)

    def __call__(self, h: Float[Tensor, "*n d"]) -> Float[Tensor, "*n v"]:
        if self.blocks:
            z = self.blocked(h)
        elif self.tiled:
            z = h.new_empty(*h.shape[:-1], len(self.weight), dtype=torch.float32)
            x, parts = h.float().flatten(0, -2), z.flatten(0, -2).split(TILE, -1)
            for part, w in zip(parts, self.weight.split(TILE), strict=True):
                torch.mm(x, w.float().t(), out=part)
        else:
            z = F.linear(h, self.weight).float()
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)

    def back(
        self, slope: Float[Tensor, "c v"], z: Float[Tensor, "c v"]
    ) -> Float[Tensor, "c d"]:
        """∂L/∂h from ∂L/∂z (overwritten) at the logits z."""
        if self.softcap is not None:
            slope *= 1 - (z / self.softcap).square()
        if not self.tiled or self.weight.dtype == slope.dtype:
            return slope.to(self.weight.dtype) @ self.weight
        grad = slope.new_zeros(len(slope), self.weight.shape[1])
        for part, w in zip(slope.split(TILE, -1), self.weight.split(TILE), strict=True):
            grad.addmm_(part, w.float())
        return grad


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


@no_type_check  # as is the next: the compiler reads these two
def divergence(z: Tensor, z_ref: Tensor, forward: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Log-normalisers of two sets of logits (c v), and KL(p‖q), or KL(q‖p) if `forward`: nats,
    each (c 1)."""
    norm, norm_ref = z.logsumexp(-1, keepdim=True), z_ref.logsumexp(-1, keepdim=True)
    ratio = (z - norm) - (z_ref - norm_ref)
    if forward:
        return norm, norm_ref, -((z_ref - norm_ref).exp() * ratio).sum(-1, keepdim=True)
    return norm, norm_ref, ((z - norm).exp() * ratio).sum(-1, keepdim=True)


@no_type_check
def slope(
    z: Tensor, z_ref: Tensor, norms: tuple[Tensor, Tensor, Tensor], weight: float, pull: Tensor,
    forward: bool,
) -> Tensor:
    """weight · ∂NLL/∂z + pull · ∂KL/∂z, without the one-hot term; `norms` is from `divergence`."""
    norm, norm_ref, kl = norms
    p = (z - norm).exp()
    if forward:
        return p * (weight + pull) - pull * (z_ref - norm_ref).exp()
    return p * (weight + pull * ((z - norm) - (z_ref - norm_ref) - kl))


def fast(f: Callable[..., Any], z: Tensor) -> Callable[..., Any]:
    """`f` as it should be called on logits z."""
    return compiled(f, z) if z.shape[-1] >= LARGE else f


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


class FusedLoss(torch.autograd.Function):
    """(h, h_ref, targets, rows, head, barrier, n_total, b_total) → (L, NLL (n), A_row (b))."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, h_ref: Tensor | None, targets: Tensor, rows: Tensor, head: Head,
        barrier: Barrier, n_total: int, b_total: int,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        grad, loss = torch.zeros_like(h), h.new_zeros((), dtype=torch.float32)
        nlls, tops, stop = [loss.new_zeros(0)], [loss.new_zeros(0)], 0
        forward = barrier.kind == "kl_fwd"
        for sizes in chunks(rows, head.chunk):
            at = slice(stop, stop := stop + sum(sizes))
            z, hit = head(h[at]), targets[at, None]
            if h_ref is None:
                norm = z.logsumexp(-1, keepdim=True)
                pushed = (z - norm).exp() / n_total
            else:
                z_ref = head(h_ref[at])
                norms = fast(divergence, z)(z, z_ref, forward)
                with torch.enable_grad():  # ∂hinge/∂KL_t: an aggregate needs no vocabulary
                    leaf = norms[2][:, 0].clone().requires_grad_()
                    top = torch.stack([barrier.aggregate(x) for x in leaf.split(sizes)])
                    hinge = barrier.lam / b_total * (top - barrier.tau).relu().sum()
                    (pull,) = torch.autograd.grad(hinge, leaf)
                loss += hinge.detach()
                tops.append(top.detach())
                norm = norms[0]
                pushed = fast(slope, z)(z, z_ref, norms, 1 / n_total, pull[:, None], forward)
                del z_ref
            nlls.append((norm - z.gather(-1, hit))[:, 0])
            loss += nlls[-1].sum() / n_total
            pushed.scatter_add_(-1, hit, torch.full_like(hit, -1 / n_total, dtype=pushed.dtype))
            grad[at] = head.back(pushed, z).to(h.dtype)
            del z, pushed  # before the next chunk asks for its own
        ctx.save_for_backward(grad)
        nll, top = torch.cat(nlls), torch.cat(tops)
        ctx.mark_non_differentiable(nll, top)
        return loss, nll, top

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return (grad * outer[0], *[None] * 7)
