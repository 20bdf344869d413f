"""Several names in one option, each with what it counts: `A:1,B:.5`, `FILE,FILE:-.5`.

A comma stands between two of them, and what follows the last colon of one is its weight where it is
a number; without one it counts 1.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from steerloop import UserError

MOST = 1000.0  # of a weight, in size: what is larger is a slip


class Part(NamedTuple):
    """A name and its weight, a plain factor."""

    name: str
    weight: float


def parts(text: str, flag: str) -> list[Part]:
    """What an option says, in its order; nothing of an empty one. Raises UserError, naming the
    flag, for a part without a name and for a weight that is no use."""
    found = []
    for part in text.split(",") if text else []:
        name, colon, tail = part.strip().rpartition(":")
        weight = number(tail) if colon else None
        if weight is None:
            name, weight = part.strip(), 1.0
        if not name:
            raise UserError(f"--{flag} {text}: one of its parts has no name; write NAME:WEIGHT, "
                            "and a comma between two of them")
        if not 0 < abs(weight) <= MOST:  # nan, too
            raise UserError(f"--{flag} {text}: {name} counts {weight:g}, and a weight is a number "
                            f"up to {MOST:g} in size that is not 0")
        found.append(Part(name, weight))
    return found


def number(text: str) -> float | None:
    """A weight; None of what is no number."""
    try:
        return float(text)
    except ValueError:
        return None


def joined(known: Iterable[Part]) -> str:
    """What `parts` reads: weights of 1 are left out where nothing could be taken for them."""
    return ",".join(name if weight == 1 and number(name.rpartition(":")[2]) is None else
                    f"{name}:{weight!r}" for name, weight in known)


def told(text: str, flag: str) -> list[dict[str, Any]]:
    """The same for a record: `name`, without its folders, and `weight`."""
    return [{"name": Path(name).name, "weight": weight} for name, weight in parts(text, flag)]


def steering(config: dict[str, Any]) -> str:
    """What steers, in words, where it is not the vector of one pack's persona pairs; else ''.
    `config` has `vector`, `trait` and `teacher`, as far as its version had them."""
    if config.get("teacher", "vector") != "vector":
        return ""
    files = told(config.get("vector", ""), "vector")
    packs = told(config.get("trait", ""), "trait")
    if files:
        return f"a vector from {summed(files)}, in every round: nothing is extracted"
    if len(packs) > 1:
        return (f"the vectors of {summed(packs)}, extracted in every round and added; all else is "
                f"of {packs[0]['name']}")
    return ""


def summed(known: list[dict[str, Any]]) -> str:
    """A weighted sum in words."""
    terms = [f"{'-' if x['weight'] < 0 else '+'} {abs(x['weight']):g} × {x['name']}" for x in known]
    return " ".join(terms).removeprefix("+ ")
