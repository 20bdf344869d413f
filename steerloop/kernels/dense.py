"""A model without detours while nothing is trained: 4-bit weights unpacked once, and the stack put
together with them. It is the very model that trains, whatever the dtype:

    y = x (W + B A)ᵀ            in float32: merged into one matrix
    y = [x, x Aᵀ] [W, B]ᵀ       in 16 bits: beside it, summed in fp32 and rounded once

A merged matrix is rounded to its dtype. In float32 that is 1e-7 of a weight, in bfloat16 up to 4e-3
of it, more than most weights are changed by: each weight of the base is a number of bfloat16, so
whatever is less than half a step is not rounded at random but lost.

Weights are held as long as the stack stays as it is, if memory allows. Whether it does is a rule on
sizes, not on what happens to be free: a run that is resumed takes the same road again.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from steerloop.kernels.blocked import Blocked, suits
from steerloop.kernels.hardware import SHARE, SHARE_TRAINING, memory


@runtime_checkable
class Stacked(Protocol):
    """A base and what is heard beside it, A (n, d_in) and B (d_out, n): y = base(x) + (x Aᵀ) Bᵀ,
    which its buffers and parameters decide."""

    base: nn.Linear

    def heard(self) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "d_out n"]]: ...

    def buffers(self, recurse: bool) -> Iterator[Tensor]: ...

    def parameters(self, recurse: bool) -> Iterator[Tensor]: ...


@runtime_checkable
class Moving(Protocol):
    """The gates of such layers: none, (R) or (b, R); which slot is live; and a block in which they
    cannot move."""

    value: Tensor | None
    live: int

    def held(self) -> AbstractContextManager[None]: ...


def packed(linear: nn.Linear) -> bool:
    """Whether a layer's weight is computed when asked for."""
    return "weight" not in linear._parameters


def plain(weight: Float[Tensor, "d_out d_in"], bias: Tensor | None) -> nn.Linear:
    """An ordinary frozen layer around a weight."""
    layer = nn.Linear(*weight.shape[::-1], bias=False, device="meta")
    layer.weight, layer.bias = nn.Parameter(weight, requires_grad=False), bias
    return layer


def still(weight: Float[Tensor, "d_out d_in"], bias: Tensor | None) -> nn.Module:
    """The fastest layer around a weight through which no gradient passes."""
    return Blocked(weight, bias) if suits(weight) else plain(weight, bias)


def added(
    base: nn.Linear, x: Float[Tensor, "*b d_in"], y: Float[Tensor, "*b d_out"]
) -> Float[Tensor, "*b d_out"]:
    """base(x) + y without a gradient. In 16 bits it is summed before it is rounded: a rounded
    product lies on the grid, where a small y would be lost as in a merged matrix."""
    if x.dtype == torch.float32:
        return base(x) + y
    if base.bias is not None:
        y = y + base.bias
    return torch.addmm(y.flatten(0, -2), x.flatten(0, -2), base.weight.t()).view_as(y)


class Beside(nn.Module):
    """y = [x, x Aᵀ] [W, B]ᵀ + b: the stack is one more column of inputs for each of its rows, so
    that it joins the sum before that is rounded. Forward only."""

    def __init__(
        self, weight: Float[Tensor, "d_out d_in"], bias: Tensor | None,
        A: Float[Tensor, "n d_in"], B: Float[Tensor, "d_out n"],
    ) -> None:  # fmt: skip
        super().__init__()
        self.low, self.whole = plain(A, None), still(torch.cat([weight, B], 1), bias)

    def forward(self, x: Float[Tensor, "*b d_in"]) -> Float[Tensor, "*b d_out"]:
        return self.whole(torch.cat([x, self.low(x)], -1))


def joined(layer: Stacked) -> nn.Module:
    """A gated layer as its gates are now, with nothing left to decide."""
    weight, bias = layer.base.weight, layer.base.bias
    A, B = layer.heard()
    if len(A) == 0:
        return still(weight, bias)
    if weight.dtype == torch.float32:
        return still(torch.addmm(weight, B, A), bias)
    return Beside(weight, bias, A, B)


class Dense:
    """Puts plain layers in the place of gated and packed ones, and takes them away again.

    `mode`: dense (always), nf4 (never: as it is held), auto (where sizes allow).
    """

    def __init__(
        self, hf: PreTrainedModel, layers: dict[str, Stacked], gates: Moving, mode: str
    ) -> None:
        self.hf, self.layers, self.gates = hf, layers, gates
        inner, modules = {f"{name}.base" for name in layers}, dict(hf.named_modules())
        linear = {k: m for k, m in modules.items() if isinstance(m, nn.Linear) and packed(m)}
        read = {id(m) for m in hf.get_decoder().modules()}  # no head, nothing that sees
        slow = {k: m for k, m in modules.items()
                if id(m) in read and type(m) is nn.Linear and suits(m.weight)}
        self.alone = {k: m for k, m in (linear | slow).items() if k not in inner}  # not gated
        held = [(m, m.state.dtype) for m in linear.values()]
        size = [m.in_features * m.out_features * t.itemsize for m, t in held]
        unpacked = sum(size)
        size += [x.base.weight.nbytes for k, x in layers.items() if f"{k}.base" not in linear]
        size += [m.weight.nbytes for k, m in self.alone.items() if k not in linear]
        size += [x.nbytes for m in layers.values() for x in m.buffers(False)]  # beside them
        room = memory(next(hf.parameters()).device)
        self.on = mode == "dense" or (mode == "auto" and sum(size) <= SHARE * room)
        self.training = bool(linear) and self.on and unpacked <= SHARE_TRAINING * room
        self.known: tuple[Any, dict[str, nn.Module]] = None, {}

    def state(self) -> tuple[Any, ...]:
        """What the weights depend on."""
        gates = self.gates.value
        return (self.gates.live, None if gates is None else tuple(gates.tolist()), *(
            x._version for m in self.layers.values()
            for x in (*m.parameters(recurse=False), *m.buffers(recurse=False))))

    @property
    def inside(self) -> bool:
        """Whether the plain layers are in place now."""
        return any(self.hf.get_submodule(k) is not m for k, m in (self.layers | self.alone).items())

    def release(self) -> None:
        """Forget the weights."""
        self.known = None, {}

    @contextmanager
    def __call__(self, wanted: bool = True) -> Iterator[None]:
        """Until the block ends the model is dense, where that is `wanted`, and its gates cannot
        move. Under gates of one row each it stays as it is."""
        gates = self.gates.value
        each = gates is not None and gates.ndim > 1
        if self.inside or not self.on or not wanted or each:
            yield
            return
        if self.known[0] != (state := self.state()):
            self.release()
            self.known = state, {
                k: joined(m) for k, m in self.layers.items()} | {
                k: still(m.weight, m.bias) for k, m in self.alone.items()}
        with self.gates.held(), self._swapped(self.known[1], self.layers | self.alone):
            yield

    @contextmanager
    def unpacked(self) -> Iterator[None]:
        """Until the block ends, 4-bit weights are multiplied dense, bit for bit the same: training
        reads them many times. Nothing is kept."""
        self.release()
        if not self.training:
            yield
            return
        bases = {f"{k}.base": m.base for k, m in self.layers.items()} | self.alone
        bases = {k: m for k, m in bases.items() if packed(m)}
        with self._swapped({k: plain(m.weight, m.bias) for k, m in bases.items()}, bases):
            yield

    @contextmanager
    def _swapped(self, new: dict[str, nn.Module], old: dict[str, nn.Module]) -> Iterator[None]:
        try:
            for name, layer in new.items():
                self.hf.set_submodule(name, layer)
            yield
        finally:
            for name, layer in old.items():
                self.hf.set_submodule(name, layer)
