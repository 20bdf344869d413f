"""The server as a process has it: the run in memory, a socket, and what listens there."""

import socket
from argparse import Namespace
from typing import Any

import uvicorn

from steerloop import UserError
from steerloop.export.student import (
    c_star,
    finished_rounds,
    open_student,
    read_gates,
    read_vector,
    rounds_of,
)
from steerloop.kernels.caches import empty_cache, joinable
from steerloop.loading.room import PROMPT
from steerloop.serve.app import Served, application
from steerloop.serve.engine import Engine
from steerloop.serve.protocol import States

LOOPBACK = ("127.0.0.1", "localhost")
LONG = 4096  # tokens of a prompt and its answer, unless --context says otherwise
GRACE = 5  # seconds that answers under way have when the server ends


def open_served(args: Namespace) -> Served:
    """Load the run with all its rounds, and start the thread that answers. Raises UserError."""
    if args.host not in LOOPBACK and not args.key:
        raise UserError(f"--host {args.host} lets others in: give a --key that they have to send")
    if not args.key.isascii():
        raise UserError("--key: letters, digits and signs of ASCII alone, as headers carry them")
    best = rounds_of(args.run, args.round)
    student = open_student(args.run, str(finished_rounds(args.run)), "1", args.device or "",
                           args.model or "", args.force)
    model, cfg = student.model, student.cfg
    try:
        joinable(empty_cache(model.hf))
    except TypeError as e:
        raise UserError(f"{cfg.model}: its rows cannot join a batch one by one ({e}): python -m "
                        "steerloop.chat talks to it") from e
    heard = read_gates(args.gates, best, cfg.rounds)
    takes = getattr(model.hf.config.get_text_config(), "max_position_embeddings", None) or LONG
    context = args.context or min(takes, LONG)
    if context > takes:
        raise UserError(f"--context {context}: this model takes {takes} tokens")
    rows = args.rows or cfg.batch_rows
    counted = PROMPT + cfg.max_new_tokens  # tokens of a row for which memory was counted
    room = rows * context if args.rows else max(rows * counted, context)
    engine = Engine(model, read_vector(args.run, 1, model.device), rows, room, args.waiting)
    engine.start()
    states = States(student, best, heard)
    return Served(engine, states, c_star(args.run, 1), context, args.key)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UserError where the port is taken."""
    try:
        return socket.create_server((host, port), backlog=512)
    except OSError as e:
        raise UserError(f"{host}:{port}: {e.strerror}: another --port, or 0 for any") from e


class Server(uvicorn.Server):
    """One whose engine ends first, so that streams end with a word, and at once."""

    def __init__(self, engine: Engine, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.engine = engine

    def handle_exit(self, *signal: Any) -> None:
        self.engine.end()
        super().handle_exit(*signal)


def server(served: Served, args: Namespace) -> uvicorn.Server:
    """What listens for requests, ready to run."""
    names = [*LOOPBACK] if args.host in LOOPBACK else ["*"]
    return Server(served.engine, uvicorn.Config(
        application(served, names), log_level="warning", lifespan="off", ws="none",
        server_header=False, timeout_graceful_shutdown=GRACE, timeout_keep_alive=30))


def serve(args: Namespace) -> None:
    """Load, listen, and serve until Ctrl-C or SIGTERM."""
    with listening(args.host, args.port) as there:
        served = open_served(args)
        host, port = there.getsockname()[:2]
        print(f"{args.run.name}: {', '.join(served.states.rounds)} · http://{host}:{port} · "
              f"{served.engine.most} rows a batch, {served.context} tokens · Ctrl-C ends",
              flush=True)
        try:
            server(served, args).run(sockets=[there])
        finally:
            served.engine.end()
            served.engine.join(GRACE)
