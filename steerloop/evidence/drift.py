"""How far the student is from the base, at which tokens, how that is spread over all of them, and
whether it went where the vector points."""

from collections.abc import Callable
from functools import partial

import polars as pl
import torch
from torch import Tensor

from steerloop.config import Config
from steerloop.kernels.spectral import cosine
from steerloop.model import Model
from steerloop.readouts.states import Vector, states
from steerloop.sample import completion_losses
from steerloop.texts.data import Data

WORST, BEFORE = 200, 16  # tokens listed, and tokens shown before each
PLACE = {"row": pl.Int64, "position": pl.Int64, "token_id": pl.Int64, "text": pl.String,
         "kl": pl.Float64, "before_ids": pl.List(pl.Int64), "before": pl.String}
EDGES = [10 ** (i / 4) for i in range(-24, 9)]  # nats: above what fp32 rounds away
BINS = {"reference": pl.String, "low": pl.Float64, "high": pl.Float64, "tokens": pl.Int64,
        "kl": pl.Float64}


@torch.no_grad()
def moved(model: Model, contexts: list[str], blocks: list[int], size: int) -> Vector:
    """Mean residual shift of the student against the base at the last prompt token, no persona."""
    prompts = [model.render(x) for x in contexts]
    now = states(model, prompts, blocks, size)
    with model.gates(model.gates.before(0)):
        was = states(model, prompts, blocks, size)
    return {b: (now[b] - was[b]).mean(0) for b in blocks}


def worst(
    kept: pl.DataFrame, kls: list[Tensor], to_text: Callable[[list[int]], str]
) -> pl.DataFrame:
    """The completion tokens of largest KL (`kls`: per row (n), nats), that first: number of the
    row, `position` in its completion (from 0), id, text, `kl`, and the last BEFORE tokens before
    it."""
    rows = kept.select("row", "prompt_ids", "completion_ids").rows()
    places = [(row, at) for row, kl in zip(rows, kls, strict=True) for at in range(len(kl))]
    flat = torch.cat(kls)
    listed = []
    for i in flat.argsort(descending=True, stable=True)[:WORST].tolist():
        (number, prompt, completion), at = places[i]
        before = (prompt + completion[:at])[-BEFORE:]
        text, said = to_text([completion[at]]), to_text(before)
        listed.append((number, at, completion[at], text, flat[i].item(), before, said))
    return pl.DataFrame(listed, PLACE, orient="row")


def histogram(reference: str, kls: list[Tensor]) -> pl.DataFrame:
    """Per-token KLs (per row (n), nats) to a reference by size: of each bin from `low` to below
    `high`, nats, its `tokens` and the sum of their `kl`. The first bin has no `low` (rounding goes
    below 0), the last no `high`; bins of no token are there, too."""
    flat = torch.cat(kls).double()
    at = torch.bucketize(flat, torch.tensor(EDGES, dtype=torch.float64), right=True)
    bins = len(EDGES) + 1
    tokens, sums = (at.bincount(x, minlength=bins).tolist() for x in (None, flat))
    return pl.DataFrame({"reference": [reference] * bins, "low": [None, *EDGES],
                         "high": [*EDGES, None], "tokens": tokens, "kl": sums}, BINS)


def kl_to_base(model: Model, rows: pl.DataFrame, cfg: Config) -> float:
    """Mean KL(model as it stands ‖ base) per token of these completions, nats."""
    _, kls = completion_losses(model, rows, cfg, ref=model.gates.before(0))
    return torch.cat(kls).mean().item()


def drift(
    model: Model, kept: pl.DataFrame, data: Data, cfg: Config, vector: Vector
) -> tuple[dict[str, float], pl.DataFrame, pl.DataFrame]:
    """`kl_base`: mean KL(student ‖ base) per token, nats, on the completions of the round, so it
    is what all rounds so far have spent; `cos_teacher`: cosine of the student's shift (`moved`)
    and the round's steering vector. The `worst` tokens, by KL to the barrier's reference. And the
    `histogram` of KL to the base, below it of that to the reference, where it is another."""
    gates = model.gates
    _, kls = completion_losses(model, kept, cfg, ref=gates.before(0))
    spent = torch.cat(kls).mean().item()
    bins = [histogram("base", kls)]
    if cfg.ref == "prev":
        _, kls = completion_losses(model, kept, cfg, ref=gates.before(gates.live - 1))
        bins.append(histogram("prev", kls))
    went = moved(model, data.contexts, list(vector), cfg.batch_rows)
    listed = worst(kept, kls, partial(model.to_text, special=True))
    return {"kl_base": spent, "cos_teacher": cosine(went, vector)}, listed, pl.concat(bins)
