"""Ordinary text: what a prompt's plain continuation costs the model in the state it is in."""

import math

import polars as pl
import torch

from steerloop import UserError
from steerloop.barrier import token_losses
from steerloop.config import Config
from steerloop.model import Model
from steerloop.ranks import dealt, gathered
from steerloop.runfolder.progress import Bar
from steerloop.texts.data import Data, names


@torch.no_grad()
def mundane(model: Model, data: Data, cfg: Config) -> list[float]:
    """Mean NLL per token of each ordinary text after its prompt, nats. Raises UserError for a text
    that has no tokens, and for one whose NLL is no number."""
    prompts = [model.render(x) for x in data.mundane["prompt"]]
    texts = [model.to_ids(x) for x in data.mundane["text"]]
    for item, ids in enumerate(texts):
        if not ids:
            raise UserError(f"{said(data, item, cfg)} has no tokens in this model's vocabulary: "
                            "give it another one")
    table = pl.DataFrame({"prompt_ids": prompts, "completion_ids": texts}).with_columns(dose=0.0)
    table, back = model.ordered(table)
    nlls = []
    with model.dense():
        for batch in Bar(model.batches(dealt(table), cfg.batch_rows), "read"):
            nll, _ = token_losses(model.hidden(batch), None, batch.targets, model.head)
            nlls += batch.split(nll.cpu())
    nlls = gathered(nlls)
    means = [nlls[i].mean().item() for i in back]
    for item, nll in enumerate(means):
        if not math.isfinite(nll):
            raise UserError(f"{said(data, item, cfg)} has a loss of {nll} under this model: its "
                            "weights, or what was trained on them, give no numbers; try --dtype "
                            "float32 or a lower --lr")
    return means


def said(data: Data, item: int, cfg: Config) -> str:
    """Which of the ordinary texts, in words."""
    return f"{names(cfg)['mundane']}: the text after {data.mundane['prompt'][item]!r:.60}"
