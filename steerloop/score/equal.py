"""python -m steerloop.score.equal RUN RUN [RUN ...] --at kl|shift [--out FOLDER]

Students of several arms, each beside the first arm's of the same loop seed where the two are as far
from the base (kl), or have moved the trait as far (shift): the gates of the one that went further
are turned down until they are, and it is measured there.

KL is that of student and base per token, nats, on the base's own answers to held-out prompts: the
same text for all arms of a seed. What is measured is kept in FOLDER, so the command goes on where
it was cut off.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from loguru import logger

from steerloop import UserError
from steerloop.baselines import Headline, turned
from steerloop.cli.entry import command
from steerloop.cli.options import Parser, path
from steerloop.evaluate import evaluate
from steerloop.export.student import Student, finished_rounds, open_student
from steerloop.kernels.search import meeting
from steerloop.report.arms import arms_of, costs, pooled, read_by, stacked, steps_between
from steerloop.report.run import axis_of, frames_of, last_healed, states
from steerloop.report.text import interval, markdown
from steerloop.report.trait import Frames, level
from steerloop.runfolder import layout
from steerloop.runfolder.files import read_table, sha256, write_table
from steerloop.runfolder.inputs import compared
from steerloop.sweep.equal import KL, ruler
from steerloop.texts.data import FILES, read_data

CALLS, CLOSE = 8, 0.02  # of the search for a strength: at most, and share of the way
PARTS = ("eval", "items", "said")  # of a measured state, as `evaluate` returns them
Steps = dict[str, np.ndarray]


def strengths(student: Student, by: str) -> Callable[[float], float]:
    """The `ruler` of a student: strength of all gates → how far it then is, nats."""
    headline = Headline(by, read_data(student.cfg), student.cfg)
    return ruler(student.model, headline, frames_of(student.run, 0, layout.BASE)[2], by)


def start_of(run: Path, by: str) -> float:
    """Where the base is, by `ruler`, nats."""
    return 0.0 if by == KL else level(by, frames_of(run, 0, layout.BASE), axis_of(run))


def end_of(run: Path, by: str) -> float:
    """And where the student, nats."""
    return strengths(opened(run), by)(1.0) if by == KL else level(by, healed(run), axis_of(run))


def healed(run: Path) -> Frames:
    """The student after the last round, as it was measured."""
    return frames_of(run, last_healed(states(run)), layout.HEALED)


def opened(run: Path) -> Student:
    """The same in memory. Raises UserError where its texts are not those of the run any more."""
    student = open_student(run, str(finished_rounds(run)))
    compared(run, student.cfg, list(FILES), force=False)
    return student


def kept_at(run: Path, goal: float, by: str, out: Path) -> list[Path]:
    """Where the tables are of the student of a run, whatever its folder is called, turned down to
    `goal`, nats."""
    who = sha256(layout.adapter(run, finished_rounds(run) - 1))[:12]
    return [out / f"{run.name}.{who}.{by}-{goal:.6f}.{x}.parquet" for x in PARTS]


def matched(run: Path, goal: float, by: str, out: Path) -> Frames:
    """A student turned down to `goal` (nats, see `ruler`), measured as every state is; kept in
    `out`."""
    kept = kept_at(run, goal, by, out)
    if not all(x.is_file() for x in kept):
        student, start = opened(run), start_of(run, by)
        now, model = strengths(student, by), student.model
        strength = meeting(now, start, goal, 1.0, CALLS, CLOSE * (goal - start))
        with torch.no_grad(), model.gates(turned(model, strength)):
            found = evaluate(model, read_data(student.cfg), student.cfg)
        for name, table in zip(kept, found, strict=True):
            write_table(name, table)
    return [read_table(x) for x in kept]


def beside(one: Path, other: Path, at: str, out: Path) -> tuple[float, Steps, Steps] | None:
    """Where both are equally far: how far from the base (nats, by `ruler`), and what each one's
    shifts and costs are by item, nats. None where one of them did not come away from the base."""
    readout, axis = read_by([one, other])
    by = KL if at == KL else readout
    runs, ends = (one, other), [end_of(x, by) for x in (one, other)]
    goal, start, steps = min(ends), start_of(one, by), []
    if goal <= start:
        return None
    for run, end in zip(runs, ends, strict=True):
        now = healed(run) if end == goal else matched(run, goal, by, out)
        base = frames_of(run, 0, layout.BASE)
        steps.append(steps_between(readout, now, base, axis) | costs(now, base))
    return goal - start, *steps


def rows(runs: list[Path], at: str, out: Path) -> Iterator[dict[str, str]]:
    """A row per other arm and measure: the first arm's, its own, and the difference, over seeds and
    items. Raises UserError for arms without a loop seed in common."""
    arms = arms_of(runs)
    first, *others = arms
    for name in others:
        seeds = sorted(arms[first].keys() & arms[name].keys())
        if not seeds:
            raise UserError(f"{first} and {name} have no loop seed in common")
        pairs = {x: beside(arms[first][x], arms[name][x], at, out) for x in seeds}
        found = {x: pair for x, pair in pairs.items() if pair}
        told = {"at equal " + at: "no match", "beside": name, "seeds": " ".join(map(str, found))}
        if left := " ".join(str(x) for x in seeds if x not in found):
            logger.warning(f"{first} beside {name}, seed {left}: one of the two did not move "
                           "towards the trait, so there is no equal shift")
        if not found:
            yield told
            continue
        far, ours, theirs = zip(*found.values(), strict=True)
        told["at equal " + at] = f"{fmean(x**2 if at == KL else x for x in far):.4f}"
        for label in ours[0]:
            mine, its = (stacked(list(x), label) for x in (ours, theirs))
            yield told | {"measure, nats": label, first: interval(pooled(mine), "+.3f"),
                          "its own": interval(pooled(its), "+.3f"),
                          "difference": interval(pooled(mine - its), "+.3f")}


def parse(argv: list[str]) -> Namespace:
    """Command line → options."""
    parser = Parser(prog="python -m steerloop.score.equal", description=__doc__)
    parser.add_argument("runs", nargs="+", type=path, metavar="RUN", help="run folders")
    parser.add_argument("--at", choices=[KL, "shift"], default=KL, help="what is equal")
    parser.add_argument("--out", type=path, default=Path("runs/equal"), help="what is kept")
    args = parser.parse_args(argv)
    if len(args.runs) < 2:
        parser.error("two runs or more, of different arms")
    return args


def show(args: Namespace) -> None:
    """Print the table."""
    print(markdown(list(rows(args.runs, args.at, args.out))))


def main(argv: list[str] | None = None) -> None:
    """Command line entry: one clear line and a non-zero exit status on bad input."""
    command(parse, show, argv)


if __name__ == "__main__":
    main()
