"""Null vectors: directions from the same extraction that cannot be the trait, each at a dose that
costs the same KL.

    n_l = Σ_i ε_i [ h_l(s⁺ ⊕ x_i) − h_l(s⁻ ⊕ x_i) ] / n,    ε_i = ±1

with as many plus as minus among the contexts of each persona pair, so that the mean difference
cancels, and what is left along the steering vector taken out. Free signs are no null: the mean
difference is large against its spread, so at equal KL they are the vector again.

Letters: n contexts, k directions, d width.
"""

import math

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from steerloop.config import Config
from steerloop.model import Model
from steerloop.readouts.states import Vector, differences
from steerloop.sample import completion_losses
from steerloop.texts.data import Data

STEPS = 3  # of the search for a dose; KL is close to quadratic, so the error is squared in each
QUANTILE = 0.95  # of the KL per token, as where c* is solved


def balanced(n: int, groups: int, rng: torch.Generator) -> Float[Tensor, "n"]:
    """Signs of n contexts, dealt to `groups` persona pairs in turn: as many plus as minus in each;
    one that is left over has 0."""
    signs = torch.zeros(n)
    for group in range(groups):
        mine = torch.arange(group, n, groups)
        mine = mine[torch.randperm(len(mine), generator=rng)]
        half = len(mine) // 2
        signs[mine[:half]], signs[mine[half : 2 * half]] = 1.0, -1.0
    return signs


def apart(x: Tensor, v: Tensor) -> Tensor:
    """What of x is orthogonal to v."""
    return x - (x @ v) / (v @ v) * v


def nulls(model: Model, data: Data, cfg: Config, vector: Vector, k: int) -> list[Vector]:
    """k null vectors of the extraction of `vector`, at their raw size."""
    each = differences(model, data, list(vector), cfg.batch_rows)
    rng = torch.Generator().manual_seed(cfg.seed)
    found = []
    for _ in range(k):
        signs = balanced(len(data.contexts), len(data.pairs), rng)
        null = {}
        for block, difference in each.items():
            mean = signs.to(difference) @ difference / len(signs)
            null[block] = apart(mean, vector[block])
        found.append(null)
    return found


def noise(cfg: Config, vector: Vector, k: int) -> list[Vector]:
    """k isotropic vectors, each block as long as that of `vector`."""
    rng = torch.Generator().manual_seed(cfg.seed)
    found = []
    for _ in range(k):
        draws = {b: torch.randn(len(v), generator=rng).to(v) for b, v in vector.items()}
        found.append({b: x * vector[b].norm() / x.norm() for b, x in draws.items()})
    return found


def top_kl(model: Model, table: pl.DataFrame, cfg: Config, vector: Vector, dose: float) -> float:
    """p95 over tokens of KL(steered ‖ unsteered), nats, on completions as they stand."""
    _, kls = completion_losses(model, table.with_columns(dose=pl.lit(dose)), cfg, vector)
    return torch.cat(kls).quantile(QUANTILE).item()


def size(vector: Vector) -> float:
    """Its norm over all blocks."""
    return math.sqrt(sum(x.square().sum().item() for x in vector.values()))


def like(
    model: Model, table: pl.DataFrame, cfg: Config, vector: Vector, target: float, dose: float
) -> float:
    """The dose at which a direction costs `target` nats on the completions of `table`, as
    `top_kl`, without sampling; `dose` is a first guess."""
    for _ in range(STEPS):
        dose *= math.sqrt(target / max(top_kl(model, table, cfg, vector, dose), 1e-12))
    return dose
