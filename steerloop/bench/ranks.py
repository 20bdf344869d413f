"""Two ranks of one thread against one rank of one thread, in turn, on this machine's CPUs; and
beside both what a second core gives at all: two processes that share nothing and do the whole work
each.

Every process loads the model, does each piece of work once to warm up, waits for the others, and
does it again under a clock; of several processes the slowest counts.
"""

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from statistics import median
from time import perf_counter
from typing import Any

import torch

from steerloop.bench.round import ours, shares
from steerloop.bench.work import Figures, vector
from steerloop.config import Config
from steerloop.evaluate import evaluate
from steerloop.heal import heal
from steerloop.healing.fresh import forget
from steerloop.model import Model, load
from steerloop.ranks import joined
from steerloop.sample import jobs, sample
from steerloop.texts.data import Data, read_data

ROWS = 256  # completions that are sampled
LONGEST = 1800  # seconds that a process may take
TARGETS = {"sampling": 1.8, "evaluation": 1.8, "heal": 1.6, "round": 1.4}
MODES = {"one": (1, True), "two": (2, True), "apart": (2, False)}  # processes; of one run
Work = Callable[[], object]


def pieces(model: Model, data: Data, cfg: Config) -> dict[str, Work]:
    """What is timed: `ROWS` completions, an evaluation, a heal of a round's rows, and a round."""
    towards, whole = vector(model, cfg), replace(cfg, batch_rows=ROWS)
    asked = jobs(model, data.prompts, list(cfg.multiples))
    many = asked.sample(ROWS, with_replacement=len(asked) < ROWS, seed=0)
    kept = sample(model, asked.head(cfg.n_keep), {}, cfg, "bench").with_row_index("row")

    def healed() -> None:
        heal(model, kept, cfg, 0)
        forget(model.layers, model.gates)

    return {"sampling": lambda: sample(model, many, towards, whole, "bench"),
            "evaluation": lambda: evaluate(model, data, cfg),
            "heal": healed}


def process(rank: int, count: int, port: int, cfg: Config, names: list[str], gate: Any,
            said: Any) -> None:
    """Of a mode: seconds of each piece of work, put into a queue."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
                   "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    spent = {}
    with joined():
        data, model = read_data(cfg), load(cfg)
        works = pieces(model, data, cfg)
        for name in names:
            if name == "round":
                gate.wait()
                spent[name] = shares(ours(cfg)[0])["seconds"]
                continue
            works[name]()
            gate.wait()
            start = perf_counter()
            works[name]()
            spent[name] = perf_counter() - start
    said.put(spent)


def mode(name: str, cfg: Config, names: list[str]) -> dict[str, float]:
    """Seconds of each piece of work, of the slowest process."""
    processes, one_run = MODES[name]
    context = get_context("spawn")
    gate, said = context.Barrier(processes, timeout=LONGEST), context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [context.Process(target=process, args=(
        *((i, processes) if one_run else (0, 1)), port, cfg, names, gate, said))
        for i in range(processes)]
    for x in started:
        x.start()
    found = [said.get(timeout=LONGEST) for _ in started]
    for x in started:
        x.join()
    return {k: max(x[k] for x in found) for k in names}


def run(cfg: Config, repeats: int, names: list[str]) -> Figures:
    """Each mode `repeats` times, in turn: median seconds by piece of work and mode, how much faster
    two ranks are than one, and how much more two processes that share nothing get done."""
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in MODES}
    for _ in range(repeats):
        for name in MODES:
            seen[name].append(mode(name, cfg, names))
    found = {}
    for name in names:
        seconds = {k: median(x[name] for x in times) for k, times in seen.items()}
        found[name] = {"seconds": seconds, "target": TARGETS[name],
                       "two_ranks_times_faster": seconds["one"] / seconds["two"],
                       "two_apart_get_done": 2 * seconds["one"] / seconds["apart"]}
    return {"rows": ROWS, "work": found}
