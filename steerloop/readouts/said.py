"""What is said: a state's own answers to held-out prompts, read by the untouched base.

    said(y) = mean over persona pairs of [ log p(y | s⁺, x) − log p(y | s⁻, x) ]     per token

log p is that of the base, unsteered, under either pole of a pair. No judge and no labels are
needed, and nothing is said for free by making the opposite improbable. (Where persona vectors,
Chen et al. 2025, have a model judge such answers.)
"""

from dataclasses import replace

import numpy as np
import polars as pl
import torch

from steerloop.config import Config
from steerloop.filter import filter
from steerloop.model import Model
from steerloop.readouts.endings import endings
from steerloop.readouts.states import Pairs, Vector
from steerloop.sample import jobs, sample
from steerloop.texts.data import Data

ANSWERS = {  # what is kept of them
    "prompt_id": pl.Int64, "prompt": pl.String, "dose": pl.Float64, "text": pl.String,
    "prompt_ids": pl.List(pl.Int64), "completion_ids": pl.List(pl.Int64),
    "said_1": pl.Float64, "said_2": pl.Float64,
    "ppl": pl.Float64, "repeat": pl.Float64, "echo": pl.Float64, "loop": pl.Float64,
    "zip": pl.Float64, "drop_reason": pl.String,
}  # fmt: skip
ANYTHING = float("inf")  # as a limit of perplexity: what is improbable is told by the base's own


@torch.no_grad()
def said(
    model: Model, data: Data, cfg: Config, vector: Vector, dose: float
) -> pl.DataFrame:
    """The answers of the model as it stands, steered at `dose` (units of the vector): see `read`.
    Without held-out prompts there are no rows."""
    prompts = data.contrast.filter("held")["prompt"].head(cfg.said_prompts).to_list()
    return read(model, jobs(model, prompts, [dose]), vector, data, cfg)


@torch.no_grad()
def read(
    model: Model, asked: pl.DataFrame, vector: Vector, data: Data, cfg: Config
) -> pl.DataFrame:
    """Answers to a table of `jobs`, a prompt once each: beside them `said_1` and `said_2` (nats per
    token, by every other persona pair that reads), and what the filter says of them but for
    perplexity, which is kept (`ppl`)."""
    if not len(asked):
        return pl.DataFrame(schema=ANSWERS)
    answers = spoken(model, asked, vector, cfg)
    judged = filter(model, answers, data, replace(cfg, filter=True), ANYTHING)
    readers, scores = data.pairs[: cfg.said_pairs], []
    for half in (1, 2):
        some = readers[half - 1 :: 2] or readers
        values = [margins(model, answers, [pair], cfg) for pair in some]
        scores.append(pl.Series(f"said_{half}", np.mean(values, 0)))
    return judged.with_columns(scores).select(list(ANSWERS)).cast(ANSWERS)


def spoken(model: Model, asked: pl.DataFrame, vector: Vector, cfg: Config) -> pl.DataFrame:
    """Answers to a table of `jobs`; the same draws in whatever state."""
    rollout = replace(cfg, max_new_tokens=min(cfg.said_tokens, cfg.max_new_tokens))
    return sample(model, asked, vector, rollout, "said")


def margins(model: Model, answers: pl.DataFrame, pairs: Pairs, cfg: Config) -> list[float]:
    """Per answer: mean log-probability per token under the positive text less that under the
    negative one, for the untouched base; `pairs` take turns over the prompts. A prompt has as many
    answers as any other."""
    rows = answers.with_row_index("row")
    groups = rows.group_by("prompt_id", maintain_order=True).agg(
        pl.first("prompt"), "completion_ids", "row")
    after = groups["completion_ids"].to_list()
    sides = []
    for pole in (0, 1):
        prompts = []
        for i, prompt in groups.select("prompt_id", "prompt").rows():
            prompts.append(model.render(prompt, pairs[i % len(pairs)][pole]))
        with model.gates(model.gates.before(0)):
            sides.append(endings(model, prompts, after, cfg.batch_rows, "said"))
    found = (sides[0] - sides[1]).flatten().tolist()
    order = groups["row"].explode().arg_sort()
    return [found[i] for i in order]
