"""Attention masks that ask nothing of the device that they are built on.

The library leaves a mask out where nothing is masked, and to know that it asks: a GPU is waited for
in each pass, twice. For eager attention some versions fetch a zero from the host, so that no graph
can be recorded. On a CPU asking is free, and a mask that is left out saves time.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask


def waits(device: torch.device | str) -> bool:
    """Whether to read a number from there takes a wait."""
    return torch.device(device).type != "cpu"


def boolean(*, device: torch.device | str = "cpu", **shape: Any) -> Tensor | None:
    """The library's mask for scaled dot product attention, true where a token is seen."""
    if waits(device):
        shape["allow_is_causal_skip"] = False
    return sdpa_mask(device=device, **shape)


def added(
    *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, **shape: Any
) -> Tensor | None:
    """The same for eager attention: 0 where a token is seen, else the least number."""
    if not waits(device):
        return eager_mask(device=device, dtype=dtype, **shape)
    seen = boolean(device=device, **shape)
    if seen is None:  # of attention in both directions, in towers that see
        return None
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)


def register() -> None:
    """The library takes these from now on."""
    AttentionMaskInterface.register("sdpa", boolean)
    AttentionMaskInterface.register("eager", added)
