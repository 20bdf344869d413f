"""Decoding steps as a graph would be made of, without one."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from steerloop.checks.small import Small
from steerloop.kernels import graphs
from steerloop.kernels.caches import empty_cache


def decoded_states(s: Small, way: Callable[[nn.Module], AbstractContextManager]) -> Tensor:
    """Of five steps, in buffers as a graph has them; the blocks run as `way` says."""
    torch.manual_seed(0)
    ids, cache, found = torch.randint(6, 200, (3, 9)), empty_cache(s.model.hf), []
    ids = ids.to(s.model.device)
    mask = ids >= 0
    with torch.no_grad(), s.model.dense(), way(s.model.decoder):
        s.model.trunk(ids[:, :4], mask[:, :4], cache)
        cache = graphs.fixed(cache, 4, 9)
        mask[:, 4:] = False
        for u in range(4, 9):
            mask[:, u] = True
            place = mask.sum(-1, keepdim=True) - 1
            found.append(s.model.trunk(ids[:, u, None], mask, cache, place).float())
    return torch.stack(found)
