"""Our evaluation on any model directory, hub id or PEFT adapter.

python -m steerloop.score google/gemma-3-1b-it               a model as it is
python -m steerloop.score my-adapter                         an adapter against its base
python -m steerloop.score my-checkpoint --base gemma-3-1b-it one model against another
python -m steerloop.score my-adapter --like runs/<folder>    on the items and settings of a run
"""

import argparse
import dataclasses
from pathlib import Path

from steerloop.cli.entry import command
from steerloop.config import Config
from steerloop.export.student import config_of
from steerloop.score import score


def parse(argv: list[str]) -> argparse.Namespace:
    """Command line → options."""
    parser = argparse.ArgumentParser(
        prog="python -m steerloop.score", allow_abbrev=False, description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory, hub id, short name, or PEFT adapter")
    parser.add_argument("--base", default="", help="what to compare with; an adapter names its own")
    parser.add_argument("--like", type=Path, help="a run folder: its data, split, dtype, seed")
    settings = parser.add_argument_group("settings", "default: those of --like, or of a hub model")
    names = ("persona", "vignettes", "mundane", "split", "quant", "dtype", "device", "runs")
    for name in names:
        settings.add_argument(f"--{name}")
    for name in ("every", "think_tokens", "batch_rows", "bootstrap", "seed", "threads"):
        settings.add_argument(f"--{name}", type=int)
    return parser.parse_args(argv)


def config(args: argparse.Namespace) -> Config:
    """The settings of the run named, or of hub models on a dense base; flags win."""
    cfg = config_of(args.like) if args.like else Config(quant="none")
    given = {x.name: getattr(args, x.name, None) for x in dataclasses.fields(Config)}
    taken = {k: v for k, v in given.items() if v is not None and k not in ("model", "tiny")}
    return dataclasses.replace(cfg, **taken)


def run(args: argparse.Namespace) -> None:
    """Score, and say where the folder is. Raises UserError."""
    score(args.model, config(args), args.base)


def main(argv: list[str] | None = None) -> None:
    """Command line entry: one clear line and a non-zero exit status on bad input."""
    command(parse, run, argv)


if __name__ == "__main__":
    main()
