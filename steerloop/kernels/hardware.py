"""What this machine has: the device, the arithmetic it is fast at, a compiler."""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from loguru import logger
from torch import Tensor

from steerloop import UserError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
SHARE = 1 / 3  # of the device's memory that dense weights may take while nothing is trained
SHARE_TRAINING = 1 / 8  # activations and logits need the rest
TRIM, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # what glibc's mallopt calls them
SMALLEST, LARGEST = 2**17, 2**25  # bytes, glibc's own ends of the blocks that it keeps


def keep_freed(keep: bool, block: int = LARGEST) -> None:
    """Whether host memory that was freed stays with the process, whatever the size of a block; if
    not, blocks of `block` bytes go back at once: by default about what glibc comes to by itself.

    By itself glibc gives large blocks back and gets them again page by page, and clearing pages
    costs more than half of what fills them: logits, attention, gradients. Other systems' C
    libraries have no such switch and are left alone.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(MMAP_THRESHOLD, block)
        mallopt(MMAP_MAX, 0 if keep else 2**16)
        mallopt(TRIM, 2**31 - 1 if keep else 2 * block)


def hardware(device: str, threads: int) -> torch.device:
    """The device ('auto': cuda if there is one), and the CPU threads to use (0: torch's choice).
    On a CPU freed memory is kept; on a GPU products are told to be repeatable, before the first
    (healing/repeatable.py).

    Raises UserError for a device that is not there."""
    if threads:
        torch.set_num_threads(threads)
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.empty(0, device=auto if device == "auto" else device).device
    except (RuntimeError, AssertionError) as e:
        raise UserError(f"--device {device}: {str(e).splitlines()[0]}") from e
    if chosen.type == "cpu":
        keep_freed(True)
    if chosen.type == "cuda":
        os.environ.setdefault(WORKSPACE, ":4096:8")
    return chosen


def memory(device: torch.device) -> int:
    """Bytes of a device that this process may use, used or not."""
    if device.type == "cuda":
        allowed = torch.cuda.get_per_process_memory_fraction(device)
        return int(allowed * torch.cuda.get_device_properties(device).total_memory)
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # ranks of a run on this machine
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // beside


@cache
def fast_bf16(device: str) -> bool:
    """Whether a kind of device multiplies bfloat16 faster than float32. Of GPUs older ones emulate
    it. Of CPUs those with AMX do: AVX-512's own instruction reached half of float32's rate
    (docs/bench/README.md), and CPUs with neither emulate it, many times slower."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device != "cpu" or torch.cpu._is_amx_tile_supported()


def precision(dtype: str, device: torch.device) -> torch.dtype:
    """The compute dtype; auto: bfloat16 where the device is fast at it, else float32."""
    if dtype == "auto":
        return torch.bfloat16 if fast_bf16(device.type) else torch.float32
    return getattr(torch, dtype)


def multiplies(weight: Tensor) -> bool:
    """Whether a product with a weight is best done in its dtype, on its device."""
    return weight.dtype != torch.bfloat16 or fast_bf16(weight.device.type)


@cache
def compiler(device: str) -> str:
    """Why nothing can be compiled for a kind of device; '' where it can."""
    try:
        torch.compile(torch.neg, dynamic=True)(torch.ones(2, device=device))
    except Exception as e:  # the compiler's own errors have no common base
        return str(e).strip().splitlines()[0]
    return ""


@cache
def _compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(f, dynamic=True)


def compiled(f: Callable[..., Any], like: Tensor) -> Callable[..., Any]:
    """`f` compiled for the device of a tensor; `f` as it is, with one warning, without compiler."""
    if why := compiler(like.device.type):
        _warn(why)
        return f
    return _compiled(f)


@cache
def _warn(why: str) -> None:
    logger.warning(f"elementwise parts are not compiled, healing is slower: {why}; install a C++ "
                   "compiler (g++)")
