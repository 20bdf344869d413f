"""Which blocks are steered or trained, and which linear layers of them."""

from typing import Any

from torch import nn

from steerloop import UserError


def band(blocks: list[int], share: list[float], depth: int, name: str) -> list[int]:
    """The blocks listed, else those whose index / depth lies in share = [low, high].

    Raises UserError when that is none, or one that the model does not have.
    """
    if not blocks and not share:
        raise UserError(f"--{name}_band auto is settled by a run: name blocks or a band here")
    chosen = blocks or [i for i in range(depth) if share[0] <= i / depth <= share[-1]]
    if not chosen or not set(chosen) <= set(range(depth)):
        raise UserError(f"--{name}_blocks {blocks}, --{name}_band {share}: selects no block, or one"
                        f" that does not exist; this model has blocks 0 to {depth - 1}")
    return sorted(set(chosen))


def trained(cfg: Any, depth: int) -> list[int]:
    """The blocks that a config trains, in a model of this depth.

    Raises UserError where it selects none, or none to steer, or trains only what comes after all
    that it steers: the steered states would be those of the base for ever.
    """
    auto = not cfg.steer_blocks and not cfg.steer_band
    steered = band(cfg.steer_blocks, [0.0, 1.0] if auto else cfg.steer_band, depth, "steer")
    blocks = band(cfg.lora_blocks, cfg.lora_band, depth, "lora")
    if min(blocks) > max(steered):
        raise UserError(f"--lora_blocks {blocks} all come after the steered blocks {steered}: "
                        "training cannot change what is steered; train a block up to "
                        f"{max(steered)}, or steer a later one")
    return blocks


def projections(
    hf: nn.Module, layers: nn.ModuleList, chosen: list[int], targets: list[str]
) -> list[str]:
    """Paths of the linear layers in the chosen blocks whose names end in one of `targets`.

    Raises UserError, with those that there are, for a target that is in none of them.
    """
    linear = {m for i in chosen for m in layers[i].modules() if isinstance(m, nn.Linear)}
    there = {path: path.rpartition(".")[2] for path, m in hf.named_modules() if m in linear}
    if absent := sorted(set(targets) - set(there.values())):
        blocks = f"blocks {chosen[0]} to {chosen[-1]}"
        raise UserError(f"--targets {' '.join(absent)}: {blocks} have no such linear layer, but "
                        f"{', '.join(sorted(set(there.values()))) or 'none at all'}")
    return [path for path, name in there.items() if name in targets]
