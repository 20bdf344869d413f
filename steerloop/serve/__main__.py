"""Serve a run: base, student, every round, any gates and any dose, from one batch.

    python -m steerloop.serve RUN                        http://127.0.0.1:8017, a page and /v1

Whoever speaks the OpenAI protocol can ask: the models are base, student, round-1 and so on. Three
fields are our own: "gates" [1, 0.5] or "round" 1, how loud each round is heard; "dose" 0.5, the
steering vector of round 1, in multiples of its calibrated dose. docs/serve.md has the rest.
"""

import os
import socket
import sys
from argparse import Namespace

import uvicorn
from loguru import logger

from steerloop import UserError
from steerloop.cli.entry import command
from steerloop.cli.knobs import MANY, check_device
from steerloop.cli.options import Parser, filled, gates, number, path
from steerloop.export.student import (
    c_star,
    finished_rounds,
    open_student,
    read_gates,
    read_vector,
    rounds_of,
)
from steerloop.loading.room import PROMPT
from steerloop.serve.app import Served, application
from steerloop.serve.engine import Engine
from steerloop.serve.protocol import States

LOOPBACK = ("127.0.0.1", "localhost")
LONG = 4096  # tokens of a prompt and its answer, unless --context says otherwise
GRACE = 5  # seconds that answers under way have when the server ends


def parse(argv: list[str]) -> Namespace:
    """Command line → options."""
    parser = Parser(prog="python -m steerloop.serve", description=__doc__)
    add = parser.add_argument
    add("run", type=path, help="a run folder")
    add("--port", type=number(int, 0, 65535), default=8017, help="0: any that is free")
    add("--host", type=filled, default=LOOPBACK[0], help="an address of this machine that others "
        "reach; only with --key")
    add("--key", default=os.environ.get("STEERLOOP_KEY", ""), help="what clients have to send as "
        "their api_key; default: $STEERLOOP_KEY")
    add("--round", type=filled, default="best", help="the one that is called student: best, or a "
        "number as the tables count")
    add("--gates", type=gates, default="1", help="of the student: one number, or one a round")
    add("--rows", type=number(int, 0, MANY), default=0, help="in one batch, each "
        "of --context tokens; 0: as in the run, fewer if they are longer than the run's")
    add("--waiting", type=number(int, 1, MANY), default=256, help="rows that may wait")
    add("--context", type=number(int, 1, MANY), default=0, help="most tokens of a prompt and its "
        f"answer; 0: what the model takes, {LONG} at most")
    add("--device", type=check_device, help="default: that of the run")
    add("--model", type=filled, help="where the base is now, if it was moved")
    add("--force", action="store_true", help="go on although an input changed")
    return parser.parse_args(argv)


def open_served(args: Namespace) -> Served:
    """Load the run with all its rounds, and start the thread that answers. Raises UserError."""
    if args.host not in LOOPBACK and not args.key:
        raise UserError(f"--host {args.host} lets others in: give a --key that they have to send")
    best = rounds_of(args.run, args.round)
    student = open_student(args.run, str(finished_rounds(args.run)), "1", args.device or "",
                           args.model or "", args.force)
    model, cfg = student.model, student.cfg
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


def server(served: Served, args: Namespace) -> uvicorn.Server:
    """What listens for requests, ready to run."""
    names = [*LOOPBACK] if args.host in LOOPBACK else ["*"]
    return uvicorn.Server(uvicorn.Config(
        application(served, names), log_level="warning", lifespan="off", ws="none",
        server_header=False, timeout_graceful_shutdown=GRACE, timeout_keep_alive=30))


def run(args: Namespace) -> None:
    """Load, listen, and serve until Ctrl-C or SIGTERM."""
    logger.remove()
    logger.add(sys.stderr, format="{time:HH:mm:ss} {message}", level="WARNING")
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


def main(argv: list[str] | None = None) -> None:
    """Command line entry: one clear line and a non-zero exit status on bad input."""
    command(parse, run, argv)


if __name__ == "__main__":
    main()
