"""The processes of one run: torchrun's ranks. To a process alone all of this is identity.

Every rank runs the same program over the same rows and holds the same objects. Where rows are
independent of each other each rank takes its share (`dealt`), and what came of them is put together
on all of them (`gathered`); gradients are added up (`summed`); what is kept is what rank 0 made of
it (`told`). Whichever rank fails ends all of them: one waits for the others for so many seconds
(STEERLOOP_WAIT, 600), then says which did not come.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import chain
from pathlib import Path
from socket import gethostname
from typing import Any, NamedTuple, TypeVar

import polars as pl
import torch
import torch.distributed as dist
from loguru import logger
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from steerloop import UserError

T = TypeVar("T", list[Any], pl.DataFrame)
Made = TypeVar("Made")
WAIT, RESTARTS = "STEERLOOP_WAIT", "TORCHELASTIC_RESTART_COUNT"
NOTICED = 1.0  # seconds in which the end of a process shows, after that of its connections


class Ranks:
    """What this process knows of the others."""

    def __init__(self) -> None:
        self.own, self.count, self.calls = 0, 1, 0
        self.store: dist.Store | None = None

    def here(self) -> None:
        """Every rank says which process it is."""
        self.store.set(f"process/{self.own}", f"{gethostname()} {os.getpid()}")

    def gone(self) -> str:
        """The ranks on this machine whose process has ended."""
        found = []
        with suppress(RuntimeError):
            for rank in range(self.count):
                host, pid = self.store.get(f"process/{rank}").decode().split()
                state = Path(f"/proc/{pid}/stat")
                if host != gethostname():
                    continue
                said = state.read_text(encoding="utf-8") if state.exists() else ") Z"
                if said.rpartition(")")[2].split()[0] == "Z":
                    found.append(str(rank))
        return ", ".join(found)

    def came(self) -> None:
        """Every rank notes how far it got, before it waits."""
        self.calls += 1
        self.store.set(f"calls/{self.own}", str(self.calls))

    def missing(self) -> str:
        """The ranks that ended, or else did not get as far as this one, in words."""
        named, seen = "", time.monotonic() + NOTICED
        while not named and time.monotonic() < seen:
            named = self.gone()
            time.sleep(NOTICED / 10)
        with suppress(RuntimeError):  # the machine that knows may be gone itself
            named = named or ", ".join(
                str(i) for i in range(self.count) if self.calls > self.far(i))
        named = named or "0, or another,"
        return f"rank {named} did not come: it ended, or hangs (waited {wait():g} s at most)"

    def far(self, rank: int) -> int:
        """How far a rank got."""
        return int(self.store.get(f"calls/{rank}")) if self.store.check([f"calls/{rank}"]) else 0

    def first_to_say(self) -> bool:
        """Whether no rank has said yet why all of them end."""
        try:
            return self.store.add("said", 1) == 1
        except RuntimeError:  # whoever held it is gone
            return True


ranks = Ranks()


def wait() -> float:
    """Most seconds that a rank waits for another."""
    return float(os.environ.get(WAIT, "600"))


def own() -> int:
    """The number of this rank; rank 0 alone keeps and shows."""
    return ranks.own


def count() -> int:
    """How many there are."""
    return ranks.count


def dealt(rows: T) -> T:
    """This rank's share of some rows: one of every `count`, in turn from the first rank to the last
    and back, so that where the longest come first all have about as much to do."""
    if ranks.count == 1:
        return rows
    turns = [ranks.count * k + (ranks.count - 1 - ranks.own if k % 2 else ranks.own)
             for k in range(len(rows) // ranks.count + 1)]
    mine = [i for i in turns if i < len(rows)]
    return rows[mine] if isinstance(rows, pl.DataFrame) else [rows[i] for i in mine]


def gathered(mine: list[Made]) -> list[Made]:
    """What all ranks made of the rows that were dealt to them, in the order of those. Where it is
    tensors on GPUs, it comes on each rank's own, also to one that had no rows."""
    if ranks.count == 1:
        return mine
    said: list[Any] = [None] * ranks.count
    together(dist.all_gather_object, said, packed(mine))
    gpu = any(x.on_gpu for x in said)
    parts, found = [unpacked(x, gpu) for x in said], []
    for k in range(max(map(len, parts))):
        turns = parts[::-1] if k % 2 else parts
        found += [part[k] for part in turns if k < len(part)]
    return found


def pooled(*lists: list[float]) -> list[list[float]]:
    """Each of some lists with what it holds on all ranks, in any order, sent at once."""
    return [[*chain(*parts)] for parts in zip(*gathered([lists]), strict=True)]


class Packed(NamedTuple):
    """Rows as they are sent. Those that are tensors go as one: each by itself would take along all
    of what it is a view of."""

    rows: list[Any]  # of tensors their shapes
    flat: Tensor | None
    on_gpu: bool


def packed(rows: list[Any]) -> Packed:
    """Rows that are all tensors of one dtype, or all something else."""
    if not rows or not isinstance(rows[0], Tensor):
        return Packed(rows, None, on_gpu=False)
    flat = torch.cat([x.detach().flatten() for x in rows])
    return Packed([x.shape for x in rows], flat.cpu(), flat.is_cuda)


def unpacked(sent: Packed, gpu: bool) -> list[Any]:
    """Rows as they were, tensors on this rank's GPU or on the CPU."""
    if sent.flat is None:
        return sent.rows
    flat = sent.flat.cuda() if gpu else sent.flat
    parts = flat.split([shape.numel() for shape in sent.rows])
    return [x.view(shape) for x, shape in zip(parts, sent.rows, strict=True)]


def summed(model: nn.Module) -> None:
    """The gradients of what is trained in a model become those of all ranks together."""
    if ranks.count == 1:
        return
    live = [x for x in model.parameters() if x.requires_grad]
    parts = [torch.zeros_like(x) if x.grad is None else x.grad for x in live]
    whole = torch.cat([x.flatten() for x in parts])
    together(dist.all_reduce, whole)
    for x, part in zip(live, whole.split([x.numel() for x in live]), strict=True):
        x.grad = part.view_as(x)


def told(value: Made, device: str = "cpu") -> Made:
    """What rank 0 has; to other ranks its tensors come on a device."""
    if ranks.count == 1:
        return value
    said = [tree_map(off_the_device, value) if ranks.own == 0 else None]
    together(dist.broadcast_object_list, said, 0)
    if ranks.own == 0:
        return value
    return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, said[0])


def off_the_device(x: Any) -> Any:
    """As it can be sent: without what it may be a view of."""
    return x.detach().cpu().clone() if isinstance(x, Tensor) else x


def together(call: Callable[..., Any], *args: Any) -> None:
    """Something that all ranks do. Raises UserError where one of them does not come to it."""
    try:
        ranks.came()
        call(*args)
    except RuntimeError as e:
        raise UserError(ranks.missing()) from e


@contextmanager
def joined() -> Iterator[None]:
    """Until the block ends the ranks of a launch know each other. What ends one ends all: the first
    says why, the others nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    limit, backend = timedelta(seconds=wait()), "cpu:gloo,cuda:nccl" if cuda else "gloo"
    try:
        store, ranks.own, ranks.count = next(dist.rendezvous("env://", timeout=limit))
        # it outlives a launch that is started again
        store = dist.PrefixStore(f"steerloop/{os.environ.get(RESTARTS, '0')}", store)
        dist.init_process_group(backend, store=store, timeout=limit, rank=ranks.own,
                                world_size=ranks.count)
    except RuntimeError as e:
        raise UserError(f"the ranks of this launch do not find each other: {e}") from e
    ranks.store = store
    ranks.here()
    if ranks.own:
        logger.remove()
    try:
        yield
    except BaseException as e:
        stopped = isinstance(e, KeyboardInterrupt)
        if not ranks.first_to_say():
            raise SystemExit(130 if stopped else 1) from e
        if stopped and (gone := ranks.gone()):  # for which the launcher stopped this one
            e.add_note(f"rank {gone} had ended before")
        raise
    finally:
        with suppress(RuntimeError):
            dist.destroy_process_group()
        ranks.__init__()
