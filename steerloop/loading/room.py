"""How many rows go through a model at once: what its device's memory holds, by a count.

What is held whatever the rows, and what a row adds, is counted on the model, for a prompt of PROMPT
tokens and the longest completion. It rests on sizes alone, not on what happens to be free, so that
a run takes the same numbers again on a device of that size; and it errs to the safe side.

Letters: b rows, t tokens.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from loguru import logger
from torch import Tensor, nn
from transformers import PreTrainedModel

from steerloop.kernels.hardware import SHARE, SHARE_TRAINING, memory
from steerloop.kernels.head import CHUNK_LOGITS, COPIES
from steerloop.kernels.trunk import Trunk

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)  # codes, scales, scales of scales
PROMPT = 256  # tokens before a completion
FEW = 64  # tokens that activations are counted on
USED, USED_GPU = 0.5, 0.75  # of the memory; other programs, an allocator and graphs have the rest
MOST, MOST_GPU = 48, 192  # rows of a batch beyond which a row is hardly sooner done


@dataclass(frozen=True)
class Need:
    """Bytes by part: those that are there whatever the rows, and those that a row adds."""

    whole: dict[str, int | float]
    row: dict[str, int | float]

    def rows(self, room: float) -> int:
        """How many fit, one at least: with less nothing could be done at all."""
        left = room - sum(self.whole.values())
        return max(1, int(left / max(1, sum(self.row.values()))))

    def parts(self, rows: int) -> dict[str, int | float]:
        """Bytes of so many rows."""
        return self.whole | {name: rows * x for name, x in self.row.items()}


def saved(hf: PreTrainedModel, b: int, t: int) -> int:
    """Bytes that autograd keeps of one forward pass, parameters not counted."""
    known = {x.untyped_storage()._cdata for x in [*hf.parameters(), *hf.buffers()]}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no storage's id is used twice

    def pack(x: Tensor) -> Tensor:
        key = x.untyped_storage()._cdata
        if key not in known:
            kept[key] = x.untyped_storage().nbytes()
            alive.append(x)
        return x

    ids = torch.zeros((b, t), dtype=torch.long, device=next(hf.parameters()).device)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        Trunk(hf.get_decoder())(ids, ids >= 0)
    return sum(kept.values())


def activations(hf: PreTrainedModel, t: int) -> tuple[float, float]:
    """The same for any number of rows of t tokens: (whatever the rows, a row), from three short
    passes. A row has parts that go with t, and with its square where attention is computed in the
    open."""
    one, two, longer = saved(hf, 1, FEW), saved(hf, 2, FEW), saved(hf, 1, 2 * FEW)
    short, whole = two - one, 2 * one - two
    square = ((longer - whole) / 2 - short) / FEW**2
    linear = short / FEW - FEW * square
    return float(whole), linear * t + square * t**2


def needs(hf: PreTrainedModel, layers: dict[str, Any], cfg: Any, room: int) -> tuple[Need, Need]:
    """Of healing (a row of a micro-batch) and of sampling (a row of a batch), in `room` bytes of a
    device. `layers` are the wrapped ones, if any; `cfg` is a Config."""
    text, tokens, item = hf.config.get_text_config(), PROMPT + cfg.max_new_tokens, hf.dtype.itemsize
    linears = [x for x in hf.get_decoder().layers.modules() if isinstance(x, nn.Linear)]
    linear = sum(x.in_features * x.out_features for x in linears)  # what 4 bits are for
    held = sum(x.in_features * x.out_features for x in linears if "weight" in x._parameters)
    live = sum(x.live_A.numel() + x.live_B.numel() for x in layers.values())
    rest = sum(x.numel() for x in hf.parameters()) - held - live
    packed, blocks = item * linear * (cfg.quant == "nf4"), text.num_hidden_layers
    base = linear * (NF4_BITS / 8 if packed else item) + item * rest
    stack = item * cfg.rounds * live
    whole, row = activations(hf, tokens) if layers else (0.0, 0.0)
    if cfg.checkpointing:  # what each block reads, and all of the one that is gone back over
        whole, row = whole / blocks, row / blocks + item * blocks * tokens * text.hidden_size
    chunk = max(CHUNK_LOGITS, cfg.max_new_tokens * text.vocab_size)
    heal = {"base": base, "folded stack": stack, "live factors, gradients, Adam": 16 * live,
            "stack beside the live slot": whole, "logits of a chunk": COPIES * 4 * chunk,
            "weights unpacked to train": packed * (packed <= SHARE_TRAINING * room)}
    dense = stack + (packed or sum(x.base.weight.nbytes for x in layers.values()))
    sample = {"base": base, "folded stack": stack,
              "weights and stack of dense phases": dense * (dense <= SHARE * room)}
    heads = getattr(text, "num_key_value_heads", None) or 1
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    cache = 2 * item * (blocks + 1) * tokens * heads * width  # and a layer on its way there
    return (Need(heal, {"activations of a micro-batch": row}),
            Need(sample, {"key-value cache": cache, "logits": COPIES * 4 * text.vocab_size}))


def fitting(needed: tuple[Need, Need], step_rows: int, room: int, gpu: bool) -> tuple[int, int]:
    """Rows of a micro-batch, which cut a step of `step_rows` evenly, and rows of a batch."""
    heal, sample = (x.rows(room * (USED_GPU if gpu else USED)) for x in needed)
    cuts = math.ceil(step_rows / heal)
    return math.ceil(step_rows / cuts), min(sample, MOST_GPU if gpu else MOST)


def rows_at_once(model: Any, cfg: Any) -> Any:
    """Set what a Config leaves to the device's memory, `batch` and `batch_rows` of 0. Returns the
    model, which has hf, layers, device."""
    if cfg.batch and cfg.batch_rows:
        return model
    room = memory(model.device)
    needed = needs(model.hf, model.layers, cfg, room)
    batch, rows = fitting(needed, cfg.step_rows, room, model.device.type != "cpu")
    cfg.batch, cfg.batch_rows = cfg.batch or batch, cfg.batch_rows or rows
    logger.info(f"of {room / 1e9:.0f} GB memory: {cfg.batch} completions a micro-batch, "
                f"{cfg.batch_rows} rows a batch (--batch, --batch_rows)")
    return model
