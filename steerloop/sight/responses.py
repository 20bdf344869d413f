"""What every readout answers to the vector, to null vectors and to persona texts, on the untouched
base: the numbers that report/sight.py judges.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch

from steerloop.config import Config
from steerloop.model import Model
from steerloop.readouts.contrast import contrast
from steerloop.readouts.forced_choice import choices
from steerloop.readouts.reasons import reasons
from steerloop.readouts.said import margins, spoken
from steerloop.readouts.states import Vector
from steerloop.report.sight import (
    NULL,
    PROMPTED,
    VECTOR,
    Seen,
    axis_values,
    enough,
    sees,
    verdict,
)
from steerloop.runfolder.progress import Bar
from steerloop.sample import jobs
from steerloop.sight.nulls import aimed, at_one_cost, noise, nulls, stacked
from steerloop.steer import steered
from steerloop.texts.data import Data

NULLS = 19  # so that the vector stands out of 20 by chance once in 20 times
NOISE = 2  # isotropic vectors, reported beside them
ROWS, TOKENS = 4, 32  # rollouts of a direction, by which doses are compared, and their length
VIGNETTES = 3  # of them to an item
COLUMNS = {"direction": pl.String, "sign": pl.Int64, "readout": pl.String, "item": pl.Int64,
           "value": pl.Float64}


class Direction(NamedTuple):
    """A vector and the dose at which it costs what c* costs."""

    name: str
    vector: Vector
    dose: float


def look(
    model: Model, data: Data, cfg: Config, vector: Vector, c_star: float, base: list[pl.DataFrame]
) -> pl.DataFrame:
    """direction, sign, readout, item, value (nats towards `up`): every readout that sees, under the
    vector at ±c* and under null vectors at the same KL, and what shows whether they see (see
    `controls`). `base` is what `evaluate` gave for the untouched base, which the model is here."""
    prompted = pl.concat(list(controls(model, data, cfg)))
    able = [x for x, fault in sees(base, prompted, [data.down, data.up]).items() if not fault]
    tables = [prompted]
    if able:
        few = some(data, cfg, enough(able, prompted, cfg.u0_items))
        directions = lined_up(model, data, cfg, vector, c_star)
        for direction in Bar(directions, "u0"):
            tables += answered(model, few, cfg, direction, able)
        if "said" in able:
            tables.append(uttered(model, few, cfg, directions))
    return pl.concat(tables)


def glance(model: Model, data: Data, cfg: Config, base: list[pl.DataFrame]) -> dict[str, Any]:
    """U0 without a vector: the first readout that sees, as the headline."""
    prompted = pl.concat(list(controls(model, data, cfg)))
    found = [Seen(x, why) for x, why in sees(base, prompted, [data.down, data.up]).items()]
    return verdict(found, asked=False)


def controls(model: Model, data: Data, cfg: Config) -> Iterator[pl.DataFrame]:
    """What shows whether readouts see: reasons of all foundations in either wording (whose turn is
    `sign`); and, of held-out answers that show the trait against their opposites, how much more
    likely the positive pole of a persona pair makes them than the negative one: `said` by either
    half of the pairs, `contrast` by first and by last answers."""
    yield pl.DataFrame(schema=COLUMNS)
    named = list(data.reasons[0].reasons) if data.reasons else []
    for turn in range(len(data.reasons)):
        for name, values in reasons(model, data, cfg, named, turn).items():
            yield rows(PROMPTED, turn, name, values)
    held = data.contrast.filter("held").gather_every(cfg.every).head(cfg.said_prompts)
    asked, plain = replace(data, contrast=held), replace(cfg, every=1)
    moved = []  # by persona pair
    for pair in data.pairs[: cfg.said_pairs] if len(held) else []:
        up, down = (contrast(replace(model, persona=x), asked, plain) for x in pair)
        moved.append({x: np.subtract(up[x], down[x]) for x in up})
    by_pair = [x["contrast_positive"] - x["contrast_negative"] for x in moved]
    for half in (1, 2) if moved else ():
        said = np.mean(by_pair[half - 1 :: 2] or by_pair, 0)
        yield rows(PROMPTED, 0, f"said_{half}", said.tolist())
        answers = np.mean([x[f"contrast_{half}"] for x in moved], 0)
        yield rows(PROMPTED, 0, f"contrast_{half}", answers.tolist())


def rows(direction: str, sign: int, readout: str, values: list[float]) -> pl.DataFrame:
    """One readout's values by item."""
    found = [(direction, sign, readout, i, x) for i, x in enumerate(values)]
    return pl.DataFrame(found, COLUMNS, orient="row")


def some(data: Data, cfg: Config, n: int) -> Data:
    """A seeded part of n held-out items, and of the vignettes: as many of each label, so that some
    of them are of the axis."""
    rng = random.Random(f"{cfg.seed}|u0")

    def part(table: pl.DataFrame, n: int) -> pl.DataFrame:
        chosen = rng.sample(range(len(table)), min(len(table), n))
        return table[sorted(chosen)]

    held = data.contrast.filter("held")
    labels = data.vignettes.partition_by("label") if len(data.vignettes) else [data.vignettes]
    each = max(1, VIGNETTES * n // len(labels))
    some = pl.concat([part(x, each) for x in labels])
    return replace(data, contrast=part(held, n), vignettes=some)


def lined_up(
    model: Model, data: Data, cfg: Config, vector: Vector, c_star: float
) -> list[Direction]:
    """The vector at c*, null vectors and noise at the doses that cost as much."""
    found = nulls(model, data, cfg, vector, NULLS)
    others = [*found, *noise(cfg, vector, NOISE)]
    rollout = replace(cfg, max_new_tokens=min(TOKENS, cfg.max_new_tokens))
    asked = jobs(model, data.prompts[:ROWS], [0.0])
    doses = at_one_cost(model, asked, rollout, vector, c_star, others)
    names = [f"{NULL} {i + 1}" if i < NULLS else f"noise {i - NULLS + 1}"
             for i in range(len(others))]
    return [Direction(VECTOR, vector, c_star), *map(Direction, names, others, doses)]


def answered(
    model: Model, data: Data, cfg: Config, direction: Direction, able: list[str]
) -> Iterator[pl.DataFrame]:
    """What the readouts of texts give under a direction, either way."""
    cfg = replace(cfg, every=1)
    for sign in (1, -1):
        with torch.no_grad(), steered(model, direction.vector, sign * direction.dose):
            frames = {}
            if "digits" in able:
                frames["digits"] = choices(model, data.vignettes, cfg, free=False)
            if "reasons" in able:
                frames["reasons"] = reasons(model, data, cfg, [data.up, data.down])
            if "contrast" in able:
                frames["contrast"] = contrast(model, data, cfg)
        for readout, frame in frames.items():
            values = axis_values(readout, frame, [data.down, data.up])
            yield rows(direction.name, sign, readout, values)


def uttered(
    model: Model, data: Data, cfg: Config, directions: list[Direction]
) -> pl.DataFrame:
    """The same of what is said, all directions in the rows of a batch. A short answer to each of
    many prompts tells more than a long one to each of few."""
    cfg = replace(cfg, said_tokens=min(TOKENS, cfg.said_tokens))
    asked = jobs(model, data.contrast["prompt"].to_list(), [0.0])
    every, tables = stacked([x.vector for x in directions]), []
    both = {sign: aimed(asked, [sign * x.dose for x in directions]) for sign in (1, -1)}
    answers = spoken(model, pl.concat(list(both.values())), every, cfg)
    answers = answers.with_columns(value=pl.Series(margins(model, answers, data.pairs, cfg)))
    for sign, part in zip(both, answers.iter_slices(len(answers) // 2), strict=True):
        for direction, mine in zip(directions, part.iter_slices(len(asked)), strict=True):
            tables.append(rows(direction.name, sign, "said", mine["value"].to_list()))
    return pl.concat(tables)
