"""What a finished run comes to: its best round, summary.json, verdicts.md and the ledger."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loguru import logger

from steerloop.report.ledger import arm_of, update_ledger
from steerloop.report.pages.folder import halt_pages, write_pages
from steerloop.report.pages.index import write_index
from steerloop.report.pages.site import Status
from steerloop.report.pages.training import write_training
from steerloop.report.run import (
    axis_of,
    beaten,
    events,
    last_round,
    round_table,
    run_table,
    sight_of,
    states,
)
from steerloop.report.verdicts import NAMES, Verdict, heads, named, write_verdicts
from steerloop.runfolder import layout
from steerloop.runfolder.files import read_document, sealed, write_whole

UNKNOWN = (0.0, 0.0, 1.0)  # coherence without a canary
_said: set[str] = set()  # why pages were not written


def best_round(
    healed: list[dict[str, Any]], floor: float, barred: frozenset[int] = frozenset()
) -> int | None:
    """The round to ship; None when none is known to have moved and not known to be below the
    coherence floor.

    Of those, and not `barred` for what they spent, the ones on the Pareto front are compared: no
    other has both a larger shift and at least their coherence. The one with the highest score
    wins, the earlier one of two equals.
    """
    def point(event: dict[str, Any]) -> tuple[float, float]:
        return event["headline"][0], (event["coherence"] or UNKNOWN)[0]

    sound = [e for e in healed if e["score"] and e["round"] not in barred
             and (e["coherence"] or UNKNOWN)[2] >= floor]
    front = [e for e in sound
             if not any(point(o)[0] > point(e)[0] and point(o)[1] >= point(e)[1] for o in sound)]
    return max(front, key=lambda e: e["score"][0])["round"] if front else None


def summarise(run: Path, judged: list[Verdict], measured: list[dict[str, Any]]) -> dict[str, Any]:
    """What summary.json says: the arm, base, every healed round, the best one (see `best_round`),
    plain steering at the shift of the last round, rivals, and the verdicts."""
    document = read_document(run)
    cfg = document["config"]
    start = next(e for e in events(run) if e["stage"] == "start")
    axis = axis_of(run)
    healed = [e for e in measured if e["state"] == "healed"]
    over = frozenset(e["round"] for e in events(run) if e["stage"] == "drift"
                     and 0 < cfg["kl_budget"] < e["kl_base"])
    best = best_round(healed, start["floor"], over)
    return {
        "schema": 1,
        "run": run.name,
        "stopped_early": len(healed) < cfg["rounds"],
        "axis": axis,
        "u0": {k: sight_of(run).get(k, "") for k in ("verdict", "headline", "why")},
        "coherence_floor": start["floor"],
        "arm": arm_of(document),
        "base": measured[0]["measures"],
        "healed": healed,
        "best_round": best,
        "best_adapter": None if best is None else str(layout.adapter(Path(), best)),
        "matched": last_round(measured).get("matched"),
        "rivals": beaten(run, measured),
        "verdicts": heads(judged),
        "named": [f"{x}: {NAMES[x]}" for x in named(judged)],
        "records": len(events(run)),
    }


def tried(run: Path, write: Callable[..., object], *args: Any, loud: bool = True) -> None:
    """Call what writes a page of a run that goes on, or has failed. That it cannot is said once, if
    `loud`, and kept in the log with its traceback; it is no reason to end the run."""
    try:
        write(*args)
    except Exception as e:  # whatever a folder or a table comes to
        said = (f"a page was not written ({type(e).__name__}: {' '.join(str(e).split())}); the run "
                f"goes on, and `python -m steerloop.report {run}` writes it")
        if said in _said:
            return
        _said.add(said)
        logger.debug("".join(traceback.format_exception(e)))
        if loud:
            logger.warning(said)


def follow(run: Path) -> None:
    """Rewrite the page that shows what is under way."""
    tried(run, write_training, run, "running")


def stopped(run: Path) -> None:
    """Let the pages of a run say that it was cut short; what ended it is said elsewhere."""
    tried(run, halt_pages, run, loud=False)


def after_round(run: Path, round: int) -> str:
    """Judge the run as it stands, rewrite its pages and that of all runs beside it, and return the
    round's table."""
    measured = states(run)
    write_verdicts(run, measured)
    tried(run, write_pages, run, "running", False, measured)
    tried(run, write_index, run.parent)
    return round_table(run, round, measured)


def finish(run: Path, single: bool = False, status: Status = "ended") -> str:
    """Write verdicts.md, summary.json and the pages (see `write_pages`), and bring the ledger and
    the page of all runs beside the run folder up to date. Returns the tables of the run."""
    measured = states(run)
    judged = write_verdicts(run, measured)
    summary = summarise(run, judged, measured) | {"ended": status == "ended"}
    write_pages(run, status, single, measured)
    update_ledger(run, summary)
    text = sealed(summary)  # written last: a run that was killed before has not ended
    write_whole(run / layout.SUMMARY, lambda path: path.write_text(text, encoding="utf-8"))
    tried(run, write_index, run.parent)
    return run_table(run)
