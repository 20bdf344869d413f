"""How much accelerator memory a run needs on a card of 24 GB, computed from the shape alone.

Activations are counted, not guessed: the model is built on the meta device, and what autograd
would keep of one micro-batch's forward pass is added up. That path computes attention in the open,
so accelerators, whose kernels keep no (t, t) matrix, need somewhat less.
"""

import torch
from torch import Tensor
from transformers import Gemma3ForCausalLM

from steerloop import lora
from steerloop.bench.shapes import config
from steerloop.config import Config
from steerloop.kernels.hardware import SHARE, SHARE_TRAINING
from steerloop.kernels.head import CHUNK_LOGITS, COPIES
from steerloop.loading.layers import band

GB = 1e9
CARD = 24 * GB  # what `decode = auto` is decided for
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)  # codes, scales, scales of scales


def activations(model: Gemma3ForCausalLM, rows: int, tokens: int) -> int:
    """Bytes that autograd keeps of one forward pass, parameters not counted."""
    known = {x.untyped_storage()._cdata for x in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no storage's id is used twice

    def pack(x: Tensor) -> Tensor:
        key = x.untyped_storage()._cdata
        if key not in known:
            kept[key] = x.untyped_storage().nbytes()
            alive.append(x)
        return x

    ids = torch.zeros((rows, tokens), dtype=torch.long, device="meta")
    masks = dict.fromkeys(set(model.config.layer_types))  # made elsewhere, shared by all
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model.get_decoder()(input_ids=ids, attention_mask=masks, use_cache=False)
    return sum(kept.values())


def need(shape: str, cfg: Config, prompt: int) -> dict[str, float]:
    """GB by part, for healing and for sampling; `prompt` tokens before each completion."""
    text = config(shape)
    text.dtype = torch.bfloat16
    with torch.device("meta"):
        model = Gemma3ForCausalLM(text).to(torch.bfloat16)
        blocks, tokens = model.model.layers, prompt + cfg.max_new_tokens
        chosen = band(cfg.lora_blocks, cfg.lora_band, len(blocks), "lora")
        names = [f"model.layers.{i}.{name}" for i in chosen for name, m in blocks[i].named_modules()
                 if isinstance(m, torch.nn.Linear) and name.rpartition(".")[2] in cfg.targets]
        linear = sum(x.weight.numel() for x in blocks.modules() if isinstance(x, torch.nn.Linear))
        total = sum(x.numel() for x in model.parameters())
        layers = lora.wrap(model, names, lora.Gates(cfg.rounds), cfg.r, cfg.alpha).values()
        live = sum(x.live_A.numel() + x.live_B.numel() for x in layers)
        held = activations(model, cfg.batch, tokens)
    bits = NF4_BITS if cfg.quant == "nf4" else 16
    cached = (text.num_hidden_layers + 1) * tokens  # windows whole, and a layer on its way there
    kv = 4 * cfg.batch_rows * cached * text.num_key_value_heads * text.head_dim
    chunk = max(CHUNK_LOGITS, cfg.max_new_tokens * text.vocab_size)
    parts = {"base": linear * bits / 8 + 2 * (total - linear),
             "folded stack": 2 * cfg.rounds * live,
             "live factors, gradients, Adam": 16 * live,
             "activations of a micro-batch": held,
             "logits of a chunk": COPIES * 4 * chunk}
    packed = 2 * linear if cfg.quant == "nf4" else 0
    parts["weights unpacked to train"] = packed * (packed <= SHARE_TRAINING * CARD)
    heal = {name: size / GB for name, size in parts.items()}
    logits = COPIES * 4 * cfg.batch_rows * text.vocab_size
    whole = packed or 2 * sum(x.base.weight.numel() for x in layers)
    whole += parts["folded stack"]  # beside the weights
    whole *= whole <= SHARE * CARD
    sampling = heal["base"] + heal["folded stack"] + (kv + logits + whole) / GB
    return heal | {"healing": sum(heal.values()), "key-value cache": kv / GB,
                   "weights and stack of dense phases": whole / GB, "sampling": sampling}
