"""`python -m steerloop.sweep [NAME]`: run the points that are missing, two processes side by side,
and write the tables of all sweeps; without a name, only the tables."""

import multiprocessing
import os
import signal
from argparse import Namespace
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"  # read at its import: two processes tear bars

from loguru import logger

from steerloop.cli.entry import command
from steerloop.cli.knobs import SEEDS
from steerloop.cli.options import Parser, filled, number, path
from steerloop.sweep.arms import REGIMES, SWEEPS
from steerloop.sweep.page import write_results
from steerloop.sweep.points import Group, run

POINTS, RESULTS = Path("docs/results"), Path("docs/results.md")


def parse(argv: list[str]) -> Namespace:
    """Command line → options."""
    parser = Parser(prog="python -m steerloop.sweep",
                    description="Run what a sweep lacks; write its tables.")
    add = parser.add_argument
    add("sweep", nargs="?", choices=SWEEPS, help="none: only write the tables")
    add("--models", nargs="+", type=filled, default=["embedded"],
        help="embedded, or directories of models of that kind; of real: published ones")
    add("--seeds", nargs="+", type=number(int, 0, SEEDS), default=list(range(5)), help="loop seeds")
    add("--regimes", nargs="+", choices=REGIMES, help="those of the sweep if none")
    add("--arms", nargs="+", type=filled, help="by name; all of the sweep if none")
    add("--split", choices=["dev", "test"], default="test")
    add("--processes", type=number(int, 1, 256), default=2, help="side by side, one thread each")
    add("--points", type=path, default=POINTS, help="folder of the rows")
    add("--out", type=path, default=RESULTS, help="file of the tables")
    return parser.parse_args(argv)


def sweep(args: Namespace) -> None:
    """Run a sweep. What it has is kept when it is stopped; the same command goes on."""
    args.points.mkdir(parents=True, exist_ok=True)
    groups = [Group(args.sweep, model, args.split, regime, seed, args.points, args.arms)
              for model in args.models for seed in args.seeds
              for regime in (SWEEPS[args.sweep].regimes if args.sweep else ())
              if regime in (args.regimes or REGIMES)]
    for group in groups:
        group.check()
    left = write_results(args.points, args.out)  # a page that cannot be filled says so now
    quiet = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C comes to all: this process ends the others
    with multiprocessing.get_context("spawn").Pool(
            args.processes, signal.signal, quiet, maxtasksperchild=1) as pool:
        for _ in pool.imap_unordered(run, groups, chunksize=1):
            left = write_results(args.points, args.out)
    for name, measures in left.items():
        logger.warning(f"{args.out} has no place for {name} ({', '.join(measures)}): see its end, "
                       "'Not placed yet'")


def main(argv: list[str] | None = None) -> None:
    """Command line entry: one clear line and a non-zero exit status on bad input."""
    command(parse, sweep, argv)


if __name__ == "__main__":
    main()
