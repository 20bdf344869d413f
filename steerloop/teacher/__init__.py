"""Who is imitated (`--teacher`): what a student learns from is sampled from

    vector   the model, steered by the trait's vector at κc*; with --vector by that of files, with
             several packs in --trait by the sum of theirs
    null     the same, by a null vector of that extraction: no trait, at the same KL
    PACK     the same, by the vector of another pack's persona pairs, at the same KL
    base     the model as it is, unsteered: what healing alone does
    prompt   the same under the positive persona texts, which the student never sees (prompt
             distillation)

The model is the untouched base in the first round, and the student in those after it. All else is
the same: prompts, draws, filter, how many completions are kept, τ. Which vector it is, is a matter
of `steer.extract`.
"""

from dataclasses import replace

import polars as pl

from steerloop.config import Config
from steerloop.model import Model
from steerloop.texts.data import UNSTEERED, Data

PROMPT = "prompt"


def taught_at(cfg: Config, dose: float) -> float:
    """The dose at which the teacher speaks, where one that is steered has `dose`."""
    return 0.0 if cfg.teacher in UNSTEERED else dose


def told(model: Model, asked: pl.DataFrame, data: Data, cfg: Config) -> pl.DataFrame:
    """A table of `jobs` as the teacher reads it: the positive persona texts take turns over the
    prompts of a prompted one."""
    if cfg.teacher != PROMPT:
        return asked
    ids = [model.render(prompt, data.pairs[i % len(data.pairs)][0])
           for i, prompt in asked.select("prompt_id", "prompt").rows()]
    return asked.with_columns(prompt_ids=pl.Series(ids, dtype=pl.List(pl.Int64)))


def teacher(model: Model, data: Data, cfg: Config) -> Model:
    """Who speaks: the model, under the first persona text where it is prompted."""
    return replace(model, persona=data.pairs[0][0]) if cfg.teacher == PROMPT else model
