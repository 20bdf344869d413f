"""What a heal trains on, beside what the reference makes of it."""

import polars as pl
import torch

from steerloop.config import Config
from steerloop.kernels.batch import Row
from steerloop.model import Model
from steerloop.ranks import dealt, gathered


def with_reference(model: Model, table: pl.DataFrame, cfg: Config) -> list[Row]:
    """The rows of `table` beside what the reference makes of them: base, or the student before.
    Its hidden states are computed once: it does not change within a round."""
    refs = [None] * len(table)
    if cfg.barrier in ("kl_rev", "kl_fwd"):
        gates = model.gates
        before = gates.before(0 if cfg.ref == "base" else gates.live)
        mine, refs = dealt(table).with_columns(dose=0.0), []
        with torch.no_grad(), gates(before):
            for batch in model.batches(mine, cfg.batch_rows):
                refs += batch.split(model.hidden(batch))
        refs = gathered(refs)
    columns = table["prompt_ids"].to_list(), table["completion_ids"].to_list()
    return [Row(*x) for x in zip(*columns, refs, table["row"], strict=True)]
