"""Frozen weights in the blocked layout that oneDNN multiplies by.

A plain product rearranges the whole weight every time; at the few dozen rows of a decoding step
that costs more than the arithmetic. Rearranged once, the same product runs 1.2 to 2.7 times as fast
(docs/bench/README.md). For CPUs, and forward only: the layout has no gradient.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerloop.kernels.hardware import multiplies

SMALL = 2**17  # entries below which a weight stays as it is: it fits into the cache
ROWS = 64  # rows of a product that the layout is chosen for; others are as right


def suits(weight: Tensor) -> bool:
    """Whether a weight gains by it here, and this torch can do it."""
    known = weight.dtype in (torch.float32, torch.bfloat16) and multiplies(weight)
    return (known and weight.device.type == "cpu" and weight.numel() >= SMALL
            and torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, "_linear_pointwise"))


class Blocked(nn.Module):
    """A linear layer of `weight` (d_out, d_in). Raises RuntimeError if asked for a gradient."""

    def __init__(self, weight: Float[Tensor, "d_out d_in"], bias: Tensor | None = None) -> None:
        super().__init__()
        self.bias = bias
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)

    def forward(self, x: Float[Tensor, "*b d_in"]) -> Float[Tensor, "*b d_out"]:
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError("a blocked weight has no gradient: use it under torch.no_grad()")
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
