"""A knob: a dataclass field with help text, a unit and a range."""

import math
from dataclasses import field, fields
from typing import Any, NamedTuple

from steerloop import UserError

RANGE = "range"  # where the metadata of a field has it


class Range(NamedTuple):
    """Numbers from `low` (None: all above 0) to `high`."""

    low: int | None
    high: float | int

    def holds(self, x: float | int) -> bool:
        """Whether a number is finite and within it, in the unit of the knob."""
        least = x > 0 if self.low is None else x >= self.low
        return math.isfinite(x) and least and x <= self.high

    def __str__(self) -> str:
        return f"from {'above 0' if self.low is None else self.low} to {self.high}"


def knob(default: Any, help: str, low: int | None = None, high: float | int = math.inf) -> Any:
    """A dataclass field with help text (the library expands %, so it is doubled) and a range."""
    start = {"default_factory": default.copy} if isinstance(default, list) else {"default": default}
    metadata = {"help": help.replace("%", "%%"), RANGE: Range(low, high)}
    return field(**start, metadata=metadata)


def check_ranges(options: Any) -> None:
    """Every number is finite and in the range of its knob. Raises UserError naming the field."""
    for knob in fields(options):
        allowed, value = knob.metadata[RANGE], getattr(options, knob.name)
        for x in value if isinstance(value, list) else [value]:
            if not isinstance(x, str | bool) and not allowed.holds(x):
                raise UserError(f"--{knob.name} takes finite numbers {allowed}, not {x}")
