"""`python -m steerloop.sweep [NAME]`: run the points that are missing, two processes side by side,
and write the tables of all sweeps; without a name, only the tables."""

import argparse
import multiprocessing
import os
import signal
import sys
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"  # read at its import: two processes tear bars

from loguru import logger

from steerloop import UserError
from steerloop.sweep.arms import REGIMES, SWEEPS
from steerloop.sweep.page import write_results
from steerloop.sweep.points import Group, run

POINTS, RESULTS = Path("docs/results"), Path("docs/results.md")


def main() -> None:
    """Run a sweep. What it has is kept when it is stopped; the same command goes on."""
    parser = argparse.ArgumentParser(prog="python -m steerloop.sweep", allow_abbrev=False,
                                     description="Run what a sweep lacks; write its tables.")
    parser.add_argument("sweep", nargs="?", choices=SWEEPS, help="none: only write the tables")
    parser.add_argument("--models", nargs="+", default=["embedded"],
                        help="embedded, or directories of models of that kind")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)), help="loop seeds")
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, help="those of the sweep if none")
    parser.add_argument("--split", choices=["dev", "test"], default="test")
    parser.add_argument("--processes", type=int, default=2, help="side by side, one thread each")
    parser.add_argument("--points", type=Path, default=POINTS, help="folder of the rows")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file of the tables")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the workers end, too
    args.points.mkdir(parents=True, exist_ok=True)
    groups = [Group(args.sweep, model, args.split, regime, seed, args.points)
              for model in args.models for seed in args.seeds
              for regime in (SWEEPS[args.sweep].regimes if args.sweep else ())
              if regime in (args.regimes or REGIMES)]
    try:
        for group in groups:
            group.check()
        left = write_results(args.points, args.out)  # a page that cannot be filled says so now
    except UserError as e:
        parser.error(str(e))
    with multiprocessing.get_context("spawn").Pool(args.processes, maxtasksperchild=1) as pool:
        for _ in pool.imap_unordered(run, groups, chunksize=1):
            left = write_results(args.points, args.out)
    for name, measures in left.items():
        logger.warning(f"{args.out} has no place for {name} ({', '.join(measures)}): see its end, "
                       "'Not placed yet'")


if __name__ == "__main__":
    main()
