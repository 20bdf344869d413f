"""What a piece of work asks of a GPU, seen without one: the operations that are dispatched, and
where the host would wait for the device.

The model is put on the `meta` device, whose tensors have shapes and no numbers. (Fake CUDA tensors
say as much, but a torch that was built for CPUs cannot index them.) Whatever needs a number on the
host, or sends one to the device and waits for its arrival, is noted with the line that asked.
"""

from collections.abc import Iterator
from traceback import extract_stack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from steerloop.model import Model

META = torch.device("meta")
VIEWS = ("_unsafe_view",)  # which are one without saying so
BY_NUMBERS = ("nonzero", "masked_select", "unique", "bincount", "repeat_interleave.Tensor", "equal")
BETWEEN = ("/torch/", "/jaxtyping/", "<", __file__)  # frames that did not ask


def tensors(*of: Any) -> Iterator[Tensor]:
    """All tensors in arguments or results."""
    return (x for x in tree_leaves(of) if isinstance(x, Tensor))


class Dispatched(TorchDispatchMode):
    """While open, counts the operations that reach a device and make something (`ops`; views are
    free), and notes `waits`: what is asked for, and by which line. Numbers that a device does not
    have are 0 for those who ask."""

    def __init__(self) -> None:
        super().__init__()
        self.ops, self.waits = 0, []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name, given = func._schema.name.removeprefix("aten::"), list(tensors(args, kwargs))
        there = [x for x in given if x.device == META]
        to = kwargs.get("device")
        if not there and (to is None or torch.device(to) != META):
            return func(*args, **kwargs)
        if name in ("_to_copy", "copy_") and any(x.device != META for x in given):
            if not kwargs.get("non_blocking"):
                self.note("sent by the host, which waits for its arrival")
        elif any(x.device != META and x.ndim for x in given):
            self.note(f"{name} of tensors on two devices")
        if name == "_to_copy" and to is not None and torch.device(to) != META:
            self.note("fetched to the host")
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if name == "_local_scalar_dense":
            self.note("a number on the host")
            return given[0].new_zeros((), device="cpu").item()
        if name.startswith(BY_NUMBERS):
            self.note(f"{name}, whose shape depends on numbers")
            return given[0].new_zeros(0, given[0].ndim, dtype=torch.long)
        returns = func._schema.returns
        view = bool(returns) and returns[0].alias_info and not returns[0].alias_info.is_write
        self.ops += not view and name not in VIEWS
        return func(*args, **kwargs)

    def note(self, what: str) -> None:
        """Once per line and call: a list of numbers is one wait."""
        frames = [x for x in extract_stack() if not any(y in x.filename for y in BETWEEN)]
        self.waits.append(f"{frames[-1].filename}:{frames[-1].lineno}: {what}")


def onto_meta(model: Model) -> None:
    """Every tensor of a model, one that is shared stays so, becomes one without numbers."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def gone(x: Tensor) -> Tensor:
        if id(x) not in seen:
            empty = torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device=META)
            if isinstance(x, nn.Parameter):
                empty = nn.Parameter(empty, requires_grad=x.requires_grad)
            seen[id(x)] = x, empty
        return seen[id(x)][1]

    for module in model.hf.modules():
        for held in (module._parameters, module._buffers, vars(module)):
            for name, x in held.items():
                if isinstance(x, Tensor):
                    held[name] = gone(x)
    model.head.weight = gone(model.head.weight)
    model.device = model.gates.device = META
