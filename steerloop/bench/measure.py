"""Time, peak memory and rates: a watch over one piece of work, races between several, and probes of
what the machine can do at most.

Host memory is read from /proc/self/status: `rss` is all that was resident at once, with the pages
of the weight files that a loader maps (the kernel may drop those at any time); `anon` is without
them. On CUDA the allocator's own count is taken as well.
"""

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steerloop.kernels.hardware import keep_freed
from steerloop.kernels.nf4 import NF4
from steerloop.model import Model

MB = 2**20
LONG = 0.1  # seconds of one product of the probe, above which no larger one is tried
TICK = 0.004  # seconds between two readings of the memory


def resident() -> dict[str, float]:
    """Resident memory of this process, MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").strip()
    lines = dict(x.split(":", 1) for x in status.split("\n"))
    rss, anon = (int(lines[x].split()[0]) / 1024 for x in ("VmRSS", "RssAnon"))
    return {"rss": rss, "anon": anon}


def hand_back() -> None:
    """Free memory goes back to the system, so that what is resident is what is held."""
    getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # glibc has it, others need not


@contextmanager
def timed(cuda: bool) -> Iterator[dict[str, float]]:
    """Fills in seconds: of the clock, and of CPU time, which other work on the machine disturbs
    less."""
    spent: dict[str, float] = {}
    start, cpu = time.perf_counter(), time.process_time()
    yield spent
    if cuda:
        torch.cuda.synchronize()
    spent["seconds"] = time.perf_counter() - start
    spent["cpu_seconds"] = time.process_time() - cpu


@contextmanager
def watched(cuda: bool) -> Iterator[dict[str, float]]:
    """Fills in the peaks over what was held before, MB, and `seconds` and `cpu_seconds` of a start
    with all free memory given back."""
    hand_back()
    before, peak, done = resident(), resident(), threading.Event()

    def look() -> None:
        peak.update({k: max(peak[k], v) for k, v in resident().items()})

    def watch() -> None:
        while not done.wait(TICK):
            look()

    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        with timed(cuda) as spent:
            yield spent
    finally:
        done.set()
        thread.join()
        look()
        spent.update({k: peak[k] - before[k] for k in peak})
        if cuda:
            spent["cuda"] = (torch.cuda.max_memory_allocated() - held) / MB


@dataclass
class Runner:
    """One way to do a piece of work: `run` does `units` of it, `forget` drops what it keeps for the
    next time. On a CPU a twin has about the C library's own way with freed memory, ours what
    `hardware` sets."""

    run: Callable[[], Any]
    units: float | int = 1
    twin: bool = False
    forget: Callable[[], Any] = lambda: None

    def __call__(self, cuda: bool) -> None:
        if not cuda:
            keep_freed(not self.twin)
        self.run()


def race(runners: dict[str, Runner], repeats: int, cuda: bool) -> dict[str, dict[str, Any]]:
    """Every runner once to warm up, then all of them in turn, `repeats` times over: each once for
    its memory, which begins with nothing kept and all free memory given back, and at once again
    for its time, since in a run neither a step nor a batch is the first.

    By name: `seconds` and `cpu_seconds` (medians) for `units` of the work, units per second, and
    `peak_mb`, the most memory it held over what was held before it.
    """
    for runner in runners.values():
        runner(cuda)
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in runners}
    for _ in range(repeats):
        for name, runner in runners.items():
            runner.forget()
            with watched(cuda) as first:
                runner(cuda)
            with timed(cuda) as again:
                runner(cuda)
            seen[name].append(first | again)
    return {name: row(times, runners[name].units, cuda) for name, times in seen.items()}


def row(seen: list[dict[str, float]], units: float | int, cuda: bool) -> dict[str, Any]:
    """Figures of one runner."""
    seconds, cpu = (median(x[k] for x in seen) for k in ("seconds", "cpu_seconds"))
    return {"units": units, "seconds": seconds, "all_seconds": [x["seconds"] for x in seen],
            "cpu_seconds": cpu, "units_per_second": units / seconds,
            "peak_mb": max(x["cuda" if cuda else "anon"] for x in seen)}


def against(figures: dict[str, dict[str, Any]], ours: str = "ours") -> dict[str, dict[str, Any]]:
    """Adds to every other row how many times faster per unit ours is, and which share of its peak
    memory ours needs."""
    for name, x in figures.items():
        if name != ours:
            mine = figures[ours]
            x["ours_times_faster"] = mine["units_per_second"] / x["units_per_second"]
            x["ours_times_less_cpu"] = (x["cpu_seconds"] / x["units"]) / (
                mine["cpu_seconds"] / mine["units"])
            x["ours_share_of_peak_memory"] = mine["peak_mb"] / max(x["peak_mb"], 1e-9)
    return figures


def best(run: Callable[[], Any], device: torch.device, repeats: int = 5) -> float:
    """Seconds of the fastest of several runs, the first one not counted."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def matmul_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Measured floating point operations per second: the best of growing products x Wᵀ, none of
    which takes long."""
    most, rate = 8192 if device.type == "cuda" else 2048, 0.0
    for n in (2**i for i in range(8, most.bit_length())):
        x, weight = torch.randn((2, n, n), device=device).to(dtype)
        seconds = best(lambda x=x, weight=weight: F.linear(x, weight), device)
        rate = max(rate, 2 * n**3 / seconds)
        if seconds > LONG:
            break
    return rate


def bandwidth(dtype: torch.dtype, device: torch.device) -> float:
    """Measured bytes per second, read and written, of a large copy."""
    source = torch.zeros((1024 if device.type == "cuda" else 256) * MB // dtype.itemsize,
                         dtype=dtype, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best(lambda: target.copy_(source), device)


def limits(device: torch.device) -> dict[str, dict[str, float]]:
    """Both probes for bf16 and fp32: GFLOP/s and GB/s."""
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    return {name: {"gflops": matmul_peak(x, device) / 1e9, "gb_per_s": bandwidth(x, device) / 1e9}
            for name, x in dtypes.items()}


def weight_bytes(model: Model) -> int:
    """Bytes of the base as it is held: packed codes and scales, and what stays dense."""
    packed = [m for m in model.hf.modules() if isinstance(m, NF4)]
    states = [x for m in packed for x in (m.packed, m.state.absmax, m.state.state2.absmax)]
    stack = {id(p) for x in model.layers.values() for p in (x.live_A, x.live_B)}
    dense = {id(p): p for p in model.hf.parameters() if id(p) not in stack}
    return sum(x.nbytes for x in [*states, *dense.values()])


def linear_size(blocks: list[nn.Module]) -> int:
    """Weights of the linear layers of blocks, the low-rank stack not counted."""
    return sum(m.in_features * m.out_features for block in blocks for m in block.modules()
               if isinstance(m, nn.Linear))


def step_bytes(model: Model, rows: int, tokens: float | int) -> float | int:
    """Bytes that one decoding step has to read at least: the base as it is held, and the keys and
    values of `rows` × `tokens`, windows not counted."""
    config = model.hf.config.get_text_config()
    head_dim = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    kv = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim
    weight: Tensor = model.head.weight
    return weight_bytes(model) + rows * tokens * kv * weight.dtype.itemsize
