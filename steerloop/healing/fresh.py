"""Where a heal starts: a fresh Δ; and how a model becomes the base again."""

import torch
from loguru import logger
from torch import Tensor

from steerloop import lora


@torch.no_grad()
def fresh(layers: lora.Layers, gates: lora.Gates, seed: int) -> list[Tensor]:
    """Opens the live slot (see lora.open_round); returns what is trained, A (r, d_in) and B (d_out,
    r) of each layer in turn. A Δ that was healed and not folded is thrown away, which is said:
    until now it was heard, by whoever sampled, too."""
    if any(layer.live_B.any() for layer in layers.values()):
        logger.warning(f"the Δ of round {gates.live + 1} was healed and not folded: it is thrown "
                       "away. What was sampled since then is that student's; lora.fold keeps a Δ, "
                       "healing.fresh.forget makes the model the base again")
    lora.open_round(layers, gates, seed)
    live = []
    for layer in layers.values():
        live += [layer.live_A, layer.live_B]
    return live


@torch.no_grad()
def forget(layers: lora.Layers, gates: lora.Gates) -> None:
    """Every round is forgotten, the live one, too: the model is the base again, bit for bit."""
    for layer in layers.values():
        for stack in (layer.baked_A, layer.baked_B, layer.live_A, layer.live_B):
            stack.zero_()
    gates.live = 0
