"""Judge completions: score columns, then `keep` and the first reason to drop.

Incoherence shows in ways that do not see each other: tokens that the untouched base finds
improbable, text that repeats itself (which the base finds *probable*), and text that names the
persona or refuses instead of acting. No score uses the steered model.
"""

import re

import polars as pl
import torch

from steerloop.config import Config, Data
from steerloop.kernels.text import grams, looped, repeated, zipped
from steerloop.model import Model
from steerloop.sample import jobs, sample, score

NARRATES = re.compile(
    r"\b(as|i am|i'm|you are) (someone|a person|an assistant|a model) (who|that)\b"
    r"|\b(persona|role[- ]?play)\b|\bi('m| am) (pretending|supposed|instructed|playing)\b", re.I)
REFUSES = re.compile(
    r"\b(as|i am|i'm) an? (ai|artificial|language model)\b|\bi('m| am) sorry, but\b"
    r"|\bi (can ?not|can't|won't|am unable to) (help|assist|answer|respond|discuss)\b", re.I)

@torch.no_grad()
def perplexity(model: Model, table: pl.DataFrame, cfg: Config) -> list[float]:
    """Perplexity of each completion's worst quarter under the untouched base.

    A mean over hundreds of tokens hides the tail that went wrong; a quarter does not.
    """
    with model.gates(model.gates.before(0)):
        nlls, _ = score(model, table, cfg)
    quarters = [x.tensor_split(4) if len(x) >= 16 else (x,) for x in nlls]
    return [max(q.mean().exp().item() for q in x) for x in quarters]


@torch.no_grad()
def calibrate(model: Model, data: Data, cfg: Config) -> float:
    """The perplexity limit: ppl_factor × the 99th percentile of the base's own completions."""
    with model.gates(model.gates.before(0)):
        table = sample(model, jobs(model, data.prompts, [0.0]), {}, cfg, "calibrate")
    return cfg.ppl_factor * torch.tensor(perplexity(model, table, cfg)).quantile(0.99).item()


def judge(
    model: Model, table: pl.DataFrame, data: Data, cfg: Config, limit: float
) -> pl.DataFrame:
    """Adds ppl, repeat, loop, zip, narrates, refuses, `keep`, `drop_reason` (null where kept).

    `limit` bounds the perplexity; five words in a row from a persona text are narration too. With
    the filter off only empty completions are dropped; the scores are there all the same.
    """
    echo = {g for pair in data.pairs for text in pair for g in grams(text, 5)}
    texts = table["text"].to_list()
    scores = {
        "ppl": perplexity(model, table, cfg), "repeat": [repeated(x) for x in texts],
        "loop": [looped(x) for x in texts], "zip": [zipped(x) for x in texts],
        "narrates": [bool(NARRATES.search(x) or echo & set(grams(x, 5))) for x in texts],
        "refuses": [bool(REFUSES.search(x)) for x in texts]}
    table = table.with_columns(pl.Series(name, x) for name, x in scores.items())
    col = pl.col
    short = col("completion_ids").list.len() < cfg.min_tokens
    reasons = {
        "empty": short | (col("text").str.strip_chars() == ""),
        "loops": (col("loop") > cfg.max_loop) | (col("zip") < cfg.min_zip),
        "repeats": col("repeat") > cfg.max_repeat, "refuses": col("refuses"),
        "narrates": col("narrates"), "improbable": col("ppl") > limit}
    first = pl.coalesce(pl.when(test).then(pl.lit(why)) for why, test in reasons.items()
                        if cfg.filter or why == "empty")
    return table.with_columns(drop_reason=first, keep=first.is_null())


def survival(table: pl.DataFrame) -> list[dict]:
    """Per dose: completions, the share kept, and the reasons of the rest."""
    reasons = pl.col("drop_reason").drop_nulls().value_counts(sort=True)
    return table.group_by("dose").agg(
        n=pl.len(), kept=pl.col("keep").mean(), reasons=reasons).sort("dose").to_dicts()
