"""The same seed gives the same bits on one GPU: sums of a backward pass in one order, always."""

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from loguru import logger
from torch.utils import deterministic
from transformers import PreTrainedModel

from steerloop.kernels.hardware import WORKSPACE
from steerloop.kernels.trunk import Trunk

TOKENS = 8
_known: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()  # what `refused` found


def refused(hf: PreTrainedModel) -> str:
    """The operation of a model that has no such form; '' where all have. Gradients are taken of
    what is trainable, and thrown away."""
    ids = torch.zeros((2, TOKENS), dtype=torch.long, device=hf.device)
    live = [x for x in hf.parameters() if x.requires_grad]
    try:
        with torch.enable_grad():
            h = Trunk(hf.get_decoder())(ids, ids >= 0)
            torch.autograd.grad(h.float().square().sum(), live, allow_unused=True)
    except RuntimeError as e:
        if "deterministic" not in str(e) or WORKSPACE in str(e):  # which is the user's to set
            raise
        return str(e).partition(" ")[0]
    return ""


@contextmanager
def repeatable(hf: PreTrainedModel, device: torch.device) -> Iterator[None]:
    """Until the block ends, a GPU takes the strict form of each operation: attention's backward
    pass above all adds in an order that depends on the moment. A model of which an operation has
    none goes on as it is, and that is said. CPUs are repeatable by themselves."""
    if device.type != "cuda":
        yield
        return
    strict = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    fills, deterministic.fill_uninitialized_memory = deterministic.fill_uninitialized_memory, False
    torch.use_deterministic_algorithms(True)
    try:
        if hf not in _known and (why := _known.setdefault(hf, refused(hf))):
            logger.warning("another run with this seed may differ in its last bits: on a GPU "
                           f"{why} adds in no fixed order; another family may not need it")
        if _known[hf]:
            torch.use_deterministic_algorithms(False)
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        deterministic.fill_uninitialized_memory = fills
