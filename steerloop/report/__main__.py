"""`python -m steerloop.report [--single-file] [RUN ...] [--with SCORE ...]`

Without a run: the ledger of all runs. With one: its pages and verdicts anew, and its tables. With
several: each against the first. --single-file puts the chart script into the pages, to share them.
--with puts folders of `python -m steerloop.score` on the map and into the table of a run.
"""

import sys
from pathlib import Path

from steerloop import UserError
from steerloop.report import finish, ledger_table, run_table
from steerloop.report.compare import NAMES, compare_runs
from steerloop.report.pages import write_pages
from steerloop.report.run import events, scored_elsewhere
from steerloop.runfolder import layout
from steerloop.runfolder.files import check_complete, ending, read_document, verify

SINGLE, WITH = "--single-file", "--with"


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
    if healed(run):
        finish(run, single, bool(ending(run)))
    if scores or not healed(run):
        write_pages(run, single=single, beside=scored_elsewhere(run, scores))


def main(argv: list[str]) -> None:
    """Exits with one line when a named folder is not a run, or two cannot be compared."""
    if {"-h", "--help"} & set(argv):
        print(__doc__)
        return
    at = argv.index(WITH) if WITH in argv else len(argv)
    runs, scores = ([Path(x) for x in part if x not in (SINGLE, WITH)]
                    for part in (argv[:at], argv[at:]))
    try:
        if not runs:
            print(ledger_table(Path("runs")))
            return
        if len(runs) > len(NAMES):
            raise UserError(f"{len(runs)} runs: {len(NAMES)} can be compared at a time")
        for run in runs + scores:
            if not (run / layout.EVENTS).is_file():
                raise UserError(f"{run} is not a run folder (no {layout.EVENTS} in it); if it lost "
                                f"that, `python -m steerloop.train --resume {run}` makes it anew")
            read_document(run)
        for run in runs:
            if len(runs) > 1 and not healed(run):
                raise UserError(f"{run} has no healed round: it cannot be compared")
            rebuild(run, SINGLE in argv, scores)
        if len(runs) > 1:
            print(compare_runs(runs))
        else:
            print(f"{runs[0]}\n{run_table(runs[0])}\n\npages: {runs[0] / layout.REPORT}")
    except UserError as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    main(sys.argv[1:])
