"""Rows of token ids → padded tensors.

Letters: b rows, t tokens, n predictions of completion tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Ids = list[list[int]]
Doses = list[float] | list[list[float]]  # of rows: one each, or one for each of several directions


def sent(x: Tensor, device: torch.device) -> Tensor:
    """What was built on the host, on a device; a GPU fetches it when it comes to it, unwaited."""
    if device.type == "cuda":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


@dataclass
class Batch:
    """Right-padded prompts and completions, and where completion tokens are predicted."""

    ids: Int[Tensor, "b t"]
    mask: Bool[Tensor, "b t"]
    positions: Int[Tensor, "n"]  # in the flattened (b t), each one before its target
    targets: Int[Tensor, "n"]
    rows: Int[Tensor, "n"]  # sorted, on the CPU: what is cut by them is cut without a wait
    dose: Float[Tensor, "b ..."]  # or one for each of several directions

    def split(self, x: Float[Tensor, "n *d"]) -> tuple[Tensor, ...]:
        """What belongs to the n predictions, row by row."""
        return x.split(torch.bincount(self.rows, minlength=len(self.ids)).tolist())


def pad(
    rows: Ids, blank: int, device: torch.device, left: bool
) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
    """Rows of several lengths → ids and mask that end together (left) or start together."""
    return tuple(sent(x, device) for x in padded(rows, blank, left))


def padded(
    rows: Ids, blank: int, left: bool
) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
    """The same on the CPU."""
    t = max(map(len, rows))
    fill = [[blank] * (t - len(x)) for x in rows]
    ids = [b + x if left else x + b for x, b in zip(rows, fill, strict=True)]
    size = torch.tensor([len(x) for x in rows])[:, None]
    mask = torch.arange(t) >= t - size if left else torch.arange(t) < size
    return torch.tensor(ids), mask


def collate(
    prompts: Ids, completions: Ids, doses: Doses | None, blank: int, device: torch.device
) -> Batch:
    """Prompts and completions → Batch; an empty completion predicts nothing, and without `doses`
    (units of the vector) nothing is steered."""
    pairs = list(zip(prompts, completions, strict=True))
    ids, mask = padded([p + c for p, c in pairs], blank, left=False)
    at = torch.arange(ids.shape[1])
    ends = torch.tensor([(len(p) - 1, len(p) + len(c) - 1) for p, c in pairs])
    predicts = (at >= ends[:, :1]) & (at < ends[:, 1:])
    targets = torch.tensor([x for c in completions for x in c], dtype=torch.long)
    dose = torch.tensor(doses or [0.0] * len(pairs), dtype=torch.float32)
    positions = predicts.flatten().nonzero()[:, 0]
    ids, mask, positions, targets, dose = (
        sent(x, device) for x in (ids, mask, positions, targets, dose))
    return Batch(ids, mask, positions, targets, predicts.nonzero()[:, 0], dose)


@runtime_checkable
class Dosed(Protocol):
    """Rows in a model, each with a dose (b) in units of a vector."""

    dose: Tensor


class Row(NamedTuple):
    """A completion to train on: its prompt, its tokens, the hidden states (n, d) of a reference
    from which they are predicted (None without one), and its number in a table."""

    prompt: list[int]
    completion: list[int]
    ref: Tensor | None
    number: int


def by_length(lengths: list[int]) -> tuple[list[int], list[int]]:
    """The order in which rows of like lengths come together, the longest first, which spares
    padding; and the way back: where each row then is."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return order, sorted(range(len(order)), key=order.__getitem__)


def longest_first(rows: list[Row]) -> list[Row]:
    """Rows of like lengths come together, which spares padding, and the longest first: what they
    leave in memory holds the others."""
    return sorted(rows, key=lambda row: -len(row.prompt) - len(row.completion))


def like_lengths(rows: list[Row], size: int) -> Iterator[tuple[Ids, Ids, Tensor | None]]:
    """Micro-batches of `size` rows, the longest first: prompts, completions, the reference's states
    (n, d)."""
    rows = longest_first(rows)
    for i in range(0, len(rows), size):
        prompts, completions, refs, _ = map(list, zip(*rows[i : i + size], strict=True))
        yield prompts, completions, None if refs[0] is None else torch.cat(refs)


class Batching:
    """Rows of ids → tensors on a device, padded with the first stop token. Of a model."""

    stop_ids: list[int]
    device: torch.device

    def pad(self, rows: Ids) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
        """Prompts → left-padded ids and mask: they end together, ready to be continued."""
        return pad(rows, self.stop_ids[0], self.device, left=True)

    def batch(self, prompts: Ids, completions: Ids, doses: Doses | None = None) -> Batch:
        """Prompts, completions and doses (units of the vector), right-padded."""
        return collate(prompts, completions, doses, self.stop_ids[0], self.device)

    def batches(self, table: pl.DataFrame, size: int) -> list[Batch]:
        """The same of a table with prompt_ids, completion_ids and dose, `size` rows at a time."""
        parts = table.select("prompt_ids", "completion_ids", "dose").iter_slices(size)
        return [self.batch(*(column.to_list() for column in part)) for part in parts]

    def ordered(self, table: pl.DataFrame) -> tuple[pl.DataFrame, list[int]]:
        """Such a table with rows of like lengths together; and where each row then is."""
        sizes = table["prompt_ids"].list.len() + table["completion_ids"].list.len()
        order, back = by_length(sizes.to_list())
        return table[order], back
