"""Where every run under a folder of them stands, from summaries and records alone: nothing is
estimated anew, so that it can be looked at after every round of any of them."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from steerloop import UserError
from steerloop.report.ledger import ASKED, JUDGED, ODD, arm_of, one_line, row_of, settings_of, why
from steerloop.report.pages.site import judged
from steerloop.report.run import events, sight_of
from steerloop.report.trait import DIGITS, level
from steerloop.runfolder import layout
from steerloop.runfolder.files import read_document, read_summary, read_table

# What reading the folder of a stranger, or one that is being written, may raise:
STRANGE = (*ODD, OSError, StopIteration, ArithmeticError, RecursionError,
           pl.exceptions.PolarsError, pl.exceptions.PanicException)
LARGEST = 2.0**63  # in size, of a number that is one
Triple = list[float]  # estimate, low, high; of one without an interval all the same


@dataclass(frozen=True)
class Standing:
    """A run: whether it has ended, or when its last record was `written`; its settings, its rounds,
    the headline by round (nats; [] where there is none), what its last student came to, and its
    verdicts in words."""

    run: Path
    written: str
    settings: dict[str, Any]
    healed: int
    course: list[Triple]
    coherence: float | None
    ppl_ratio: float | None
    judged: dict[str, str]
    read_by: str

    @property
    def ended(self) -> bool:
        """Whether it came to its end."""
        return not self.written


def standings(root: Path) -> tuple[list[Standing], list[str]]:
    """All runs under `root` by name, and a line of each folder that is left out."""
    found, left = [], []
    for run in folders(root):
        try:
            found.append(standing(run))
        except STRANGE as e:
            left.append(one_line(f"{run.name}: {why(e)}"))
    return found, left


def folders(root: Path) -> list[Path]:
    """What may be a run: has records, or a summary; where that cannot be seen, too."""
    summed = {x.parent for x in layout.summaries(root)}
    begun = {x for x in root.glob("*") if x not in summed and (x / layout.EVENTS).is_file()}
    return sorted(summed | begun)


def stamps(root: Path) -> list[tuple[Path, int]]:
    """When the summaries and records that `standings` reads were written last, ns."""
    found = []
    for path in (x / name for x in folders(root) for name in (layout.SUMMARY, layout.EVENTS)):
        with suppress(OSError):  # not there, or not to be looked at
            found.append((path, path.stat().st_mtime_ns))
    return found


def standing(run: Path) -> Standing:
    """One of them. Raises whatever a folder that is no run, or is damaged, makes it raise."""
    summary, written = read_summary(run), ""
    if not summary.get("ended"):
        known = events(run)
        stale = not summary or summary["records"] != len(known)
        summary = as_it_stands(run, known) if stale else summary
        at = datetime.fromtimestamp((run / layout.EVENTS).stat().st_mtime, UTC)
        written = f"{at:%Y-%m-%d %H:%M}"
    healed, course, row = summary["healed"], [], {}
    if healed:
        row = row_of(summary)
        course = [headline(e, summary["axis"]) for e in healed]
    said = {x["question"].split(":")[0]: x["verdict"] for x in summary.get("verdicts", [])}
    return Standing(
        run, written, settings_of(summary["axis"], summary["arm"]), len(healed),
        [[float(x) for x in shift] for shift in course] if all(map(sound, course)) else [],
        finite(row.get("coherence")), finite(row.get("ppl_ratio")),
        {k: str(said[k]) for k in (*JUDGED, ASKED) if k in said}, row.get("read_by", ""))


def sound(shift: Any) -> bool:
    """Whether something is an estimate with its ends."""
    return isinstance(shift, list) and len(shift) == 3 and all(
        finite(x) is not None for x in shift)


def headline(event: dict[str, Any], axis: list[str]) -> Any:
    """How far a student moved, nats towards the trait, as its summary says it: older ones knew
    digits alone, as the shifts of both foundations."""
    if "headline" in event:
        return event["headline"]
    value, low, high = event["shift"][axis[0]]["nats"]
    return [-value, -high, -low]


def as_it_stands(run: Path, known: list[dict[str, Any]]) -> dict[str, Any]:
    """Of a run that has not ended, what a summary would say, without intervals, by its records.
    Raises UserError where it is no run."""
    document = read_document(run)
    if "scored" in document:
        raise UserError("scores of a model (python -m steerloop.score), no run")
    measured = [e for e in known if e["stage"] == "evaluate"]
    axis = next((e["axis"] for e in known if "axis" in e), ["not known yet"])
    sight = sight_of(run)
    by, healed = sight.get("headline", ""), []
    for event in measured:
        if event["state"] == layout.HEALED:
            shift = apart(run, event, measured[0], by, axis) if by else None
            course = [shift] * 3 if by else None
            moved = {f"Δ{axis[1]}": course} if by else {}
            healed.append(event | {"headline": course, "moved": moved})
    return {"run": run.name, "axis": axis, "arm": arm_of(document), "best_round": None,
            "u0": {"headline": by, "verdict": sight.get("verdict", "not known yet")},
            "base": measured[0]["measures"] if measured else {}, "healed": healed,
            "verdicts": judged(run)}


def apart(
    run: Path, now: dict[str, Any], base: dict[str, Any], by: str, axis: list[str]
) -> float:
    """By how many nats the readout `by` moved towards the trait between two records."""
    def at(event: dict[str, Any]) -> float:
        known = event["measures"]
        if by == DIGITS:
            return -known[f"{axis[0]}_nats"]
        if by == "said":
            return known["said"]
        if by == "contrast":
            return known["contrast_positive"] - known["contrast_negative"]
        items = read_table(layout.items(run, event["round"], event["state"]))
        return level(by, [pl.DataFrame(), items, pl.DataFrame()], axis)

    return at(now) - at(base)


def last_by_seed(runs: Sequence[Standing]) -> list[Standing]:
    """Of each loop seed the last run that has ended."""
    return list({x.settings["seed"]: x for x in runs if x.ended}.values())


def finite(value: Any) -> float | None:
    """A number (of any unit) that can be shown and sorted; None of anything else."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if abs(value) < LARGEST else None
