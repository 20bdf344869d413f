"""`python -m steerloop.sweep NAME`: run the points that are missing, two processes side by side."""

import argparse
import multiprocessing
import os
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"  # read at its import: two processes tear bars

from steerloop.sweep.arms import SWEEPS
from steerloop.sweep.points import Group, run

RESULTS = Path("docs/results")


def main() -> None:
    """Run a sweep."""
    parser = argparse.ArgumentParser(prog="python -m steerloop.sweep", allow_abbrev=False,
                                     description="Run what a sweep lacks.")
    parser.add_argument("sweep", choices=SWEEPS)
    parser.add_argument("--models", nargs="+", default=["embedded"], help="names or directories")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)), help="loop seeds")
    parser.add_argument("--split", choices=["dev", "test"], default="test")
    parser.add_argument("--processes", type=int, default=2, help="side by side, one thread each")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the point tables")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    groups = [Group(args.sweep, model, args.split, regime, seed, args.out)
              for model in args.models for seed in args.seeds
              for regime in SWEEPS[args.sweep].regimes]
    with multiprocessing.get_context("spawn").Pool(args.processes, maxtasksperchild=1) as pool:
        for _ in pool.imap_unordered(run, groups, chunksize=1):
            pass


if __name__ == "__main__":
    main()
