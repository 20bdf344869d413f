"""A linear layer that contains its base and a gated stack of low-rank rounds.

    y = base(x) + s · ((x Aᵀ) ⊙ g) Bᵀ        A (R·r, d_in), B (d_out, R·r), s = alpha / r

Slot k of the stack belongs to round k. Slots before the live one are baked (frozen, in the compute
dtype), the live one is trained in fp32 and cast in forward, those after it are zero. The stack is
allocated whole, so that the shapes of the products never change and folding leaves every output
bit as it was.

Letters: b rows, t tokens, r rank of one round, R rounds.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn


class Gates:
    """Which rounds are heard; one object shared by all layers of a model.

    `value` is None (the student: every round open), a vector (R,), or one vector per batch row
    (b, R). All zero is the untouched base, bitwise. `live` is the slot in training.
    """

    def __init__(self, rounds: int) -> None:
        self.rounds, self.live = rounds, 0
        self.value, self.closed = None, False

    @contextmanager
    def __call__(self, value: Float[Tensor, "*b R"] | None) -> Iterator[None]:
        """Hear only what `value` opens until the block ends, be it by an exception.

        Raises RuntimeError while gradients are recorded: a backward pass outside the block would
        run (or recompute) under other gates than its forward.
        """
        if torch.is_grad_enabled():
            raise RuntimeError("gates move only under torch.no_grad()")
        before = self.value, self.closed
        self.value, self.closed = value, value is not None and not value.any()
        try:
            yield
        finally:
            self.value, self.closed = before

    def before(self, round: int) -> Float[Tensor, "R"]:
        """The student as it was before a round: 0 is the base, `live` the previous student."""
        return (torch.arange(self.rounds) < round).float()


class GatedLoRALinear(nn.Module):
    """Replaces `base` (frozen, not copied) and adds the stack. A fresh Δ (B = 0) is a no-op."""

    def __init__(self, base: nn.Linear, gates: Gates, r: int, alpha: float) -> None:
        super().__init__()
        self.base, self.gates, self.r, self.scale = base.requires_grad_(False), gates, r, alpha / r
        d_out, d_in = base.weight.shape
        self.register_buffer("baked_A", base.weight.new_zeros(gates.rounds * r, d_in))
        self.register_buffer("baked_B", base.weight.new_zeros(d_out, gates.rounds * r))
        self.live_A = nn.Parameter(torch.zeros(r, d_in, device=base.weight.device))
        self.live_B = nn.Parameter(torch.zeros(d_out, r, device=base.weight.device))

    def slot(self, k: int) -> tuple[Float[Tensor, "r d_in"], Float[Tensor, "d_out r"]]:
        """Views of the baked factors of round k."""
        at = slice(k * self.r, (k + 1) * self.r)
        return self.baked_A[at], self.baked_B[:, at]

    def factors(self) -> tuple[Float[Tensor, "Rr d_in"], Float[Tensor, "d_out Rr"]]:
        """The whole stack with the live slot in its place; once every round is folded, as baked."""
        A, B, low = self.baked_A, self.baked_B, self.gates.live * self.r
        if self.gates.live == self.gates.rounds:
            return A, B
        high = low + self.r
        return (torch.cat([A[:low], self.live_A.to(A.dtype), A[high:]]),
                torch.cat([B[:, :low], self.live_B.to(B.dtype), B[:, high:]], dim=1))

    def forward(self, x: Float[Tensor, "b t d_in"]) -> Float[Tensor, "b t d_out"]:
        y, gate = self.base(x), self.gates.value
        if self.gates.closed:
            return y
        A, B = self.factors()
        low = F.linear(x, A)
        if gate is not None:
            gate = repeat(gate.to(low), "... R -> ... (R r)", r=self.r)
            low = low * (gate if gate.ndim == 1 else rearrange(gate, "b Rr -> b 1 Rr"))
        return y + self.scale * F.linear(low, B)


Layers = dict[str, GatedLoRALinear]


def wrap(root: nn.Module, names: list[str], gates: Gates, r: int, alpha: float) -> Layers:
    """Freeze `root` and replace its linear layers `names` (dotted paths). Returns name → layer."""
    root.requires_grad_(False)
    layers = {name: GatedLoRALinear(root.get_submodule(name), gates, r, alpha) for name in names}
    for name, layer in layers.items():
        root.set_submodule(name, layer)
    return layers


@torch.no_grad()
def open_round(layers: Layers, gates: Gates, seed: int) -> None:
    """A fresh Δ in the live slot: A Kaiming uniform (He et al. 2015, a = √5), B zero."""
    generator = torch.Generator().manual_seed(1009 * seed + gates.live)
    for layer in layers.values():
        draw = torch.rand(layer.live_A.shape, generator=generator)
        layer.live_A.copy_((2 * draw - 1) / math.sqrt(layer.live_A.shape[1]))
        layer.live_B.zero_()


@torch.no_grad()
def fold(layers: Layers, gates: Gates) -> None:
    """The live Δ joins the frozen stack, cast once; the student's output keeps every bit."""
    for layer in layers.values():
        for baked, live in zip(layer.slot(gates.live), (layer.live_A, layer.live_B), strict=True):
            baked.copy_(live)
    gates.live += 1


def folded(layers: Layers, round: int) -> dict[str, Tensor]:
    """Factors of one folded round as they are saved: '<layer>.A' (r, d_in), '<layer>.B'."""
    return {f"{name}.{factor}": x.clone(memory_format=torch.contiguous_format)
            for name, layer in layers.items()
            for factor, x in zip("AB", layer.slot(round), strict=True)}


def load_round(layers: Layers, gates: Gates, path: Path) -> dict:
    """Bake a saved round into the live slot and move on. Returns the metadata of the file.

    Raises KeyError when the file's layers are not exactly those of this model.
    """
    with safe_open(path, framework="pt") as file:
        if set(file.keys()) != {f"{name}.{factor}" for name in layers for factor in "AB"}:
            raise KeyError(f"{path} holds other layers than this model wraps: check targets, band")
        for name, layer in layers.items():
            for factor, x in zip("AB", layer.slot(gates.live), strict=True):
                x.copy_(file.get_tensor(f"{name}.{factor}"))
        gates.live += 1
        return json.loads(file.metadata()["steerloop"])
