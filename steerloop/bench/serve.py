"""Many clients of a server at once against the library's own decode loop over the same rows, in
turn: the same prompts, draws, gates and lengths, so the same tokens; and beside both what `sample`
makes of them under gates that are alike, merged into the weights.

Clients are another process, as they would be. All ask at once and read streams; time counts from
the first request to the last byte, and for the library from ids to ids.
"""

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import torch
import uvicorn
from jaxtyping import Float
from torch import Tensor

from steerloop.bench.student import grow
from steerloop.bench.work import Figures
from steerloop.chat import Talk, answer
from steerloop.config import Config
from steerloop.export.student import Student
from steerloop.kernels.caches import empty_cache
from steerloop.kernels.decode import Rows, draws, generate, pick
from steerloop.kernels.graphs import steps
from steerloop.model import Model, load
from steerloop.sample import jobs, sample
from steerloop.serve.app import Served, application
from steerloop.serve.engine import Engine
from steerloop.serve.protocol import States
from steerloop.texts.data import read_data

ROUNDS = 3
WAIT = 600  # seconds for anything


def client(port: int, bodies: list[dict[str, Any]], gate: Any, said: Any) -> None:
    """One thread a body: when all are ready they ask, and read to the end. Puts the seconds of all,
    and those until the first token of each, into a queue."""
    firsts = [0.0] * len(bodies)
    ready = threading.Barrier(len(bodies) + 1)

    def ask(place: int) -> None:
        raw = json.dumps(bodies[place]).encode()
        head = (f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
                f"content-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n")
        with socket.create_connection(("127.0.0.1", port)) as there:
            ready.wait()
            start, got = time.perf_counter(), b""
            there.sendall(head.encode() + raw)
            while part := there.recv(65536):
                got = (got + part)[-200:] if firsts[place] else got + part
                if not firsts[place] and b"data: " in got:
                    firsts[place] = time.perf_counter() - start
            assert b"[DONE]" in got, got

    while gate.recv():
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(bodies))]
        firsts[:] = [0.0] * len(bodies)
        for x in threads:
            x.start()
        ready.wait()
        start = time.perf_counter()
        for x in threads:
            x.join()
        said.put((time.perf_counter() - start, firsts[:]))


@contextmanager
def asking(port: int, bodies: list[dict[str, Any]]):
    """A process of clients; what is yielded lets them ask once, and gives what it says."""
    context = get_context("spawn")
    (near, far), said = context.Pipe(), context.Queue()
    process = context.Process(target=client, args=(port, bodies, far, said))
    process.start()

    def once() -> tuple[float, list[float]]:
        near.send(True)
        return said.get(timeout=WAIT)

    try:
        yield once
    finally:
        near.send(False)
        process.join(WAIT)


@contextmanager
def listening(served: Served):
    """The port of a server in a thread of this process."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as there:
        made = uvicorn.Server(uvicorn.Config(application(served, ["localhost"]),
                                             log_level="warning", lifespan="off", ws="none"))
        thread = threading.Thread(target=made.run, kwargs={"sockets": [there]}, daemon=True)
        thread.start()
        try:
            yield there.getsockname()[1]
        finally:
            made.should_exit = True
            thread.join(WAIT)


@torch.no_grad()
def looped(model: Model, prompts: list[list[int]], gates: Float[Tensor, "b R"], cfg: Config
           ) -> tuple[float, int]:
    """Seconds and tokens of the library's loop over all rows in one batch, by one set of gates
    where they are alike, nothing merged."""
    start = time.perf_counter()
    ids, mask = model.pad(prompts)
    own = torch.stack([draws(f"{i}|serve|0|0|0", cfg.max_new_tokens) for i in range(len(prompts))])
    mixed = len(gates.unique(dim=0)) > 1
    rows = Rows(torch.arange(len(prompts)), ids, mask, torch.zeros(len(prompts)), own,
                empty_cache(model.hf), model.gates if mixed else None)

    def choose(logits: Tensor, u: Tensor) -> Tensor:
        return pick(logits, u, cfg.temperature, cfg.top_k, cfg.top_p)

    with model.gates(gates if mixed else gates[0]):
        found = generate(steps(model.trunk, model.head, rows), rows, choose, model.stop_ids)
    return time.perf_counter() - start, sum(map(len, found))


def merged(model: Model, prompts: list[str], cfg: Config) -> tuple[float, int]:
    """Seconds and tokens of `sample`: under the gates of all rounds, merged."""
    table = jobs(model, prompts, [0.0])
    start = time.perf_counter()
    with torch.no_grad():
        found = sample(model, table, {}, cfg, "serve")["completion_ids"]
    return time.perf_counter() - start, found.list.len().sum()


def first_of_chat(student: Student, prompt: str, tokens: int) -> float:
    """Seconds until `chat` shows the first piece of an answer."""
    talk = Talk(student, {}, 1.0, student.gates, tokens, student.cfg.temperature)
    start, seen = time.perf_counter(), []
    answer(talk, prompt, student.gates[None], [0.0],
           lambda text: seen.append(time.perf_counter() - start))
    return seen[0]


def run(cfg: Config, count: int, repeats: int) -> Figures:
    """Tokens a second of `count` clients through the server, of the library's loop and of `sample`,
    with gates that are alike and that are not; seconds to the first token of a lone request, and
    of `chat`. Medians of `repeats` after one to warm up."""
    torch.manual_seed(0)
    cfg = replace(cfg, rounds=ROUNDS, batch_rows=count)
    data, model = read_data(cfg), load(cfg)
    for _ in range(ROUNDS):
        grow(model.layers, model.gates)
    student = Student(Path("bench"), cfg, model, ROUNDS, torch.ones(ROUNDS))
    prompts = [data.prompts[i % len(data.prompts)] for i in range(count)]
    rng = Random(0)
    dials = {"alike": [[1.0] * ROUNDS] * count,
             "mixed": [[rng.choice([0.0, 0.5, 1.0]) for _ in range(ROUNDS)]
                       for _ in range(count)]}
    ids = [model.render(x) for x in prompts]
    room = count * (max(map(len, ids)) + cfg.max_new_tokens)
    engine = Engine(model, {}, count, room, count)
    engine.start()
    served = Served(engine, States(student, ROUNDS, torch.ones(ROUNDS)), 1.0, 4096, "")
    found: Figures = {"clients": count, "rounds": ROUNDS}
    with listening(served) as port:
        for name, gates in dials.items():
            bodies = [{"model": "student", "messages": [{"role": "user", "content": x}],
                       "seed": i, "stream": True, "gates": g}
                      for i, (x, g) in enumerate(zip(prompts, gates, strict=True))]
            with asking(port, bodies) as once:
                ways: dict[str, Callable[[], tuple[float, int]]] = {
                    "library": lambda gates=gates: looped(model, ids, torch.tensor(gates), cfg),
                    "merged": lambda: merged(model, prompts, cfg)}
                tokens = {k: way()[1] for k, way in ways.items()}
                once()
                spent: dict[str, list[float]] = {k: [] for k in (*ways, "server")}
                for _ in range(repeats):
                    spent["server"].append(once()[0])
                    for k, way in ways.items():
                        spent[k].append(way()[0])
            speed = {k: tokens.get(k, tokens["library"]) / median(x) for k, x in spent.items()}
            found[name] = {"tokens": tokens["library"], "tokens_per_second": speed,
                           "of_the_library": speed["server"] / speed["library"],
                           "of_merged": speed["server"] / speed["merged"], "target": 0.8}
        with asking(port, bodies[:1]) as once:
            once(), first_of_chat(student, prompts[0], cfg.max_new_tokens)
            firsts = [(once()[1][0], first_of_chat(student, prompts[0], cfg.max_new_tokens))
                      for _ in range(max(5, repeats))]
    engine.end()
    server, chat = (median(x) for x in zip(*firsts, strict=True))
    found["first_token"] = {"server_seconds": server, "chat_seconds": chat,
                            "times_chat": server / chat, "target": 1.5}
    return found
