"""Weights of a GGUF file, dequantised as they are read."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from gguf import GGMLQuantizationType, dequantize
from torch import Tensor

from steerloop.loading.files import INDEX

CHUNK = 2**20  # elements that are dequantised at once, of each weight that is being read


class Packed(NamedTuple):
    """A weight in a GGUF file, read in `dtype`: `rows` of `row_bytes` from `offset` on, in blocks
    of `kind`.

    `heads`: its rows are pairs for the rotation, by head, where the library has halves (0: no).
    `shift` is added to its values: the file has a norm's 1 + w.
    """

    file: Path
    dtype: torch.dtype
    offset: int
    kind: int
    shape: list[int]
    rows: int
    row_bytes: int
    heads: int
    shift: float

    def __getitem__(self, part: Any) -> Tensor:
        blocks = np.memmap(self.file, np.uint8, "r", self.offset, (self.rows, self.row_bytes))
        kind = GGMLQuantizationType(self.kind)
        whole = torch.empty(self.shape, dtype=self.dtype)
        flat = whole.view(self.rows, -1)
        step = max(1, CHUNK // flat.shape[1])
        for start in range(0, self.rows, step):
            values = dequantize(blocks[start : start + step], kind) + np.float32(self.shift)
            flat[start : start + step] = torch.from_numpy(values)
        if self.heads:
            whole = rearrange(whole, "(h p two) ... -> (h two p) ...", h=self.heads, two=2)
        return whole[part]


def packed(folder: Path, dtype: torch.dtype) -> dict[str, Packed]:
    """Name → weight, as the index of an unpacked GGUF file lists them; read in `dtype`."""
    index = json.loads((folder / INDEX).read_text("utf-8"))
    file = Path(index["file"])
    return {name: Packed(file, dtype, *entry) for name, entry in index["tensors"].items()}
