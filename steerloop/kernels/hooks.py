"""Functions on the output of transformer blocks, for the length of a `with` block."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def hooked(hooks: list[tuple[nn.Module, Callable[[Tensor], Tensor]]]) -> Iterator[None]:
    """While open, each block's output h becomes f(h); every hook is removed on any exit.

    Blocks return a bare tensor, or in older library versions a tuple that starts with it.
    """

    def hook(f: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        def run(module: nn.Module, inputs: Any, out: Any) -> Any:
            return (f(out[0]), *out[1:]) if isinstance(out, tuple) else f(out)

        return run

    handles = [block.register_forward_hook(hook(f)) for block, f in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
