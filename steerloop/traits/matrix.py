"""Does the vector of a pack move its own readout, and its readout its own vector, more than others?

    cell(i, j) = response of pack j's readout to pack i's vector / root mean square of its responses
                 to null vectors of pack j

every vector at its c*, every null at the dose that costs as much. A pack leads where its own cell
is the largest in size of its row and of its column, and positive.
"""

from dataclasses import replace

import numpy as np
import polars as pl
import torch
from loguru import logger

from steerloop.config import Config
from steerloop.dose import dose
from steerloop.evidence.lengths import check_lengths
from steerloop.model import load
from steerloop.report.sight import NULL, odd
from steerloop.report.text import markdown
from steerloop.sight.responses import Direction, answered, lined_up, some, uttered
from steerloop.steer import extract
from steerloop.texts.data import read_data

READOUTS = ("said", "contrast")  # which every pack has


@torch.no_grad()
def matrix(names: list[str], cfg: Config) -> dict[str, np.ndarray]:
    """Readout → cells (vector, pack), in the order of `names`, in units of each pack's nulls."""
    model, known = load(cfg), {}
    for name in names:
        one = replace(cfg, trait=name)
        data = read_data(one)
        check_lengths(model, data, one)
        vector = extract(model, data, one)
        c_star, _ = dose(model, vector, data, one, "0")
        known[name] = one, data, Direction(name, vector, c_star)
        logger.info(f"{name}: c* {c_star:.3g}")
    cells = {x: np.zeros((len(names), len(names))) for x in READOUTS}
    for j, (one, data, own) in enumerate(known.values()):
        few = some(data, one, one.u0_items)
        nulls = [x for x in lined_up(model, data, one, own.vector, own.dose)
                 if x.name.startswith(NULL)]
        directions = [*nulls, *(x for _, _, x in known.values())]
        tables = [uttered(model, few, one, directions)]
        for direction in directions:
            tables += answered(model, few, one, direction, ["contrast"])
        steps = {key: x.mean() for key, x in odd(pl.concat(tables)).items()}
        for readout, table in cells.items():
            size = np.sqrt(np.mean([steps[x.name, readout] ** 2 for x in nulls]))
            table[:, j] = [steps[name, readout] / size for name in names]
    return cells


def leads(table: np.ndarray) -> list[bool]:
    """Of each pack, whether its own cell leads its row and its column."""
    own, sizes = np.diag(table), np.abs(table)
    return [bool(x > 0 and x >= sizes[i].max() and x >= sizes[:, i].max())
            for i, x in enumerate(own)]


def shown(names: list[str], cells: dict[str, np.ndarray]) -> str:
    """The tables, a row a vector, a column a pack's readout."""
    parts = []
    for readout, table in cells.items():
        rows = [{"vector": name} | {x: f"{v:+.1f}" for x, v in zip(names, row, strict=True)}
                | {"leads": "yes" if first else "no"}
                for name, row, first in zip(names, table, leads(table), strict=True)]
        parts.append(f"{readout}, in units of the null vectors of each column:\n\n{markdown(rows)}")
    return "\n\n".join(parts)
