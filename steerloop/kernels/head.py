"""Hidden states → logits, a chunk of positions at a time.

Letters: n positions, c positions of a chunk, d width, v vocabulary.
"""

from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from steerloop.kernels.blocked import Blocked, suits
from steerloop.kernels.hardware import SHARE_TRAINING, memory, multiplies

CHUNK_LOGITS = 2**26  # logits alive at once, per copy, where memory allows: 256 MiB in fp32
COPIES = 6  # of them at the peak, counted: a check repeats it
TILE = 2**9  # words of a weight that a CPU takes at once: it stays in the cache
LARGE = 2**15  # vocabulary from which compiling and tiles pay


class Head:
    """Hidden states → logits in fp32: the frozen output embedding, scaled and softly capped where
    needed.

    On a CPU a large one is multiplied as a blocked copy, if memory allows, else tile by tile; in
    fp32, where the device is slow in the dtype of the weight.
    """

    def __init__(
        self, weight: Float[Tensor, "v d"], softcap: float | None = None, scale: float = 1.0
    ) -> None:
        self.weight, self.softcap, self.scale = weight, softcap, scale
        large = weight.device.type == "cpu" and len(weight) >= LARGE
        self.tiled = not multiplies(weight) or (large and weight.dtype == torch.float32)
        room = memory(weight.device) * SHARE_TRAINING
        self.blocks = self.tiled and suits(weight) and weight.nbytes <= room

    @property
    def chunk(self) -> int:
        """Positions whose logits may be alive at once: all their copies fit the share of memory
        that training leaves them."""
        room = memory(self.weight.device) * SHARE_TRAINING
        return max(1, int(min(CHUNK_LOGITS, room / (4 * COPIES))) // len(self.weight))

    @cached_property
    def blocked(self) -> Blocked:
        """The copy, made when it is first needed."""
        return Blocked(self.weight)

    def __call__(self, h: Float[Tensor, "*n d"]) -> Float[Tensor, "*n v"]:
        return self.product(h).float()

    def product(self, h: Float[Tensor, "*n d"]) -> Float[Tensor, "*n v"]:
        """The same numbers in the dtype that they are multiplied in, where nothing follows."""
        if self.blocks:
            z = self.blocked(h)
        elif self.tiled:
            z = h.new_empty(*h.shape[:-1], len(self.weight), dtype=torch.float32)
            x, parts = h.float().flatten(0, -2), z.flatten(0, -2).split(TILE, -1)
            for part, w in zip(parts, self.weight.split(TILE), strict=True):
                torch.mm(x, w.float().t(), out=part)
        else:
            z = F.linear(h, self.weight)
        if self.scale != 1:
            z = z.float() * self.scale
        return z if self.softcap is None else self.softcap * torch.tanh(z.float() / self.softcap)

    def back(
        self, slope: Float[Tensor, "c v"], z: Float[Tensor, "c v"]
    ) -> Float[Tensor, "c d"]:
        """∂L/∂h from ∂L/∂z (overwritten) at the logits z."""
        if self.softcap is not None:
            slope *= 1 - (z / self.softcap).square()
        if self.scale != 1:
            slope *= self.scale
        if not self.tiled or self.weight.dtype == slope.dtype:
            return slope.to(self.weight.dtype) @ self.weight
        grad = slope.new_zeros(len(slope), self.weight.shape[1])
        for part, w in zip(slope.split(TILE, -1), self.weight.split(TILE), strict=True):
            grad.addmm_(part, w.float())
        return grad
