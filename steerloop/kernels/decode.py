"""The decode loop: prefill, one step, pick a token, let finished rows go.

Letters: b rows in flight, t tokens read next, T tokens so far, m new tokens at most, v vocabulary.
"""

import hashlib
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache

from steerloop.kernels.batch import sent
from steerloop.kernels.caches import arrange
from steerloop.kernels.graphs import Eager
from steerloop.kernels.masks import waits

Choose = Callable[[Tensor, Tensor], Tensor]  # (logits (b, v), draws (b,)) → tokens (b,)
READ = 8  # tokens of every row that a GPU draws before the host looks at them, and waits


@runtime_checkable
class Mixed(Protocol):
    """The gates of a model, one vector a row: (b, R)."""

    value: Tensor | None


@dataclass
class Rows:
    """All that belongs to the rows in flight."""

    index: Int[Tensor, "b"]  # on the CPU
    ids: Int[Tensor, "b t"]
    mask: Bool[Tensor, "b T"]
    dose: Float[Tensor, "b ..."]  # or one for each of several directions
    draws: Float[Tensor, "b m"]
    cache: Cache
    gates: Mixed | None = None  # those of the model, where each row has its own

    def select(self, keep: Int[Tensor, "k"]) -> None:
        """Keep these rows only: the one place where a batch shrinks."""
        there = sent(keep, self.ids.device)
        self.index = self.index[keep]
        for name in ("ids", "mask", "dose", "draws"):
            setattr(self, name, getattr(self, name)[there])
        if self.gates is not None:
            self.gates.value = self.gates.value[there]
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
    tokens, so that every row gets m. Rows that stop leave the batch when the host looks at the
    tokens: on a CPU after each, where that is free. How many were drawn since it last looked, and
    how many rows ended, is `told`.
    """
    out: list[list[int]] = [[] for _ in rows.index]
    device, m = rows.ids.device, rows.draws.shape[1]
    stop, every = sent(torch.tensor(stop_ids), device), READ if waits(device) else 1
    alive, unseen = [*range(len(out))], []  # places of rows that go on; tokens of all
    for u in range(m):
        logits = step(rows)
        if not stops:
            logits.index_fill_(-1, stop, -torch.inf)
        token = choose(logits, rows.draws[:, u])
        rows.ids = token[:, None]
        rows.mask = torch.cat([rows.mask, rows.ids >= 0], dim=1)
        unseen.append(token)
        if len(unseen) < every and u + 1 < m:
            continue
        before, seen = sum(map(len, out)), torch.stack(unseen, dim=1).tolist()
        went, alive, unseen = alive, [], []
        for place in went:
            ids = ended(seen[place], stop_ids)
            out[rows.index[place]] += ids
            if ids[-1] not in stop_ids:
                alive.append(place)
        told(sum(map(len, out)) - before, len(went) - len(alive))
        if not alive:
            break
        if step.shrinks(len(alive), len(seen)):
            step.close(rows)
            rows.select(torch.tensor(alive))
            alive = [*range(len(alive))]
    told(0, len(alive))  # the limit ended them
    step.close(rows)
    return out


def ended(ids: list[int], stop_ids: list[int]) -> list[int]:
    """Tokens up to the first that stops, with it."""
    for n, token in enumerate(ids, 1):
        if token in stop_ids:
            return ids[:n]
    return ids
