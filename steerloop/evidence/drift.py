"""How far the student is from the base, and whether it went where the vector points."""

import polars as pl
import torch

from steerloop.config import Config
from steerloop.kernels.spectral import cosine
from steerloop.model import Model
from steerloop.readouts.states import Vector, states
from steerloop.sample import completion_losses
from steerloop.texts.data import Data


@torch.no_grad()
def moved(model: Model, contexts: list[str], blocks: list[int], size: int) -> Vector:
    """Mean residual shift of the student against the base at the last prompt token, no persona."""
    prompts = [model.render(x) for x in contexts]
    now = states(model, prompts, blocks, size)
    with model.gates(model.gates.before(0)):
        was = states(model, prompts, blocks, size)
    return {b: (now[b] - was[b]).mean(0) for b in blocks}


def drift(
    model: Model, kept: pl.DataFrame, data: Data, cfg: Config, vector: Vector
) -> dict[str, float]:
    """`kl_base`: mean KL(student ‖ base) per token, nats, on the completions of the round, so it
    is what all rounds so far have spent; `cos_teacher`: cosine of the student's shift (`moved`)
    and the round's steering vector."""
    kl = torch.cat(completion_losses(model, kept, cfg, ref=model.gates.before(0))[1])
    went = moved(model, data.contexts, list(vector), cfg.batch_rows)
    return {"kl_base": kl.mean().item(), "cos_teacher": cosine(went, vector)}
