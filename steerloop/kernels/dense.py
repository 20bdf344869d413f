"""A model without detours while nothing is trained: 4-bit weights unpacked once, the gated stack
merged into them. It is the very model that trains, up to one rounding:

    W' = W + s · B diag(g) A        summed in fp32, rounded once to the dtype of W (lora.py)

Weights are held as long as the stack stays as it is, if memory allows. Whether it does is a rule on
sizes, not on what happens to be free: a run that is resumed takes the same road again.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from steerloop.kernels.blocked import Blocked, suits
from steerloop.kernels.hardware import SHARE, SHARE_TRAINING, memory


@runtime_checkable
class Mergeable(Protocol):
    """A module that knows itself as one matrix, made of its base, its buffers and parameters."""

    base: nn.Linear

    def merged(self) -> Float[Tensor, "d_out d_in"]: ...

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


class Dense:
    """Puts plain layers in the place of gated and packed ones, and takes them away again.

    `mode`: dense (always), nf4 (never: as it is held), auto (where sizes allow).
    """

    def __init__(
        self, hf: PreTrainedModel, layers: dict[str, Mergeable], gates: Moving, mode: str
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
        size += [x.base.weight.nbytes for k, x in layers.items() if f"{k}.base" not in linear]
        size += [m.weight.nbytes for k, m in self.alone.items() if k not in linear]
        room = memory(next(hf.parameters()).device)
        self.on = mode == "dense" or (mode == "auto" and sum(size) <= SHARE * room)
        self.training = bool(linear) and self.on and sum(size) <= SHARE_TRAINING * room
        self.known: tuple[Any, dict[str, nn.Module]] = None, {}

    def state(self) -> tuple[Any, ...]:
        """What the merged weights depend on."""
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
    def __call__(self) -> Iterator[None]:
        """Until the block ends the model is dense. Gates of one row each cannot be merged: under
        them it stays as it is."""
        gates = self.gates.value
        if self.inside or not self.on or (gates is not None and gates.ndim > 1):
            yield
            return
        if self.known[0] != (state := self.state()):
            self.release()
            self.known = state, {
                k: still(m.merged(), m.base.bias) for k, m in self.layers.items()} | {
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
