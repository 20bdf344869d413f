"""`python -m steerloop.report [--single-file] [RUN ...]`

Without a run: the ledger of all runs. With one: its pages and verdicts anew, and its tables. With
several: each against the first. --single-file puts the chart script into the pages, to share them.
"""

import sys
from pathlib import Path

from steerloop import UserError
from steerloop.kernels.files import ending, verify
from steerloop.report import finish, ledger_table, run_table
from steerloop.report.compare import NAMES, compare_runs
from steerloop.report.pages import write_pages
from steerloop.report.run import events

SINGLE = "--single-file"


def healed(run: Path) -> bool:
    """Whether a run came far enough to be judged."""
    return (run / "planted.parquet").is_file() and any(
        e.get("state") == "healed" for e in events(run))


def rebuild(run: Path, single: bool) -> None:
    """Write summary.json, gates.md and the pages of a run anew, also where it was cut short.

    Raises UserError naming a file that is damaged.
    """
    verify(run)
    if healed(run):
        finish(run, single, bool(ending(run)))
    elif any(e["stage"] == "evaluate" for e in events(run)):
        write_pages(run, single=single)
    else:
        raise UserError(f"{run} has measured nothing yet: there is nothing to show")


def main(argv: list[str]) -> None:
    """Exits with one line when a named folder is not a run, or two cannot be compared."""
    runs = [Path(x) for x in argv if x != SINGLE]
    if not runs:
        print(ledger_table(Path("runs")))
        return
    try:
        if len(runs) > len(NAMES):
            raise UserError(f"{len(runs)} runs: {len(NAMES)} can be compared at a time")
        for run in runs:
            if not (run / "events.jsonl").is_file():
                raise UserError(f"{run} is not a run folder (no events.jsonl in it)")
            if len(runs) > 1 and not healed(run):
                raise UserError(f"{run} has no healed round: it cannot be compared")
            rebuild(run, SINGLE in argv)
        if len(runs) > 1:
            print(compare_runs(runs))
        else:
            print(f"{runs[0]}\n{run_table(runs[0])}\n\npages: {runs[0] / 'report.html'}")
    except UserError as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    main(sys.argv[1:])
