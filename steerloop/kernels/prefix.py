"""Prompts that are gone on from in several ways, read once.

Letters: b rows, two to a pair; t tokens read next, T tokens so far; s tokens of an ending and one.
"""

from collections.abc import Callable
from itertools import takewhile

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor
from transformers import Cache

from steerloop.kernels.batch import Ids
from steerloop.kernels.caches import Read, arrange
from steerloop.kernels.decode import Rows

Pad = Callable[[Ids], tuple[Tensor, Tensor]]  # prompts → ids and mask (b, t)


def common(a: list[int], b: list[int]) -> int:
    """How many tokens two prompts share at their start."""
    return sum(1 for _ in takewhile(lambda x: x[0] == x[1], zip(a, b, strict=False)))


def paired(
    trunk: Read, pad: Pad, cache: Cache, prompts: Ids, m: int, share: bool = True
) -> Rows:
    """Rows of b prompts, b even, all read but for their last token, with m draws of 0 each.

    Where they may `share` and the ends of all pairs are equally long, their common starts are read
    once a pair: ends of several lengths would have to be padded in the middle, where a sliding
    window counts it. The
    `cache` is an empty one; `pad` pads prompts on the left.
    """
    shared = [common(*prompts[i : i + 2]) for i in range(0, len(prompts), 2)]
    ends = [x[shared[i // 2] :] for i, x in enumerate(prompts)]
    if share and min(shared) and {len(x) for x in ends} == {len(ends[0]) or -1}:
        ids, mask = pad([x[:n] for x, n in zip(prompts[::2], shared, strict=True)])
        trunk(ids, mask, cache)
        arrange(cache, torch.arange(len(prompts)) // 2)
        ids = torch.tensor(ends, device=ids.device)
        mask = torch.cat([repeat(mask, "p T -> (p two) T", two=2), ids >= 0], dim=1)
    else:
        ids, mask = pad(prompts)
    if ids.shape[1] > 1:
        trunk(ids[:, :-1], mask[:, :-1], cache)
    zero = torch.zeros(len(ids), device=ids.device)
    return Rows(torch.arange(len(ids)), ids[:, -1:], mask, zero, zero[:, None].expand(-1, m), cache)


def follow(trunk: Read, rows: Rows, ending: list[int]) -> Float[Tensor, "b s d"]:
    """Hidden states from which the tokens of an ending, and what comes after it, are predicted."""
    new = torch.tensor(ending, device=rows.ids.device).expand(len(rows.ids), -1)
    mask = torch.cat([rows.mask, new >= 0], dim=1)
    return trunk(torch.cat([rows.ids, new], dim=1), mask, rows.cache)
