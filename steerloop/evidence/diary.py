"""What people read: the same few prompts answered by base, steered and healed models every round,
and one whole example of what each stage puts into the model, special tokens showing."""

from dataclasses import replace

import polars as pl
import torch
from loguru import logger

from steerloop.config import Config
from steerloop.model import Model
from steerloop.readouts.forced_choice import answers
from steerloop.readouts.states import Vector
from steerloop.sample import jobs, sample
from steerloop.teacher import teacher
from steerloop.texts.data import Data
from steerloop.texts.printable import printable
from steerloop.texts.questions import question

TRAINED, ORDINARY = 3, 1  # prompts of the loop, and ordinary ones that nothing was trained on
TOKENS = 160  # length limit of an answer


@torch.no_grad()
def diary(
    model: Model, data: Data, cfg: Config, vector: Vector, steer: float, round: int
) -> pl.DataFrame:
    """The answers after the fold of `round`: prompt_id, prompt, kind ("loop" or
    "ordinary"), state, dose, text, `cut` (the length limit ended it).

    Decoding is greedy, so that answers differ by the model alone and no draw is spent. The base
    answers in round 0 only. The steered model is the student as it was before this round, at dose
    `steer`: the teacher, prompted where that one is.
    """
    asked = data.prompts[:TRAINED], data.mundane["prompt"].unique(maintain_order=True)[:ORDINARY]
    prompts = [*asked[0], *asked[1]]
    kinds = ["loop"] * len(asked[0]) + ["ordinary"] * len(asked[1])
    states = {"base": (model.gates.before(0), 0.0), "steered": (model.gates.before(round), steer),
              "healed": (None, 0.0)}
    tables = []
    cfg = replace(cfg, max_new_tokens=min(TOKENS, cfg.max_new_tokens), temperature=0.0)
    for state, (gates, dose) in states.items():
        if state == "base" and round:
            continue
        who = teacher(model, data, cfg) if state == "steered" else model
        with model.gates(gates):
            table = sample(who, jobs(who, prompts, [dose]), vector, cfg, "diary")
        ended = pl.col("completion_ids").list.last().is_in(model.stop_ids)
        tables.append(table.select(
            "prompt_id", "prompt", pl.Series("kind", kinds), pl.lit(state).alias("state"), "dose",
            "text", cut=~ended.fill_null(False)))
    return pl.concat(tables)


def examples(model: Model, data: Data, cfg: Config, table: pl.DataFrame, round: int) -> None:
    """Log what the model reads and writes, in full: in round 0 an extraction prompt of either pole
    and the forced choice (of a trait that has one), every round a sampled completion that was
    dropped, with the reason, and one that it is trained on. `table` has all judged rows."""
    if round == 0:
        poles = () if data.files else ("positive", "negative")  # of a file nothing is read there
        for name, persona in zip(poles, data.pairs[0], strict=False):
            shown(model, f"extract, {name} pole, read at the last token",
                  model.render(data.contexts[0], persona))
        think = cfg.think_tokens > 0
        thought = " (after a free thought)" if think else ""
        for text in data.vignettes["text"].head(1):
            asked = model.render(question(text, reverse=False, think=think))
            shown(model, f"evaluate, scaffold and first digit forced{thought}",
                  asked + answers(model.to_ids, think)[0])
    for what, rows in (("sample, dropped by the filter", table.filter(~pl.col("keep"))),
                       ("heal, a kept completion", table.filter("train"))):
        for one in rows.head(1).iter_rows(named=True):
            said = ", ".join(f"{k} {one[k]:.2f}" for k in ("dose", "ppl", "repeat", "echo"))
            why = f": {one['drop_reason']}" if one["drop_reason"] else ""
            shown(model, f"{what}{why} ({said})", one["prompt_ids"] + one["completion_ids"])


def shown(model: Model, what: str, ids: list[int]) -> None:
    """One example as text between two rules; what would steer a terminal is left out."""
    text = printable(model.to_text(ids, special=True))
    logger.info(f"example: {what}, {len(ids)} tokens\n┌──\n{text}\n└──")
