"""Sample completions, prompts × doses in one batch, with our own decode loop; and score them.

The randomness of a row belongs to the row: its uniform draws come from (seed, round, stage, prompt,
dose, copy) and pick tokens by inverse CDF. So batch size, mixed doses, finished rows leaving and
resuming change no draw.
"""

from contextlib import nullcontext
from functools import partial

import polars as pl
import torch
from torch import Tensor

from steerloop.barrier import token_losses
from steerloop.config import Config
from steerloop.kernels.decode import Rows, decode, draws, pick
from steerloop.kernels.live import Bar
from steerloop.kernels.weights import empty_cache
from steerloop.model import Model
from steerloop.steer import Vector, steered


def jobs(model: Model, prompts: list[str], doses: list[float], copy: int = 0) -> pl.DataFrame:
    """The rows to sample: every prompt at every dose (units of the vector)."""
    rows = [(i, float(d), copy, x, ids) for i, x in enumerate(prompts)
            for ids in [model.render(x)] for d in doses]
    return pl.DataFrame(rows, ["prompt_id", "dose", "copy", "prompt", "prompt_ids"], orient="row")


@torch.no_grad()
def sample(
    model: Model, table: pl.DataFrame, vector: Vector, cfg: Config, key: str, m: int | None = None,
    heat: float | None = None, stops: bool = True,
) -> pl.DataFrame:
    """Adds `completion_ids` (end-of-turn token kept) and `text` to a table of `jobs`.

    `key` names round and stage for the draws; `m` tokens at most and temperature `heat` default to
    the run's. `stops=False` suppresses end tokens, so that every row has exactly m tokens.
    """
    m, out, heat = m or cfg.max_new_tokens, [], cfg.temperature if heat is None else heat
    choose = partial(pick, temperature=heat, k=cfg.top_k, p=cfg.top_p)
    with model.dense(), Bar(total=len(table), desc=key.rpartition("|")[2], unit="row") as bar:
        for part in table.iter_slices(cfg.batch_rows):
            names = part.select("prompt_id", "dose", "copy").rows()
            u = [draws(f"{cfg.seed}|{key}|{p}|{d:.6g}|{r}", m) for p, d, r in names]
            dose = torch.tensor(part["dose"].to_list(), device=model.device).float()
            rows = Rows(torch.arange(len(part)), *model.pad(part["prompt_ids"].to_list()), dose,
                        torch.stack(u).to(model.device), empty_cache(model.hf))
            with steered(model, vector, rows):
                out += decode(model, rows, choose, stops, bar.drew)
    return table.with_columns(pl.Series("completion_ids", out, pl.List(pl.Int64)),
                              pl.Series("text", [model.decode(x) for x in out], pl.String))


@torch.no_grad()
def score(
    model: Model, table: pl.DataFrame, cfg: Config, vector: Vector | None = None,
    ref: Tensor | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Per row, NLL and KL(model ‖ reference) of its completion tokens, each (n), nats, on the CPU.

    The model is the one under the gates in force, steered by `vector` and then dense as where it
    sampled; the reference is unsteered, under the gates `ref` (R) or the same. Two states that are
    compared without steering are not merged: each would be rounded in its own way. With neither
    vector nor `ref` the KL is 0.
    """
    nlls, kls, total = [], [], -(-len(table) // cfg.batch_rows)
    columns = tuple(table[x].to_list() for x in ("prompt_ids", "completion_ids", "dose"))
    for batch in Bar(model.batches(columns, cfg.batch_rows), "score", total):
        with model.dense() if vector else nullcontext(), steered(model, vector or {}, batch):
            h = model.hidden(batch)
        with model.dense() if vector and ref is None else model.gates(ref):
            h_ref = None if not vector and ref is None else model.hidden(batch)
        nll, kl = (batch.split(x.cpu()) for x in token_losses(h, h_ref, batch.targets, model.head))
        nlls, kls = [*nlls, *nll], [*kls, *kl]
    return nlls, kls
