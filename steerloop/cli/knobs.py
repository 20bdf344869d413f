"""A knob: a dataclass field with help text, a unit and a range; and what a value has to be to be
one of its."""

import re
from dataclasses import MISSING, Field, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from steerloop import UserError

RANGE = "range"  # where the metadata of a field has it
WORD = "word"  # and what stands for an empty list on the command line
JOINED = "joined"  # and whether a flag that is given again adds to what it said, after a comma
MANY = 10**9  # the end of a range that has none of its own: no knob means anything beyond
SEEDS = 2**53  # largest seed: a whole number that every file format holds
KINDS = {str: "text", bool: "true or false", int: "whole numbers", float: "numbers"}
DEVICES = r"auto|cpu|mps|(cuda|xpu)(:\d{1,3})?"


class Range(NamedTuple):
    """Numbers from `low` (None: all above 0) to `high`, which is finite."""

    low: float | int | None
    high: float | int

    def holds(self, x: float | int) -> bool:
        """Whether a number is within it, in the unit of the knob; nan never is."""
        least = x > 0 if self.low is None else x >= self.low
        return least and x <= self.high

    def __str__(self) -> str:
        return f"from {'above 0' if self.low is None else self.low} to {self.high}"


DIAL = Range(-100, 100)  # gates and doses; what is below 0 pushes the other way


def knob(
    default: Any, help: str, low: float | int | None = None, high: float | int = MANY,
    word: str = "", joined: bool = False,
) -> Any:
    """A dataclass field with help text (the library expands %, so it is doubled) and a range; of a
    list, a `word` may stand for an empty one; one that is `joined` may be given several times."""
    start = {"default_factory": default.copy} if isinstance(default, list) else {"default": default}
    metadata = {"help": help.replace("%", "%%"), RANGE: Range(low, high), WORD: word,
                JOINED: joined}
    return field(**start, metadata=metadata)


def fits(kind: Any, value: Any) -> bool:
    """Whether a value is of the type of a knob. A whole number is a number; true is none."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(fits(get_args(kind)[0], x) for x in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def kind_of(knob: Field) -> str:
    """What a knob takes, in words."""
    if get_origin(knob.type) is Literal:
        return f"one of {', '.join(get_args(knob.type))}"
    if get_origin(knob.type) is list:
        return f"a list of {KINDS[get_args(knob.type)[0]]}"
    return KINDS[knob.type]


def check_knobs(options: Any) -> None:
    """Every value is of the type of its knob and in its range, and not empty unless the default is.
    Raises UserError naming the field."""
    for knob in fields(options):
        value, allowed = getattr(options, knob.name), knob.metadata[RANGE]
        if not fits(knob.type, value):
            raise UserError(f"--{knob.name} takes {kind_of(knob)}, not {value!r}")
        start = knob.default if knob.default_factory is MISSING else knob.default_factory()
        blank = value == [] or (isinstance(value, str) and not value.strip())
        if knob.metadata[WORD] and value == []:
            continue
        if blank and (value or start not in ("", [])):  # white space is no name of a file
            raise UserError(f"--{knob.name} is empty: give a value, or leave it out")
        for x in value if isinstance(value, list) else [value]:
            if not isinstance(x, str | bool) and not allowed.holds(x):
                raise UserError(f"--{knob.name} takes finite numbers {allowed}, not {x}")


def check_device(name: str) -> str:
    """The name of a device as it is. Raises UserError for one that nothing can be computed on."""
    if not re.fullmatch(DEVICES, name):
        raise UserError(f"--device {name}: there are auto, cpu, cuda or cuda:N, mps, xpu")
    return name


def expanded(path: str) -> str:
    """A path with ~ as the home directory it stands for. Raises UserError where there is none."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError as e:
        raise UserError(f"{path}: there is no such home directory") from e
