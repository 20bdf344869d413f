"""python -m steerloop.score.equal RUN RUN [RUN ...] --at kl|shift [--out FOLDER]

Students of several arms, each beside the first arm's of the same loop seed where the two are as far
from the base (kl), or have moved the trait as far (shift): the gates of the one that went further
are turned down until they are, and it is measured there.

KL is that of student and base per token, nats, on the base's own answers to held-out prompts: the
same text for all arms of a seed. What is measured is kept in FOLDER, so the command goes on where
it was cut off.
"""

import math
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from steerloop import UserError
from steerloop.baselines import Headline, turned
from steerloop.cli.entry import command
from steerloop.cli.options import Parser, path
from steerloop.evaluate import evaluate
from steerloop.export.student import Student, finished_rounds, open_student
from steerloop.kernels.search import meeting
from steerloop.model import Model
from steerloop.report.arms import arms_of, pooled, stacked, steps_between
from steerloop.report.run import axis_of, frames_of, headline_of, last_healed, states
from steerloop.report.text import interval, markdown
from steerloop.report.trait import Frames, level
from steerloop.runfolder import layout
from steerloop.runfolder.files import read_table, write_table
from steerloop.sample import completion_losses
from steerloop.texts.data import read_data

CALLS, CLOSE = 8, 0.02  # of the search for a strength: at most, and share of the way
PARTS = ("eval", "items", "said")  # of a measured state, as `evaluate` returns them
Steps = dict[str, np.ndarray]


def kl_to_base(model: Model, student: Student, run: Path) -> float:
    """Mean KL(model as it stands ‖ base) per token of the base's own answers, nats."""
    answers = frames_of(run, 0, layout.BASE)[2]
    _, kls = completion_losses(model, answers, student.cfg, ref=model.gates.before(0))
    return torch.cat(kls).mean().item()


def ruler(student: Student, at: str) -> Callable[[float], float]:
    """Strength of all gates → how far a student then is: the root of its KL to base, which is
    close to linear, or the headline; nats."""
    run, model, cfg = student.run, student.model, student.cfg
    headline = Headline(headline_of(run), read_data(cfg), cfg)

    def measured(strength: float) -> float:
        with torch.no_grad(), model.gates(turned(model, strength)):
            if at == "kl":
                return math.sqrt(kl_to_base(model, student, run))
            return headline.now(model, {}, 0.0)

    return measured


def end_of(run: Path, at: str) -> float:
    """How far the whole student of a run went, by `ruler`, nats. Raises UserError where no readout
    sees the trait."""
    if at == "kl":
        return ruler(opened(run), at)(1.0)
    if not headline_of(run):
        raise UserError(f"{run} is read by nothing (U0): no shift can be matched, only --at kl")
    return level(headline_of(run), frames_of(run, last_healed(states(run)), layout.HEALED),
                 axis_of(run))


def start_of(run: Path, at: str) -> float:
    """Where the base is, by the same, nats."""
    if at == "kl":
        return 0.0
    return level(headline_of(run), frames_of(run, 0, layout.BASE), axis_of(run))


def opened(run: Path) -> Student:
    """The student after the last round."""
    return open_student(run, str(finished_rounds(run)))


def matched(run: Path, goal: float, at: str, out: Path) -> Frames:
    """A student turned down to `goal` (nats, see `ruler`), measured as every state is; kept in
    `out`."""
    kept = [out / f"{run.name}.{at}-{goal:.6f}.{x}.parquet" for x in PARTS]
    if not all(x.is_file() for x in kept):
        student = opened(run)
        now, model = ruler(student, at), student.model
        start = start_of(run, at)
        strength = meeting(now, start, goal, 1.0, CALLS, CLOSE * (goal - start))
        with torch.no_grad(), model.gates(turned(model, strength)):
            found = evaluate(model, read_data(student.cfg), student.cfg)
        for name, table in zip(kept, found, strict=True):
            write_table(name, table)
    return [read_table(x) for x in kept]


def beside(one: Path, other: Path, at: str, out: Path) -> tuple[float, Steps, Steps]:
    """Where both are equally far: how far (nats, by `ruler`), and what each one's shifts and costs
    are by item, nats."""
    runs, ends = (one, other), [end_of(x, at) for x in (one, other)]
    goal, steps = min(ends), []
    for run, end in zip(runs, ends, strict=True):
        whole = frames_of(run, last_healed(states(run)), layout.HEALED)
        now = whole if end == goal else matched(run, goal, at, out)
        base = frames_of(run, 0, layout.BASE)
        steps.append(steps_between(headline_of(one), now, base, axis_of(one)) | costs(now, base))
    return goal, *steps


def costs(now: Frames, base: Frames) -> Steps:
    """By item, how much less likely the base finds a state's answers, and the state ordinary text,
    than it was: nats per token."""
    logs = [np.log(x[2].sort("prompt_id")["ppl"].to_numpy()) for x in (now, base)]
    plain = [x[1].filter(measure="mundane_nll").sort("item")["value"].to_numpy()
             for x in (now, base)]
    return {"log ppl of its answers": logs[0] - logs[1], "log mundane ppl": plain[0] - plain[1]}


def rows(runs: list[Path], at: str, out: Path) -> Iterator[dict[str, str]]:
    """A row per other arm and measure: its own, the first arm's, and the difference, over seeds and
    items. Raises UserError for arms without a loop seed in common."""
    arms = arms_of(runs)
    first, *others = arms
    for name in others:
        seeds = sorted(arms[first].keys() & arms[name].keys())
        if not seeds:
            raise UserError(f"{first} and {name} have no loop seed in common")
        found = [beside(arms[first][x], arms[name][x], at, out) for x in seeds]
        goals = [x[0] ** 2 if at == "kl" else x[0] - start_of(arms[first][seed], at)
                 for x, seed in zip(found, seeds, strict=True)]
        sides = [[x[i] for x in found] for i in (1, 2)]
        for label in found[0][1]:
            ours, theirs = (stacked(x, label) for x in sides)
            yield {"at equal " + at: f"{math.fsum(goals) / len(goals):.4f}",
                   "measure, nats": label, "seeds": " ".join(map(str, seeds)),
                   first: interval(pooled(ours), "+.3f"), "beside": name,
                   "its own": interval(pooled(theirs), "+.3f"),
                   "difference": interval(pooled(ours - theirs), "+.3f")}


def parse(argv: list[str]) -> Namespace:
    """Command line → options."""
    parser = Parser(prog="python -m steerloop.score.equal", description=__doc__)
    parser.add_argument("runs", nargs="+", type=path, metavar="RUN", help="run folders")
    parser.add_argument("--at", choices=["kl", "shift"], default="kl", help="what is equal")
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
