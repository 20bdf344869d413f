"""A linear layer that contains its base and a gated stack of low-rank rounds.

    y = base(x) + s · ((x Aᵀ) ⊙ g) Bᵀ        A (R·r, d_in), B (d_out, R·r), s = alpha / r

Slot k of the stack belongs to round k. Slots before the live one are baked (frozen, in the compute
dtype), the live one is trained in fp32 and cast in forward, those after it are zero. The stack is
allocated whole, so that the shapes of the products never change and folding leaves every output
bit as it was.

Letters: b rows, t tokens, r rank of one round, R rounds.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from steerloop.kernels.dense import added


class Gates:
    """Which rounds are heard; one object shared by all layers of a model.

    `value` is None (the student: every round open), a vector (R,), or one vector per batch row
    (b, R). All zero is the untouched base, bitwise: `closed`. `live` is the slot in training.
    """

    def __init__(self, rounds: int, device: torch.device | str = "cpu") -> None:
        self.rounds, self.device = rounds, device
        self.live = 0
        self.value: Tensor | None = None
        self.closed = self.fixed = False

    @contextmanager
    def __call__(self, value: Float[Tensor, "*b R"] | None) -> Iterator[None]:
        """Hear only what `value` opens until the block ends, be it by an exception.

        Raises RuntimeError while gradients are recorded: a backward pass outside the block would
        run (or recompute) under other gates than its forward; and while they are `held`.
        """
        if torch.is_grad_enabled() or self.fixed:
            raise RuntimeError("gates move only under torch.no_grad(), outside of dense phases")
        before = self.value, self.closed
        self.value = None if value is None else value.to(self.device)
        self.closed = value is not None and not value.any()
        try:
            yield
        finally:
            self.value, self.closed = before

    @contextmanager
    def held(self) -> Iterator[None]:
        """Until the block ends they cannot move: what is heard was put together elsewhere."""
        before, self.fixed = self.fixed, True
        try:
            yield
        finally:
            self.fixed = before

    def before(self, round: int) -> Float[Tensor, "R"]:
        """The student as it was before a round: 0 is the base, `live` the previous student."""
        return (torch.arange(self.rounds, device=self.device) < round).float()


class GatedLoRALinear(nn.Module):
    """Replaces `base` (frozen, not copied) and adds the stack. A fresh Δ (B = 0) is a no-op."""

    def __init__(self, base: nn.Linear, gates: Gates, r: int, alpha: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.gates = gates
        self.r = r
        self.scale = alpha / r
        d_out, d_in = base.weight.shape
        new = base.weight.new_zeros
        self.register_buffer("baked_A", new(gates.rounds * r, d_in))
        self.register_buffer("baked_B", new(d_out, gates.rounds * r))
        self.live_A = nn.Parameter(new(r, d_in, dtype=torch.float32))
        self.live_B = nn.Parameter(new(d_out, r, dtype=torch.float32))

    def slot(self, k: int) -> dict[str, Tensor]:
        """Views of the baked factors of round k: A (r, d_in), B (d_out, r)."""
        at = slice(k * self.r, (k + 1) * self.r)
        return {"A": self.baked_A[at], "B": self.baked_B[:, at]}

    def delta(self) -> dict[str, Tensor]:
        """The live factors as they are heard, in the compute dtype: A (r, d_in), B (d_out, r)."""
        dtype = self.baked_A.dtype
        return {"A": self.live_A.to(dtype), "B": self.live_B.to(dtype)}

    def factors(self) -> tuple[Float[Tensor, "Rr d_in"], Float[Tensor, "d_out Rr"]]:
        """The whole stack with the live slot in its place; once every round is folded, as baked."""
        A, B = self.baked_A, self.baked_B
        if self.gates.live == self.gates.rounds:
            return A, B
        low = self.gates.live * self.r
        high = low + self.r
        live = self.delta()
        A = torch.cat([A[:low], live["A"], A[high:]])
        B = torch.cat([B[:, :low], live["B"], B[:, high:]], dim=1)
        return A, B

    def forward(self, x: Float[Tensor, "b t d_in"]) -> Float[Tensor, "b t d_out"]:
        if self.gates.closed:
            return self.base(x)
        A, B = self.factors()
        low = F.linear(x, A)
        if (gate := self.gates.value) is not None:
            gate = repeat(gate.to(low), "... R -> ... (R r)", r=self.r)
            if gate.ndim == 2:  # of each row
                gate = rearrange(gate, "b Rr -> b 1 Rr")
            low = low * gate
        y = self.scale * F.linear(low, B)
        return self.base(x) + y if torch.is_grad_enabled() else added(self.base, x, y)

    def heard(self) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "d_out n"]]:
        """What the gates in force (none, or one vector) let through: the rows of A that say
        something, and their columns of s · B diag(g), both in the compute dtype."""
        A, B = self.factors()
        gate = self.gates.value
        if gate is None:
            gate = torch.ones(self.gates.rounds)
        B = self.scale * B * repeat(gate.to(B), "R -> (R r)", r=self.r)
        loud = B.any(0)  # rounds that are closed, fresh or to come are zero
        return A[loud], B[:, loud]


Layers = dict[str, GatedLoRALinear]


def wrap(root: nn.Module, names: list[str], gates: Gates, r: int, alpha: float) -> Layers:
    """Freeze `root` and replace its linear layers `names` (dotted paths); `r` is the rank of one
    round, alpha / r the scale of its product. Returns name → layer."""
    root.requires_grad_(False)
    layers = {}
    for name in names:
        layers[name] = GatedLoRALinear(root.get_submodule(name), gates, r, alpha)
        root.set_submodule(name, layers[name])
    return layers


@torch.no_grad()
def open_round(layers: Layers, gates: Gates, seed: int) -> None:
    """A fresh Δ in the live slot: A Kaiming uniform (He et al. 2015, a = √5), B zero."""
    rng = torch.Generator().manual_seed(1009 * seed + gates.live)
    for layer in layers.values():
        draw = torch.empty(layer.live_A.shape)
        nn.init.kaiming_uniform_(draw, 5**0.5, generator=rng)
        layer.live_A.copy_(draw)
        layer.live_B.zero_()


@torch.no_grad()
def live_delta(layers: Layers) -> dict[str, Tensor]:
    """What is saved of a round: '<layer>.A' (r, d_in) and '<layer>.B' (d_out, r), cast once."""
    delta = {}
    for name, layer in layers.items():
        delta |= {f"{name}.{factor}": x.clone() for factor, x in layer.delta().items()}
    return delta


@torch.no_grad()
def fold(layers: Layers, gates: Gates, delta: dict[str, Tensor]) -> None:
    """Δ, as `live_delta` gives it, joins the frozen stack: '<layer>.A' (r, d_in), '<layer>.B'
    (d_out, r). The live slot moves on, and the student's output keeps every bit.

    Raises KeyError when the layers of Δ are not those of this model.
    """
    slots = {}
    for name, layer in layers.items():
        slots |= {f"{name}.{factor}": x for factor, x in layer.slot(gates.live).items()}
    for name in slots.keys() | delta.keys():
        slots[name].copy_(delta[name])
    for layer in layers.values():
        layer.live_B.zero_()
    gates.live += 1
