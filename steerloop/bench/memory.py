"""How much accelerator memory a run needs on a card, computed from the shape alone: the model is
built on the meta device, and counted there as one that is loaded (loading/room.py).

What autograd keeps is that of attention in the open; accelerators, whose kernels keep no (t, t)
matrix, need somewhat less.
"""

import torch
from transformers import AutoModelForCausalLM

from steerloop import lora
from steerloop.bench.shapes import config
from steerloop.config import Config
from steerloop.kernels import masks
from steerloop.loading.layers import projections, trained
from steerloop.loading.room import fitting, needs

GB = 1e9
CARD = 24  # GB


def need(shape: str, cfg: Config, card: int = CARD) -> dict[str, float]:
    """GB by part, for healing and for sampling; and the rows that are taken at once on a card of so
    many GB."""
    card *= 10**9
    text = config(shape)
    text.dtype = torch.bfloat16
    masks.register()  # the library's own ask what is in them
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(text).to(torch.bfloat16)
        blocks = model.get_decoder().layers
        names = projections(model, blocks, trained(cfg, len(blocks)), cfg.targets)
        layers = lora.wrap(model, names, lora.Gates(cfg.rounds), cfg.r, cfg.alpha)
        heal, sample = needed = needs(model, layers, cfg, card)
    batch, rows = fitting(needed, cfg.step_rows, card, gpu=True)
    healing, sampling = heal.parts(cfg.batch or batch), sample.parts(cfg.batch_rows or rows)
    sums = {"healing": sum(healing.values()), "sampling": sum(sampling.values())}
    found = {name: x / GB for name, x in (healing | sampling | sums).items()}
    return found | {"rows of a micro-batch": cfg.batch or batch,
                    "rows of a batch": cfg.batch_rows or rows}
