"""Measures by name: what --probes and presets list as module:function, and --eval."""

from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any

import polars as pl

from steerloop import UserError
from steerloop.bridge import moralmaps
from steerloop.config import Config
from steerloop.model import Model

Probe = Callable[[Model, Config], dict[str, list[float]]]  # measure → a value per item


def resolve(name: str) -> Callable[..., Any]:
    """'module:function' → the function. Raises UserError when there is none."""
    try:
        return resolve_name(name)
    except (ImportError, AttributeError, ValueError) as e:
        raise UserError(f"cannot find {name} (--probes takes module:function): {e}") from e


def probes(cfg: Config) -> list[Probe]:
    """The probes of a run. Raises UserError for one that is not there."""
    others = [moralmaps()] if cfg.eval == "moralmaps" else []
    return [resolve(name) for name in cfg.probes] + others


def long(items: dict[str, list[float]]) -> pl.DataFrame:
    """Values by measure, in units of their own → rows of (measure, item, value)."""
    rows = [(name, i, x) for name, values in items.items() for i, x in enumerate(values)]
    return pl.DataFrame(rows, ["measure", "item", "value"], orient="row")
