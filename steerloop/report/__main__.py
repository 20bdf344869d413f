"""`python -m steerloop.report [--single-file] [RUN ...] [--with SCORE ...]`

Without a run: the ledger of all runs, and their page. With one: its pages and verdicts anew, and
its tables. With several: each against the first; of arms with several loop seeds each, what the
seeds of an arm have in common, and the first arm less every other; and a page of that beside the
first. --single-file puts the chart script into the
pages, to share them.
--with puts folders of `python -m steerloop.score` on the map and into the table of a run.
"""

from argparse import Namespace
from pathlib import Path

from steerloop import UserError
from steerloop.cli.entry import command
from steerloop.cli.options import Parser, path
from steerloop.report import finish, ledger_table, run_table
from steerloop.report.arms import pooled_arms, repeated
from steerloop.report.compare import NAMES, compared
from steerloop.report.pages.comparison import write_comparison
from steerloop.report.pages.folder import write_pages
from steerloop.report.pages.index import write_index
from steerloop.report.pages.site import Status
from steerloop.report.run import events, scored_elsewhere
from steerloop.runfolder import layout
from steerloop.runfolder.files import check_complete, ending, held, read_document, verify


def healed(run: Path) -> bool:
    """Whether a run came far enough to be judged."""
    return layout.planted(run).is_file() and any(
        e.get("state") == "healed" for e in events(run))


def rebuild(run: Path, single: bool, scores: list[Path]) -> None:
    """Write summary.json, verdicts.md and the pages of a run anew, also where it was cut short;
    with what was scored elsewhere on the pages.

    Raises UserError naming a file that is damaged, or a score that cannot be compared.
    """
    verify(run)
    check_complete(run)
    if not any(e["stage"] == "evaluate" for e in events(run)):
        raise UserError(f"{run} has measured nothing yet: there is nothing to show")
    status: Status = "ended" if ending(run) else "running" if held(run) else "cut short"
    if healed(run):
        finish(run, single, status)
    if scores or not healed(run):
        write_pages(run, status, single, beside=scored_elsewhere(run, scores))


def parse(argv: list[str]) -> Namespace:
    """Command line → options. Raises UserError where a named folder is not a run."""
    parser = Parser(prog="python -m steerloop.report", description=__doc__)
    parser.add_argument("runs", nargs="*", type=path, metavar="RUN", help="run folders")
    parser.add_argument("--single-file", action="store_true", help="pages without a second file")
    parser.add_argument("--with", nargs="+", type=path, default=[], dest="scores", metavar="SCORE",
                        help="folders of steerloop.score")
    args = parser.parse_args(argv)
    args.runs = [x if x.name.strip(".") else x.resolve() for x in args.runs]  # known by its name
    if args.scores and not args.runs:
        parser.error("--with needs a RUN before it, to show them beside")
    if len(args.runs) > len(NAMES):
        parser.error(f"{len(args.runs)} runs: {len(NAMES)} can be compared at a time")
    for run in args.runs + args.scores:
        if not (run / layout.EVENTS).is_file():
            raise UserError(f"{run} is not a run folder (no {layout.EVENTS} in it); if it lost "
                            f"that, `python -m steerloop.train --resume {run}` makes it anew")
        read_document(run)
    return args


def show(args: Namespace) -> None:
    """Write the pages, and print the tables. Raises UserError for runs that cannot be compared."""
    if not args.runs:
        print(ledger_table(root := Path("runs")))
        if root.is_dir() and (path := write_index(root)):
            print(f"\npage: {path}")
        return
    for run in args.runs:
        if len(args.runs) > 1 and not healed(run):
            raise UserError(f"{run} has no healed round: it cannot be compared")
        rebuild(run, args.single_file, args.scores)
    if len(args.runs) > 1:
        found = pooled_arms(args.runs) if repeated(args.runs) else compared(args.runs)
        print(f"{found.text}\n\npage: {write_comparison(args.runs, found)}")
    else:
        run = args.runs[0]
        print(f"{run}\n{run_table(run)}\n\npages: {run / layout.REPORT}")
    for root in {x.parent for x in args.runs}:
        write_index(root)


def main(argv: list[str] | None = None) -> None:
    """Command line entry: one clear line and a non-zero exit status on bad input."""
    command(parse, show, argv)


if __name__ == "__main__":
    main()
