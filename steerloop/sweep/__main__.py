"""`python -m steerloop.sweep [NAME]`: run the points that are missing, two processes side by side
or on a cluster, and write the tables of all sweeps; without a name, only the tables."""

import multiprocessing
import os
import re
import signal
from argparse import ArgumentTypeError, Namespace
from collections.abc import Iterator
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"  # read at its import: two processes tear bars

from loguru import logger

from steerloop import UserError
from steerloop.cli.entry import command
from steerloop.cli.knobs import SEEDS
from steerloop.cli.options import Parser, filled, number, path
from steerloop.sweep.arms import REGIMES, SWEEPS
from steerloop.sweep.on_ray import Asked, drive
from steerloop.sweep.page import write_results
from steerloop.sweep.points import Group, rows_of, run

POINTS, RESULTS = Path("docs/results"), Path("docs/results.md")


def share(text: str) -> tuple[int, int]:
    """The type of an option that takes K/N, the K-th of N shares, counted from 1."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    k, n = map(int, found.groups()) if found else (0, 0)
    if not 1 <= k <= n:
        raise ArgumentTypeError(f"takes K/N, the K-th of N shares, such as 1/8, not {text!r}")
    return k, n


def parse(argv: list[str]) -> Namespace:
    """Command line → options."""
    parser = Parser(prog="python -m steerloop.sweep",
                    description="Run what a sweep lacks; write its tables.")
    add = parser.add_argument
    add("sweep", nargs="?", choices=SWEEPS, help="none: only write the tables")
    add("--models", nargs="+", type=filled, default=["embedded"],
        help="embedded, directories, short names or hub ids; real, nf4 and held take published "
        "ones alone")
    add("--seeds", nargs="+", type=number(int, 0, SEEDS), default=list(range(5)), help="loop seeds")
    add("--regimes", nargs="+", choices=REGIMES, help="those of the sweep if none")
    add("--arms", nargs="+", type=filled, help="by name; all of the sweep if none")
    add("--split", choices=["dev", "test"], default="test")
    add("--processes", type=number(int, 1, 256), default=2, help="side by side, without --on")
    add("--shard", type=share, metavar="K/N", help="of the groups (an arm's model, regime and seed)"
        " only every N-th from the K-th on, and no tables: for the jobs of an array")
    add("--on", choices=["ray"], help="groups become tasks of a Ray cluster, whose machines all "
        "need this version of steerloop, and the models under the names given here: in folders "
        "that all of them see, or by short name")
    add("--address", type=filled, help="of that cluster: HOST, HOST:PORT or auto; if left out, "
        "that of RAY_ADDRESS, else one on this machine, which is started if there is none")
    add("--cpus-per-run", type=number(int, 1, 1024), default=1, help="threads of a group")
    add("--gpus-per-run", type=number(float, 0, 64), default=0.0,
        help="0: on the CPU; more: on cuda, and a task of Ray takes so many, or a share of one")
    add("--points", type=path, default=POINTS, help="folder of the rows")
    add("--out", type=path, default=RESULTS, help="file of the tables")
    args = parser.parse_args(argv)
    if args.on and args.shard:
        parser.error("--shard is for jobs that do not know of each other, --on ray deals by itself:"
                     " give one of them")
    if args.address and not args.on:
        parser.error("--address is that of a Ray cluster: give --on ray")
    if "://" in (args.address or ""):
        parser.error(f"--address takes HOST, HOST:PORT or auto, not {args.address!r}: start the "
                     "sweep on a machine of the cluster, or by `ray job submit`")
    if args.gpus_per_run > 1 and args.gpus_per_run % 1:
        parser.error("--gpus-per-run is a share of one GPU, or a whole number of them")
    return args


def groups_of(args: Namespace) -> list[Group]:
    """What is to be run: a group for each model, seed and regime, those of the shard.

    Raises UserError for what cannot be run, and for two models of one name, which is all that rows
    know of them beside their weights."""
    regimes = SWEEPS[args.sweep].regimes if args.sweep else ()
    device = "cuda" if args.gpus_per_run else "cpu"
    models = list(dict.fromkeys(args.models))
    groups = [Group(args.sweep, model, args.split, regime, seed, args.points, args.arms, device,
                    args.cpus_per_run)
              for model in models for seed in dict.fromkeys(args.seeds)
              for regime in regimes if regime in (args.regimes or REGIMES)]
    names = [Path(x).name for x in models]
    if twice := {x for x in names if names.count(x) > 1}:
        raise UserError(f"--models has two of the name {', '.join(twice)}: give their folders "
                        "names of their own")
    for group in groups:
        group.check()
    k, n = args.shard or (1, 1)
    return groups[k - 1 :: n]


def side_by_side(groups: list[Group], processes: int) -> Iterator[None]:
    """Run groups in processes of this machine; yields whenever one of them is done."""
    quiet = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C comes to all: this process ends the others
    with multiprocessing.get_context("spawn").Pool(
            processes, signal.signal, quiet, maxtasksperchild=1) as pool:
        yield from pool.imap_unordered(run, groups, chunksize=1)


def sweep(args: Namespace) -> None:
    """Run a sweep. What it has is kept when it is stopped; the same command goes on."""
    args.points.mkdir(parents=True, exist_ok=True)
    groups = groups_of(args)
    if args.shard:  # all of them would write the same page
        for _ in side_by_side(groups, args.processes):
            pass
        logger.info("shard {}/{} is done; `python -m steerloop.sweep --points {}` writes the "
                    "tables when all are", *args.shard, args.points)
        return
    left = write_results(args.points, args.out)  # a page that cannot be filled says so now
    asked = Asked(args.address or "", args.cpus_per_run, args.gpus_per_run)
    for _ in drive(groups, rows_of, asked) if args.on else side_by_side(groups, args.processes):
        left = write_results(args.points, args.out)
    for name, measures in left.items():
        logger.warning(f"{args.out} has no place for {name} ({', '.join(measures)}): see its end, "
                       "'Not placed yet'")


def main(argv: list[str] | None = None) -> None:
    """Command line entry: one clear line and a non-zero exit status on bad input."""
    command(parse, sweep, argv)


if __name__ == "__main__":
    main()
