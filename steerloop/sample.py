"""Sample completions, prompts × doses in one batch, with our own decode loop; and what the model
makes of their tokens.

The randomness of a row belongs to the row: its uniform draws come from (seed, round, stage, prompt,
which of the doses, copy) and pick tokens by inverse CDF. So batch size, mixed doses, finished rows
leaving and resuming change no draw, nor does a weight or dose that differs by rounding.
"""

from functools import partial

import polars as pl
import torch
from torch import Tensor

from steerloop.barrier import token_losses
from steerloop.config import Config
from steerloop.kernels.caches import empty_cache
from steerloop.kernels.decode import Rows, draws, generate, pick
from steerloop.kernels.graphs import steps
from steerloop.model import Model
from steerloop.ranks import dealt, gathered
from steerloop.readouts.states import Vector
from steerloop.runfolder.progress import Bar
from steerloop.steer import steered

COLUMNS = ["prompt_id", "multiple", "dose", "copy", "prompt", "prompt_ids"]


def jobs(
    model: Model, prompts: list[str], doses: list[float], copy: int = 0
) -> pl.DataFrame:
    """The rows to sample: every prompt at every dose (units of the vector), of which `multiple` is
    the index; `copy` counts how often they were asked before."""
    rows = []
    for i, prompt in enumerate(prompts):
        ids = model.render(prompt)
        rows += [(i, j, float(dose), copy, prompt, ids) for j, dose in enumerate(doses)]
    return pl.DataFrame(rows, COLUMNS, orient="row")


@torch.no_grad()
def sample(
    model: Model,
    table: pl.DataFrame,
    vector: Vector,
    cfg: Config,
    key: str,
    stops: bool = True,
) -> pl.DataFrame:
    """Adds `completion_ids` (end-of-turn token kept) and `text` to a table of `jobs`.

    `key` names round and stage for the draws. `stops=False` suppresses end tokens, so that every
    row has exactly max_new_tokens.
    """
    choose = partial(pick, temperature=cfg.temperature, k=cfg.top_k, p=cfg.top_p)
    completions = []
    stage = key.rpartition("|")[2]
    mine = dealt(table)
    with model.dense(), Bar(total=len(mine), desc=stage, unit="row") as bar:
        for part in mine.iter_slices(cfg.batch_rows):
            rows = in_flight(model, part, cfg, key)
            with steered(model, vector, rows):
                step = steps(model.trunk, model.head, rows)
                completions += generate(step, rows, choose, model.stop_ids, stops, bar.drew)
    completions = gathered(completions)
    texts = [model.to_text(ids) for ids in completions]
    return table.with_columns(
        completion_ids=pl.Series(completions, dtype=pl.List(pl.Int64)),
        text=pl.Series(texts, dtype=pl.String),
    )


def in_flight(model: Model, table: pl.DataFrame, cfg: Config, key: str) -> Rows:
    """One batch of jobs, nothing of it read yet, each row with its own draws in [0, 1)."""
    own = []
    for prompt, multiple, copy in table.select("prompt_id", "multiple", "copy").rows():
        name = f"{cfg.seed}|{key}|{prompt}|{multiple}|{copy}"
        own.append(draws(name, cfg.max_new_tokens))
    ids, mask = model.pad(table["prompt_ids"].to_list())
    doses = torch.tensor(table["dose"].to_list(), device=model.device).float()
    drawn = torch.stack(own).to(model.device)
    return Rows(torch.arange(len(table)), ids, mask, doses, drawn, empty_cache(model.hf))


@torch.no_grad()
def completion_losses(
    model: Model,
    table: pl.DataFrame,
    cfg: Config,
    vector: Vector | None = None,
    ref: Tensor | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Per row, NLL and KL(model ‖ reference) of its completion tokens, each (n), nats, on the CPU.

    The model is the one under the gates in force, steered by `vector`, and dense as where it
    samples; the reference is unsteered, under the gates `ref` (R) or the same. Gates do not move in
    a dense phase, so with `ref` two states are read one after the other without. With neither
    vector nor `ref` the KL is 0.
    """
    nlls, kls = [], []
    table, back = model.ordered(table)
    for batch in Bar(model.batches(dealt(table), cfg.batch_rows), "score"):
        h_ref = None
        with model.dense(ref is None):
            with steered(model, vector or {}, batch):
                h = model.hidden(batch)
            if vector and ref is None:
                h_ref = model.hidden(batch)
        if ref is not None:
            with model.gates(ref):
                h_ref = model.hidden(batch)
        nll, kl = token_losses(h, h_ref, batch.targets, model.head)
        nlls += batch.split(nll.cpu())
        kls += batch.split(kl.cpu())
    nlls, kls = gathered(nlls), gathered(kls)
    return [nlls[i] for i in back], [kls[i] for i in back]
