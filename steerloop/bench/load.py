"""Load a model, take one heal step, sample one batch: peak memory and time of each.

Run in a process of its own, since peaks are those of a process. Host memory is read from
/proc/self/status: `rss` is all that was resident at once, with the pages of the weight files that
the loader maps (the kernel may drop those at any time); `anon` is without them.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import torch

from steerloop import lora
from steerloop.config import Config
from steerloop.heal import step_loss
from steerloop.kernels.fused_loss import Barrier
from steerloop.kernels.nf4 import NF4
from steerloop.kernels.weights import load_weights
from steerloop.model import Model, load
from steerloop.sample import sample

MB = 2**20


def resident() -> dict[str, float]:
    """Resident memory of this process, MB."""
    lines = dict(x.split(":", 1) for x in Path("/proc/self/status").read_text().splitlines())
    rss, anon = (int(lines[x].split()[0]) / 1024 for x in ("VmRSS", "RssAnon"))
    return {"rss": rss, "anon": anon}


@contextmanager
def watched(cuda: bool) -> Iterator[dict[str, float]]:
    """Fills in seconds, and the peaks over what was resident before, MB."""
    before, peak, done = resident(), resident(), threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak.update({k: max(peak[k], v) for k, v in resident().items()})

    thread, found, start = threading.Thread(target=watch), {}, time.perf_counter()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    thread.start()
    try:
        yield found
    finally:
        if cuda:
            torch.cuda.synchronize()
            found["cuda"] = torch.cuda.max_memory_allocated() / MB
        found["seconds"] = time.perf_counter() - start
        done.set()
        thread.join()
        found.update({k: peak[k] - before[k] for k in peak})


def weight_bytes(model: Model) -> float:
    """MB of the base as it is held: packed codes and scales, and what stays dense."""
    packed = [m for m in model.hf.modules() if isinstance(m, NF4)]
    states = [x for m in packed for x in (m.packed, m.state.absmax, m.state.state2.absmax)]
    stack = {id(p) for x in model.layers.values() for p in (x.live_A, x.live_B)}
    dense = {id(p): p for p in model.hf.parameters() if id(p) not in stack}
    return sum(x.nbytes for x in [*states, *dense.values()]) / MB


def run(folder: Path, cfg: Config, rows: int, tokens: int) -> dict[str, Any]:
    """Figures of loading `folder`, of one optimiser step on cfg.batch × cfg.accumulate completions
    of `tokens` tokens, and of `rows` × `tokens` sampled tokens."""
    cuda = cfg.device == "cuda"
    with watched(cuda) as weights:
        load_weights(cfg.model, cfg.dtype, cfg.attn, cfg.quant, torch.device(cfg.device))
    with watched(cuda) as wrapped:
        model = load(cfg)
    shards = [x.stat().st_size / MB for x in folder.glob("*.safetensors")]
    found = {"weights": weights, "weights_and_stack": wrapped, "base_mb": weight_bytes(model),
             "files_mb": sum(shards), "largest_shard_mb": max(shards)}
    rng = Random(0)

    def texts(count: int, length: int) -> list[list[int]]:
        return [[rng.randrange(6, 250) for _ in range(length)] for _ in range(count)]

    def heal() -> None:
        lora.open_round(model.layers, model.gates, 0)
        prompts, ends = texts(cfg.batch * cfg.accumulate, 64), texts(cfg.batch * cfg.accumulate,
                                                                     tokens)
        with torch.no_grad(), model.gates(model.gates.before(0)):
            refs = [x for batch in model.batches((prompts, ends, [0.0] * len(ends)), cfg.batch)
                    for x in batch.split(model.hidden(batch))]
        rows = list(zip(prompts, ends, refs, strict=True))
        step_loss(model, rows, Barrier(cfg.barrier, cfg.agg, cfg.lam, float(cfg.tau)), cfg.batch)

    def decode() -> None:
        table = pl.DataFrame({"prompt_ids": texts(rows, 64), "prompt_id": range(rows)})
        table = table.with_columns(dose=0.0, copy=0)
        found["tokens"] = sample(model, table, {}, cfg, "bench", tokens, stops=False)[
            "completion_ids"].list.len().sum()

    parts: dict[str, Callable[[], None]] = {"sample": decode, "heal": heal}
    for name, part in parts.items():
        with watched(cuda) as found[name]:
            part()
    grads = [p.grad for x in model.layers.values() for p in (x.live_A, x.live_B)]
    found["gradient"] = float(torch.stack([g.norm() for g in grads if g is not None]).norm())
    return found
