"""Judge completions: score columns, then `keep` and the first reason to drop.

Incoherence shows in ways that do not see each other: tokens that the untouched base finds
improbable, text that repeats itself (which the base finds *probable*), and text that names the
persona or refuses instead of acting. No score uses the steered model.
"""

import polars as pl
import torch

from steerloop.config import Config
from steerloop.model import Model
from steerloop.sample import completion_losses, jobs, sample
from steerloop.texts.data import Data
from steerloop.texts.faults import scores, talk


@torch.no_grad()
def perplexity(model: Model, table: pl.DataFrame, cfg: Config) -> list[float]:
    """Perplexity of each completion's worst quarter under the untouched base.

    A mean over hundreds of tokens hides the tail that went wrong; a quarter does not.
    """
    with model.gates(model.gates.before(0)):
        nlls, _ = completion_losses(model, table, cfg)
    worst = []
    for nll in nlls:
        quarters = nll.tensor_split(4) if len(nll) >= 16 else (nll,)
        worst.append(max(x.mean().exp().item() for x in quarters))
    return worst


@torch.no_grad()
def calibrate(model: Model, data: Data, cfg: Config) -> float:
    """The perplexity limit: ppl_factor × the 99th percentile of the base's own completions."""
    with model.gates(model.gates.before(0)):
        asked = jobs(model, data.prompts, [0.0])
        own = sample(model, asked, {}, cfg, "calibrate")
    ppl = torch.tensor(perplexity(model, own, cfg))
    return cfg.ppl_factor * ppl.quantile(0.99).item()


def filter(
    model: Model, table: pl.DataFrame, data: Data, cfg: Config, limit: float
) -> pl.DataFrame:
    """Adds ppl, repeat, echo, loop, zip, `keep` and `drop_reason` (null where kept).

    `limit` bounds the perplexity. With the filter off only empty completions are dropped; the
    scores are there all the same.
    """
    texts = table["text"]
    ppl = pl.Series(perplexity(model, table, cfg))
    table = table.with_columns(*scores(texts), ppl=ppl)
    col = pl.col
    reasons = {"empty": (col("completion_ids").list.len() < cfg.min_tokens)
               | (col("text").str.strip_chars() == "")}
    if cfg.filter:
        personas = [text for pair in data.pairs for text in pair]
        reasons |= {
            "loops": (col("loop") > cfg.max_loop) | (col("zip") < cfg.min_zip),
            "repeats": col("repeat") > cfg.max_repeat,
            "echoes": col("echo") > cfg.max_echo,
            **talk(texts, personas),
            "improbable": col("ppl") > limit,
        }
    failed = [pl.when(test).then(pl.lit(why)) for why, test in reasons.items()]
    first = pl.coalesce(failed)
    return table.with_columns(drop_reason=first, keep=first.is_null())
