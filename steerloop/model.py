"""Find and load a model, wrap its projections, and hold the one road from text to probabilities:

render (text → prompt ids) · batches (ids → Batch) · trunk, hidden (→ states) · head (→ logits)

Letters: b rows, t tokens, n predictions, d width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from steerloop import lora
from steerloop.config import Config
from steerloop.kernels.batch import Batch, Batching
from steerloop.kernels.dense import Dense
from steerloop.kernels.hardware import hardware
from steerloop.kernels.head import Head
from steerloop.kernels.trunk import Trunk
from steerloop.loading.chat import Chat
from steerloop.loading.fit import check_fit, check_trainable, output_head
from steerloop.loading.given import give_template
from steerloop.loading.layers import projections, trained
from steerloop.loading.room import rows_at_once
from steerloop.loading.weights import load_weights, stop_ids

Change = Callable[[Tensor], Tensor]  # of what a block puts out, (b, t, d)


@dataclass
class Model(Chat, Batching):
    """A wrapped language model: the untouched base, the gated stack; how to talk to it (Chat:
    `render` a prompt, text `to_ids`, ids `to_text`); and rows of ids → tensors (Batching)."""

    hf: PreTrainedModel
    decoder: PreTrainedModel
    trunk: Trunk
    head: Head
    gates: lora.Gates
    layers: lora.Layers
    dense: Dense
    device: torch.device

    def hidden(self, batch: Batch) -> Float[Tensor, "n d"]:
        """The hidden states from which the completion tokens of a batch are predicted."""
        h = self.trunk(batch.ids, batch.mask)
        return rearrange(h, "b t d -> (b t) d")[batch.positions]

    @contextmanager
    def hooked(self, hooks: dict[int, Change]) -> Iterator[None]:
        """While open, the output h (b, t, d) of each of these blocks becomes f(h); every hook is
        removed on any exit. Older versions of the library return a tuple that starts with h."""

        def run(block: nn.Module, inputs: Any, out: Any, f: Change) -> Any:
            if isinstance(out, tuple):
                return (f(out[0]), *out[1:])
            return f(out)

        blocks = self.decoder.layers
        handles = [blocks[i].register_forward_hook(partial(run, f=f)) for i, f in hooks.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def load(cfg: Config) -> Model:
    """Load weights and tokenizer, freeze and wrap: the student starts as the base, exactly. Sets
    `batch` and `batch_rows` of cfg where they are 0.

    Raises UserError when the model is not found or does not fit, or a target is not in it.
    """
    device = hardware(cfg.device, cfg.threads)
    tokenizer, hf = load_weights(cfg.model, cfg.dtype, cfg.attn, cfg.quant, device)
    give_template(tokenizer, cfg.template)
    decoder = hf.get_decoder()
    blocks = trained(cfg, len(decoder.layers))  # a wrong choice is said at once
    check_trainable(hf, cfg.checkpointing)
    names = projections(hf, decoder.layers, blocks, cfg.targets)
    gates = lora.Gates(cfg.rounds, device)
    layers = lora.wrap(hf, names, gates, cfg.r, cfg.alpha)
    dense = Dense(hf, layers, gates, cfg.decode)
    trunk, head = Trunk(decoder), output_head(hf)
    model = Model(tokenizer, stop_ids(hf), hf, decoder, trunk, head, gates, layers, dense, device)
    return rows_at_once(check_fit(cfg.model, model), cfg)
