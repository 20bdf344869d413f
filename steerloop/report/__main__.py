"""`python -m steerloop.report [RUN ...]`: tables of the named runs; without any, the ledger."""

import sys
from pathlib import Path

from steerloop.report import finish, ledger_table, run_table
from steerloop.report.run import events


def healed(run: Path) -> bool:
    """Whether a run came far enough to be judged."""
    return (run / "planted.parquet").is_file() and any(
        e.get("state") == "healed" for e in events(run))


def main(argv: list[str]) -> None:
    """Write summary.json and gates.md anew, also of a run that was cut short after a round, and
    print the tables. Exits with one line when a named folder is not a run."""
    if not argv:
        print(ledger_table(Path("runs")))
    for name in argv:
        if not (Path(name) / "events.jsonl").is_file():
            sys.exit(f"error: {name} is not a run folder (no events.jsonl in it)")
        if healed(Path(name)):
            finish(Path(name))
        print(f"{name}\n{run_table(Path(name))}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
