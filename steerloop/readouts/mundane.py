"""Ordinary text: what a prompt's plain continuation costs the model in the state it is in."""

import polars as pl
import torch

from steerloop.barrier import token_losses
from steerloop.config import Config
from steerloop.model import Model
from steerloop.runfolder.progress import Bar
from steerloop.texts.data import Data


@torch.no_grad()
def mundane(model: Model, data: Data, cfg: Config) -> list[float]:
    """Mean NLL per token of each ordinary text after its prompt, nats."""
    prompts = [model.render(x) for x in data.mundane["prompt"]]
    texts = [model.to_ids(x) for x in data.mundane["text"]]
    table = pl.DataFrame({"prompt_ids": prompts, "completion_ids": texts}).with_columns(dose=0.0)
    nlls = []
    for batch in Bar(model.batches(table, cfg.batch_rows), "read"):
        nll, _ = token_losses(model.hidden(batch), None, batch.targets, model.head)
        nlls += batch.split(nll.cpu())
    return [nll.mean().item() for nll in nlls]
