"""python -m steerloop.report.published RUN [RUN ...]

The first round of a run beside what the closest earlier prototype (steer-heal-love) reported of its
own, on gemma-3 models: one seed, no intervals, two start tokens before every prompt, other texts.
"""

import math
import re
from argparse import Namespace
from pathlib import Path

from safetensors.numpy import load_file

from steerloop import UserError
from steerloop.cli.entry import command
from steerloop.cli.options import Parser, path
from steerloop.report.run import headline_of, last_by_round, states, word_of
from steerloop.report.text import interval, markdown
from steerloop.runfolder import layout
from steerloop.runfolder.files import read_config

PLAIN, ABSENT = "nll", "not measured"
TOOK = re.compile(r"round 1: .+ in ([\d.]+) s$", re.MULTILINE)


def length(run: Path, c_star: float) -> float:
    """Of the steering vector at a dose, mean over its blocks."""
    blocks = load_file(layout.vector(run, 0)).values()
    return c_star * sum(math.sqrt((x**2).sum()) for x in blocks) / len(blocks)


def figures(run: Path) -> list[tuple[str, str, str]]:
    """Figure, what it is here, what it was there with the size of the model. Raises UserError for a
    run without a healed first round."""
    first = {e["state"]: e for e in states(run) if e["round"] == 0}
    if layout.HEALED not in first:
        raise UserError(f"{run} has no healed first round to compare")
    sample, heal = (last_by_round(run, x)[0] for x in ("sample", layout.HEAL))
    moved = f"{headline_of(run) or word_of(run)}, nats"
    minutes = sum(map(float, TOOK.findall((run / layout.LOG).read_text(encoding="utf-8")))) / 60
    kl = read_config(run)["target_kl"]

    def measure(state: str, name: str) -> str:
        known = first.get(state, {}).get("measures", {})
        return f"{known[name]:.3f}" if name in known else ABSENT

    def shift(state: str) -> str:
        known = first.get(state, {}).get("headline")
        return interval(known, "+.3f") if known else ABSENT

    authority = first[layout.BASE]["measures"].get("authority_nats")
    return [
        (f"length of the vector at c* (p95 KL {kl:g})", f"{length(run, sample['c_star']):.1f}",
         "67.7 (1B)"),
        ("probability of authority, base", ABSENT if authority is None
         else f"{math.exp(authority):.3f}", ".000 (1B)"),
        ("coherence: base", measure(layout.BASE, "coherence"), ".722 (1B), by its own measure"),
        ("coherence: steered at c*", measure(layout.STEERED, "coherence"),
         ".884 (1B)"),
        ("coherence: student", measure(layout.HEALED, "coherence"), ".998 (4B)"),
        ("KL to the reference while healing, nats", f"{heal['operating_kl']:.2f}", "3 (4B)"),
        (f"student's shift ({moved})", shift(layout.HEALED),
         "authority -.17 and -1.61 (4B, two trials)"),
        ("shift of plain distillation", shift(PLAIN), "authority -1.25 and -.78 (4B, the same)"),
        ("minutes of the round", f"{minutes:.1f}", "40 in bf16, 85 in NF4 (4B, 24 GB)"),
    ]


def parse(argv: list[str]) -> Namespace:
    """Command line → options."""
    parser = Parser(prog="python -m steerloop.report.published", description=__doc__)
    parser.add_argument("runs", nargs="+", type=path, metavar="RUN", help="run folders")
    return parser.parse_args(argv)


def show(args: Namespace) -> None:
    """Print the table of every run."""
    for run in args.runs:
        names = ("figure", f"{read_config(run)['model']}, here", "published")
        rows = [dict(zip(names, row, strict=True)) for row in figures(run)]
        print(f"{run}\n\n{markdown(rows)}\n")


def main(argv: list[str] | None = None) -> None:
    """Command line entry: one clear line and a non-zero exit status on bad input."""
    command(parse, show, argv)


if __name__ == "__main__":
    main()
