"""Rows of token ids → padded tensors.

Letters: b rows, t tokens, n predictions of completion tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Ids = list[list[int]]


@dataclass
class Batch:
    """Right-padded prompts and completions, and where completion tokens are predicted."""

    ids: Int[Tensor, "b t"]
    mask: Bool[Tensor, "b t"]
    positions: Int[Tensor, "n"]  # in the flattened (b t), each one before its target
    targets: Int[Tensor, "n"]
    rows: Int[Tensor, "n"]  # sorted
    dose: Float[Tensor, "b"]

    def split(self, x: Float[Tensor, "n *d"]) -> tuple[Tensor, ...]:
        """What belongs to the n predictions, row by row."""
        return x.split(torch.bincount(self.rows, minlength=len(self.ids)).tolist())


def pad(
    rows: Ids, blank: int, device: torch.device, left: bool
) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
    """Rows of several lengths → ids and mask that end together (left) or start together."""
    t = max(map(len, rows))
    fill = [[blank] * (t - len(x)) for x in rows]
    ids = [b + x if left else x + b for x, b in zip(rows, fill, strict=True)]
    size = torch.tensor([len(x) for x in rows])[:, None]
    mask = torch.arange(t) >= t - size if left else torch.arange(t) < size
    return torch.tensor(ids, device=device), mask.to(device)


def collate(
    prompts: Ids, completions: Ids, dose: list[float], blank: int, device: torch.device
) -> Batch:
    """Prompts and completions → Batch; an empty completion predicts nothing."""
    pairs = list(zip(prompts, completions, strict=True))
    ids, mask = pad([p + c for p, c in pairs], blank, device, left=False)
    at = torch.arange(ids.shape[1])
    ends = torch.tensor([(len(p) - 1, len(p) + len(c) - 1) for p, c in pairs])
    predicts = ((at >= ends[:, :1]) & (at < ends[:, 1:])).to(device)
    return Batch(
        ids=ids,
        mask=mask,
        positions=predicts.flatten().nonzero()[:, 0],
        targets=torch.tensor([x for c in completions for x in c], device=device).long(),
        rows=predicts.nonzero()[:, 0],
        dose=torch.tensor(dose, device=device).float(),
    )


def batches(
    columns: tuple[Ids, Ids, list[float]], size: int, blank: int, device: torch.device
) -> Iterator[Batch]:
    """Prompts, completions and doses in order, `size` rows at a time."""
    for i in range(0, len(columns[0]), size):
        yield collate(*(x[i : i + size] for x in columns), blank, device)
