"""The loss of a heal step, and the scorer that every other stage shares.

    L = (1/n) Σ_t NLL_t + λ (1/b) Σ_row relu(A_row − τ),    A_row = aggregate of KL_t over a row

KL_t = KL(student ‖ reference) for kl_rev, KL(reference ‖ student) for kl_fwd, in nats. Both
functions take hidden states at completion positions only and hold logits of one chunk at a time.

Letters: n positions, d width, v vocabulary, b rows (completions).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerloop.kernels.fused_loss import Barrier, FusedLoss, Head, divergence, fast


@torch.no_grad()
def token_losses(
    h: Float[Tensor, "n d"], h_ref: Float[Tensor, "n d"] | None, targets: Int[Tensor, "n"],
    head: Head, kind: str = "kl_rev",
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """NLL of the targets and KL to the reference at each position, nats (0 without h_ref)."""
    nll, kls = h.new_zeros((2, len(h)), dtype=torch.float32)
    for at in (slice(i, i + head.chunk) for i in range(0, len(h), head.chunk)):
        z = head(h[at])
        nll[at] = z.logsumexp(-1) - z.gather(-1, targets[at, None])[:, 0]
        if h_ref is not None:
            kls[at] = fast(divergence, z)(z, head(h_ref[at]), kind == "kl_fwd")[2][:, 0]
    return nll, kls


def heal_loss(
    h: Float[Tensor, "n d"], h_ref: Float[Tensor, "n d"] | None, targets: Int[Tensor, "n"],
    rows: Int[Tensor, "n"], head: Head, barrier: Barrier, n_total: int, b_total: int,
) -> tuple[Float[Tensor, ""], Float[Tensor, "n"], Float[Tensor, "b"]]:
    """A micro-batch's share of L, with the NLL per token and A_row per row behind it, nats.

    `rows` is sorted. `n_total` tokens and `b_total` rows are those of the whole optimiser step, so
    that micro-batches add up to the same objective however the step is cut. Without `h_ref` (nll,
    spectral) there is no hinge here and no A_row.
    """
    return FusedLoss.apply(h, h_ref, targets, rows, head, barrier, n_total, b_total)
