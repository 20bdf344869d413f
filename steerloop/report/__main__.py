"""`python -m steerloop.report [RUN ...]`: tables of the named runs; without any, the ledger."""

import sys
from pathlib import Path

from steerloop.report import ledger_table, run_table


def main(argv: list[str]) -> None:
    """Print the tables. Exits with one line when a named folder is not a run."""
    if not argv:
        print(ledger_table(Path("runs")))
    for name in argv:
        if not (Path(name) / "events.jsonl").is_file():
            sys.exit(f"error: {name} is not a run folder (no events.jsonl in it)")
        print(f"{name}\n{run_table(Path(name))}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
