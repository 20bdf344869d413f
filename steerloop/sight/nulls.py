"""Null vectors (kernels/nulls.py) of an extraction, and noise, each at a dose that costs the same
KL.

Letters: k directions, d width.
"""

import math

import polars as pl
import torch

from steerloop.config import Config
from steerloop.kernels.nulls import null_vectors
from steerloop.model import Model
from steerloop.readouts.states import Vector, mixed
from steerloop.sample import completion_losses, sample
from steerloop.texts.data import Data

STEPS = 2  # of the search for a null's dose, which sets out near: more follow the draws' noise
FAR = 3.0  # a step changes a dose by no more than this
QUANTILE = 0.95  # of the KL per token, as where c* is solved


def nulls(model: Model, data: Data, cfg: Config, vector: Vector, k: int) -> list[Vector]:
    """k null vectors of the extraction of `vector`, at their raw size. Of a vector from a file they
    are of the trait's persona pairs; signs are balanced within those of the first pack."""
    each = mixed(model, data, list(vector), cfg.batch_rows)
    return null_vectors(each, vector, len(data.pairs), cfg.seed, k)


def noise(cfg: Config, vector: Vector, k: int) -> list[Vector]:
    """k isotropic vectors, each block as long as that of `vector`."""
    rng = torch.Generator().manual_seed(cfg.seed)
    found = []
    for _ in range(k):
        draws = {b: torch.randn(len(v), generator=rng).to(v) for b, v in vector.items()}
        found.append({b: x * vector[b].norm() / x.norm() for b, x in draws.items()})
    return found


def size(vector: Vector) -> float:
    """Its norm over all blocks."""
    return math.sqrt(sum(x.square().sum().item() for x in vector.values()))


def stacked(vectors: list[Vector]) -> Vector:
    """k directions as one vector whose rows have a dose of each: block → (k, d)."""
    return {b: torch.stack([x[b] for x in vectors]) for b in vectors[0]}


def aimed(asked: pl.DataFrame, doses: list[float]) -> pl.DataFrame:
    """Every row of a table of `jobs` under each of k directions in turn, at its dose; the same
    draws under all of them."""
    parts = []
    for j, dose in enumerate(doses):
        mine = [0.0] * len(doses)
        mine[j] = dose
        parts.append(asked.with_columns(dose=pl.Series([mine] * len(asked)), direction=pl.lit(j)))
    return pl.concat(parts)


def top_kls(
    model: Model, asked: pl.DataFrame, cfg: Config, vectors: list[Vector], doses: list[float]
) -> list[float]:
    """Per direction, p95 over the tokens of its rollouts of KL(steered ‖ unsteered), nats."""
    every = stacked(vectors)
    table = sample(model, aimed(asked, doses), every, cfg, "u0|dose")
    _, kls = completion_losses(model, table, cfg, every)
    n = len(asked)
    parts = [torch.cat(kls[j * n : (j + 1) * n]) for j in range(len(doses))]
    return [x.quantile(QUANTILE).item() for x in parts]


def at_one_cost(
    model: Model, asked: pl.DataFrame, cfg: Config, vector: Vector, c_star: float,
    others: list[Vector],
) -> list[float]:
    """The doses at which rollouts of the others cost what those of `vector` at c* do."""
    (target,) = top_kls(model, asked, cfg, [vector], [c_star])
    doses = [c_star * size(vector) / max(size(x), 1e-12) for x in others]
    return at_cost(model, asked, cfg, target, others, doses, STEPS)


def at_cost(
    model: Model, asked: pl.DataFrame, cfg: Config, target: float, vectors: list[Vector],
    doses: list[float], steps: int,
) -> list[float]:
    """The doses at which rollouts of the vectors have a p95 of `target` nats, all of them in one
    batch, from `doses` on by the square root of how far they miss it: KL is close to quadratic."""
    for _ in range(steps):
        reached = top_kls(model, asked, cfg, vectors, doses)
        factors = [math.sqrt(target / max(x, 1e-12)) for x in reached]
        doses = [x * min(max(f, 1 / FAR), FAR) for x, f in zip(doses, factors, strict=True)]
    return doses
