"""The decode loop: prefill, one step, pick a token, let finished rows go.

Letters: b rows in flight, t tokens read next, T tokens so far, m new tokens at most, v vocabulary.
"""

import hashlib
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache

from steerloop.kernels.caches import arrange
from steerloop.kernels.graphs import Eager

Choose = Callable[[Tensor, Tensor], Tensor]  # (logits (b, v), draws (b,)) → tokens (b,)


@dataclass
class Rows:
    """All that belongs to the rows in flight."""

    index: Int[Tensor, "b"]  # on the CPU
    ids: Int[Tensor, "b t"]
    mask: Bool[Tensor, "b T"]
    dose: Float[Tensor, "b ..."]  # or one for each of several directions
    draws: Float[Tensor, "b m"]
    cache: Cache

    def select(self, keep: Int[Tensor, "k"]) -> None:
        """Keep these rows only: the one place where a batch shrinks."""
        for name in ("index", "ids", "mask", "dose", "draws"):
            x = getattr(self, name)
            setattr(self, name, x[keep.to(x.device)])
        arrange(self.cache, keep)

    def fork(self, keep: Int[Tensor, "k"], m: int) -> "Rows":
        """A greedy copy of these rows, to go on apart by m tokens."""
        rows = deepcopy(self)
        rows.select(keep)
        rows.index = torch.arange(len(keep))
        rows.draws = rows.draws.new_zeros(len(keep), m)
        return rows


def draws(key: str, m: int) -> Float[Tensor, "m"]:
    """The uniform draws of one row, fixed by its key."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
    return torch.rand(m, generator=torch.Generator().manual_seed(seed))


def pick(
    logits: Float[Tensor, "b v"], u: Float[Tensor, "b"], temperature: float, k: int, p: float
) -> Int[Tensor, "b"]:
    """Next tokens by inverse CDF at u, over the top-k and the top-p within those.

    Temperature 0 is greedy. Taking k first spares sorting the vocabulary for p.
    """
    if temperature == 0:
        return logits.argmax(-1)
    top, token = (logits / temperature).topk(min(k, logits.shape[-1]))
    mass = top.softmax(-1)
    cdf = (mass * (mass.cumsum(-1) - mass < p)).cumsum(-1)
    slot = (cdf <= u[:, None] * cdf[:, -1:]).sum(-1, keepdim=True)
    return token.gather(-1, slot)[:, 0]


greedy = partial(pick, temperature=0.0, k=1, p=1.0)


def generate(
    step: Eager, rows: Rows, choose: Choose, stop_ids: list[int], stops: bool = True,
    told: Callable[[int, int], object] = lambda drawn, ended: None,
) -> list[list[int]]:
    """The new token ids of each row, its stop token included; m = the width of `rows.draws`.

    `step` reads what is new and gives logits (kernels/graphs.py). `stops=False` suppresses the stop
    tokens, so that every row gets m. Rows that stop leave the batch. How many tokens a step drew
    and how many rows ended with it is `told`.
    """
    out: list[list[int]] = [[] for _ in rows.index]
    stop = torch.tensor(stop_ids, device=rows.ids.device)
    over = torch.zeros(len(rows.index), dtype=torch.bool)
    for u in range(rows.draws.shape[1]):
        logits = step(rows)
        if not stops:
            logits.index_fill_(-1, stop, -torch.inf)
        token = choose(logits, rows.draws[:, u])
        for i, x, gone in zip(rows.index.tolist(), token.tolist(), over.tolist(), strict=True):
            if not gone:
                out[i].append(x)
        rows.ids = token[:, None]
        rows.mask = torch.cat([rows.mask, rows.ids >= 0], dim=1)
        before, over = len(over) - int(over.sum()), over | torch.isin(token, stop).cpu()
        alive = (~over).nonzero()[:, 0]
        told(before, before - len(alive))
        if len(alive) == 0:
            break
        if step.shrinks(len(alive), len(token)):
            step.close(rows)
            rows.select(alive)
            over = over[alive]
    told(0, len(over) - int(over.sum()))  # the limit ended them
    step.close(rows)
    return out
