"""A frozen linear layer in 4 bits: NormalFloat codes with double-quantised scales (QLoRA, Dettmers
et al. 2023), through `bitsandbytes.functional` and an autograd function of our own.

    y = x Wᵀ + b,   ∂x = ∂y W,   W dequantised anew in both directions and never kept

`bitsandbytes.nn.Linear4bit` is not used: in eval mode on some CPUs it repacks its weight on the
first no-grad forward pass, after which gradients silently stop. Only 4-bit runs import this module,
since the import of bitsandbytes prints and takes seconds.
"""

import logging
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels nobody asked for

from bitsandbytes.functional import QuantState, dequantize_4bit, quantize_4bit  # noqa: E402


def canonical(weight: Float[Tensor, "d_out d_in"]) -> tuple[Tensor, QuantState]:
    """A weight in 4 bits, on its own device, by the bytes that are the same on every device: those
    that the library's quantiser writes on a CPU (on CUDA its codes are the same, its scales not).

    Codes of two weights a byte, the first one high: nearest level × largest size of a block of 64.
    That size less the mean of all, over the largest of 256, is looked up in the library's 8-bit map
    at 65,536 points between -1 and 1.
    """
    packed, state = quantize_4bit(
        weight.cpu().contiguous(), compress_statistics=True, quant_type="nf4")
    state.to(weight.device)
    return packed.to(weight.device), state


class _Frozen(torch.autograd.Function):
    """(x, layer) → x Wᵀ + b; a gradient for x alone, and nothing saved but the layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: "NF4") -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        return outer[0] @ ctx.layer.weight, None


class NF4(nn.Linear):
    """A linear layer whose `weight` is computed when asked for, in the dtype it was made from.

    About 4.13 bits a weight: 4 of code, 8 per block of 64, 32 per 256 blocks.
    """

    def __init__(self, weight: Float[Tensor, "d_out d_in"], bias: Tensor | None) -> None:
        nn.Module.__init__(self)  # not that of nn.Linear: there is no dense parameter
        self.out_features, self.in_features = weight.shape
        packed, self.state = canonical(weight.detach())
        self.register_buffer("packed", packed)
        self.register_parameter("bias", bias)
        self._is_hf_initialized = True  # transformers' loader leaves it alone

    @property
    def weight(self) -> Float[Tensor, "d_out d_in"]:
        """The matrix that this layer multiplies with, dequantised."""
        return dequantize_4bit(self.packed, self.state)

    def forward(self, x: Float[Tensor, "*b d_in"]) -> Float[Tensor, "*b d_out"]:
        return _Frozen.apply(x, self)
