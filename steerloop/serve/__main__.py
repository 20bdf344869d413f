"""Serve a run: base, student, every round, any gates and any dose, from one batch.

    python -m steerloop.serve RUN                        http://127.0.0.1:8017, a page and /v1

Whoever speaks the OpenAI protocol can ask: the models are base, student, round-1 and so on. Three
fields are our own: "gates" [1, 0.5] or "round" 1, how loud each round is heard; "dose" 0.5, the
steering vector of round 1, in multiples of its calibrated dose. docs/serve.md has the rest.
"""

import os
import sys
from argparse import Namespace

from loguru import logger

from steerloop.cli.entry import command
from steerloop.cli.knobs import MANY, check_device
from steerloop.cli.options import Parser, filled, gates, number, path
from steerloop.export.extras import extra


def parse(argv: list[str]) -> Namespace:
    """Command line → options."""
    parser = Parser(prog="python -m steerloop.serve", description=__doc__)
    add = parser.add_argument
    add("run", type=path, help="a run folder")
    add("--port", type=number(int, 0, 65535), default=8017, help="0: any that is free")
    add("--host", type=filled, default="127.0.0.1", help="an address of this machine that others "
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
        "answer; 0: what the model takes, 4096 at most")
    add("--device", type=check_device, help="default: that of the run")
    add("--model", type=filled, help="where the base is now, if it was moved")
    add("--force", action="store_true", help="go on although an input changed")
    return parser.parse_args(argv)


def run(args: Namespace) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises UserError where what it takes is not installed."""
    logger.remove()
    logger.add(sys.stderr, format="{time:HH:mm:ss} {message}", level="WARNING", diagnose=False)
    for name in ("starlette", "uvicorn"):
        extra(name, "serve")
    from steerloop.serve.process import serve  # which takes them

    serve(args)


def main(argv: list[str] | None = None) -> None:
    """Command line entry: one clear line and a non-zero exit status on bad input."""
    command(parse, run, argv)


if __name__ == "__main__":
    main()
