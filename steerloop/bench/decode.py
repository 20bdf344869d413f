"""What one decoding step takes: ours alone, at several numbers of rows, beside its floor."""

from dataclasses import replace
from typing import Any

import polars as pl
import torch

from steerloop.bench.measure import bandwidth, best, step_bytes
from steerloop.bench.work import Size, texts, vector
from steerloop.config import Config
from steerloop.model import load
from steerloop.sample import sample


def run(cfg: Config, size: Size) -> dict[str, Any]:
    """By rows (a 24th of `rows`, a quarter, all): seconds of a step, from the difference of two
    lengths, so that reading the prompts and recording a graph do not count; the floor, one reading
    of weights, keys and values; tokens a second; and on a GPU the most memory."""
    model = load(cfg)
    steered, peak, found = vector(model, cfg), bandwidth(model.head.weight.dtype, model.device), {}
    cuda, long, short = model.device.type == "cuda", max(2, size.tokens), max(1, size.tokens // 4)
    for rows in sorted({max(1, size.rows // 24), max(1, size.rows // 4), size.rows}):
        table = pl.DataFrame({"prompt_ids": texts(rows, size.prompt)}).with_columns(
            prompt_id=pl.int_range(rows), dose=1.0, multiple=0, copy=0)

        def drawn(tokens: int, table: pl.DataFrame = table, rows: int = rows) -> float:
            whole = replace(cfg, batch_rows=rows, max_new_tokens=tokens)
            return best(lambda: sample(model, table, steered, whole, "bench", stops=False),
                        model.device, size.repeats)

        if cuda:
            torch.cuda.reset_peak_memory_stats(model.device)
        seconds = (drawn(long) - drawn(short)) / (long - short)
        least = step_bytes(model, rows, size.prompt + (long + short) / 2) / peak
        found[str(rows)] = {"step_seconds": seconds, "floor_seconds": least,
                            "tokens_per_second": rows / seconds}
        if cuda:
            found[str(rows)]["peak_mb"] = torch.cuda.max_memory_allocated(model.device) / 2**20
    return {"tokens": [short, long], "prompt": size.prompt, "rows": found}
