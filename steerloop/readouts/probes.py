"""Measures by name: what --probes and presets list as module:function, and --eval."""

from collections.abc import Callable, Iterable
from numbers import Real
from pkgutil import resolve_name
from typing import Any

import polars as pl

from steerloop import UserError
from steerloop.bridge import moralmaps
from steerloop.config import Config
from steerloop.model import Model
from steerloop.texts.foundations import FOUNDATIONS

Probe = Callable[[Model, Config], dict[str, list[float]]]  # measure → a value per item
OWN = {"coherence", "p_ans_any", "json_is_valid", "top1", "overlap", "ppx_json", "ppl_mundane",
       "mundane_nll", *(f"{f}_nats" for f in FOUNDATIONS)}  # what our own measures are called
LARGEST = 1e30  # of a value: squares of it, and sums of many, are numbers still


def resolve(name: str) -> Callable[..., Any]:
    """'module:function' → the function. Raises UserError when there is none."""
    try:
        function = resolve_name(name)
    except (ImportError, AttributeError, ValueError) as e:
        raise UserError(f"cannot find {name} (--probes takes module:function): {e}") from e
    if not callable(function):
        raise UserError(f"{name} is no function (--probes takes module:function)")
    return function


def probes(cfg: Config) -> dict[str, Probe]:
    """The probes of a run by their names. Raises UserError for one that is not there."""
    others = {"moralmaps": moralmaps()} if cfg.eval == "moralmaps" else {}
    return {name: resolve(name) for name in cfg.probes} | others


def probed(model: Model, cfg: Config) -> dict[str, list[float]]:
    """What the probes say of the model as it stands. Raises UserError, naming the probe, where that
    is not measure → finite numbers, or a measure has the name of another."""
    items: dict[str, list[float]] = {}
    for name, probe in probes(cfg).items():
        for measure, values in numbers(name, probe(model, cfg)).items():
            if measure in OWN or measure in items:
                raise UserError(f"the probe {name} calls a measure {measure!r}, which there is "
                                "already: give it another name")
            items[measure] = values
    return items


def numbers(name: str, found: Any) -> dict[str, list[float]]:
    """What a probe returned, its values as floats. Raises UserError, naming the probe."""
    if not isinstance(found, dict):
        raise UserError(f"the probe {name} returns {type(found).__name__}, not measure → values")
    items = {}
    for measure, values in found.items():
        row = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else []
        if not isinstance(measure, str) or not row:
            raise UserError(f"the probe {name} returns no list of values for {measure!r:.60}")
        for item, x in enumerate(row):
            if not isinstance(x, Real) or not abs(x) <= LARGEST:
                raise UserError(f"the probe {name} gives {measure} the value {x!r:.60} (item "
                                f"{item}), which is no finite number")
        items[measure] = [float(x) for x in row]
    return items


def long(items: dict[str, list[float]]) -> pl.DataFrame:
    """Values by measure, in units of their own → rows of (measure, item, value)."""
    rows = [(name, i, x) for name, values in items.items() for i, x in enumerate(values)]
    return pl.DataFrame(rows, ["measure", "item", "value"], orient="row")
