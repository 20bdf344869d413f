"""What numbers and words are called in a tracker.

    evaluate/healed/coherence    numbers of a record, by its stage (of `evaluate` and its state), as
                                 they are called in events.jsonl; over rounds, counted from 0
    heal_steps/nll               columns of steps.parquet, over the optimiser steps of all rounds
    heal_nll_steps/nll           the same of a rival
    u0/verdict                   words of a record; what is a list is told as JSON
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from steerloop.runfolder.layout import HEAL, RECORDS, U0

ROUND = "round"
HEALS = tuple(x for x in RECORDS if x.partition("_")[0] == HEAL)  # the run's own, and rivals'
KEY = ("stage", ROUND, "state")


def numbers(record: dict[str, Any]) -> dict[str, float]:
    """The numbers of a record by name, each in its own unit; what has none is left out."""
    return {name: float(x) for name, x in leaves(record["stage"], values(record))
            if isinstance(x, int | float) and not isinstance(x, bool)}


def words(record: dict[str, Any]) -> dict[str, str]:
    """The words of a record by name."""
    return {name: x for name, x in leaves(record["stage"], values(record))
            if isinstance(x, str) and x}


def of_step(heal: str, row: dict[str, Any]) -> dict[str, float]:
    """A row of `Course.steps` by name, each in its own unit; `heal` as its record is named."""
    return {f"{heal}_steps/{k}": float(x) for k, x in row.items() if k != "step" and x is not None}


def number_of_steps(heal: dict[str, Any]) -> int:
    """How many optimiser steps the record of a heal counts."""
    return int(heal.get("steps", 0))


def values(record: dict[str, Any]) -> dict[str, Any]:
    """What there is to tell of a record."""
    rest = {k: x for k, x in record.items() if k not in KEY}
    match record["stage"]:
        case "config":  # told at the start, as hyper-parameters
            return {}
        case "evaluate":
            dose = {"dose": record["dose"]} if record["dose"] else {}
            return {record["state"]: record["measures"] | dose}
        case "sample":
            rows = sum(x["n"] for x in record["survival"])
            kept = sum(x["n"] * x["kept"] for x in record["survival"])
            shares = {"rows": rows, "kept": kept / rows} if rows else {}
            return {k: x for k, x in rest.items() if k not in ("curve", "survival")} | shares
        case stage if stage == U0:
            asked = {x["readout"]: {k: v for k, v in x.items() if k != "readout"}
                     for x in record["readouts"]}
            return {k: x for k, x in rest.items() if k != "readouts"} | asked
    return rest


def leaves(name: str, tree: Any) -> Iterator[tuple[str, Any]]:
    """What a tree of dicts ends in, by names joined with slashes; lists as JSON. Names are of
    letters, digits and `_.-/` alone, which every tracker takes as they are."""
    if isinstance(tree, dict):
        for key, x in tree.items():
            yield from leaves(f"{name}/{key}", x)
    else:
        yield plain(name), json.dumps(tree) if isinstance(tree, list) else tree


def plain(name: str) -> str:
    """A name that every tracker takes."""
    return re.sub(r"[^\w./-]+", "_", name)
