"""Find and load a model, wrap its projections, and hold the one road from text to probabilities:

render (text → prompt ids) · batches (ids → Batch) · trunk, hidden (→ states) · head (→ logits)

Letters: b rows, t tokens, T tokens with those in the cache, n predictions, d width, v vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from steerloop import lora
from steerloop.config import Config
from steerloop.kernels.batch import Batch, Ids, batches, pad
from steerloop.kernels.chat import Chat
from steerloop.kernels.dense import Dense
from steerloop.kernels.fused_loss import Head
from steerloop.kernels.hardware import hardware
from steerloop.kernels.options import band, projections
from steerloop.kernels.weights import cached, check_fit, load_weights, stop_ids


@dataclass
class Model(Chat):
    """A wrapped language model: the untouched base, the gated stack, and (Chat) how to talk to it:
    `render` a prompt, `encode` and `decode` text."""

    hf: PreTrainedModel
    decoder: nn.Module
    head: Head
    gates: lora.Gates
    layers: lora.Layers
    dense: Dense
    device: torch.device

    def trunk(
        self, ids: Int[Tensor, "b t"], mask: Bool[Tensor, "b T"], cache: Cache | None = None
    ) -> Float[Tensor, "b t d"]:
        """Final hidden states. `mask` spans cache and ids; its true entries count positions."""
        place = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        return self.decoder(input_ids=ids, attention_mask=mask.long(), position_ids=place,
                            **cached(self.decoder, cache)).last_hidden_state

    def hidden(self, batch: Batch) -> Float[Tensor, "n d"]:
        """The hidden states from which the completion tokens of a batch are predicted."""
        return rearrange(self.trunk(batch.ids, batch.mask), "b t d -> (b t) d")[batch.positions]

    def pad(self, rows: Ids) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
        """Prompts → left-padded ids and mask: they end together, ready to be continued."""
        return pad(rows, self.stop_ids[0], self.device, left=True)

    def batches(self, columns: tuple[Ids, Ids, list[float]], size: int) -> Iterator[Batch]:
        """Prompts, completions and doses in order, `size` rows at a time."""
        return batches(columns, size, self.stop_ids[0], self.device)


def load(cfg: Config) -> Model:
    """Load weights and tokenizer, freeze and wrap: the student starts as the base, exactly.

    Raises UserError when the model is not found or does not fit, or a target is not in it.
    """
    device = hardware(cfg.device, cfg.threads)
    tokenizer, hf = load_weights(cfg.model, cfg.dtype, cfg.attn, cfg.quant, device)
    decoder, config = hf.get_decoder(), hf.config.get_text_config()
    chosen = band(cfg.lora_blocks, cfg.lora_band, len(decoder.layers), "lora")
    names = projections(hf, decoder.layers, chosen, cfg.targets)
    cap = getattr(config, "final_logit_softcapping", None)
    head = Head(hf.get_output_embeddings().weight, cap)
    layers = lora.wrap(hf, names, gates := lora.Gates(cfg.rounds), cfg.r, cfg.alpha)
    dense = Dense(hf, layers, gates, cfg.decode)
    model = Model(tokenizer, stop_ids(hf), hf, decoder, head, gates, layers, dense, device)
    check_fit(cfg.model, model)
    return model
