"""Find and load a model, wrap its projections, and hold the one road from text to probabilities:

render (text → prompt ids) · batches (ids → Batch) · trunk, hidden (→ states) · head (→ logits)

Letters: b rows, t tokens, T tokens with those in the cache, n predictions, d width, v vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import polars as pl
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from steerloop import lora
from steerloop.config import Config
from steerloop.kernels.batch import Batch, Ids, collate, pad
from steerloop.kernels.caches import cached
from steerloop.kernels.decode import Rows
from steerloop.kernels.dense import Dense
from steerloop.kernels.graphs import Eager, steps
from steerloop.kernels.hardware import hardware
from steerloop.kernels.head import Head
from steerloop.loading.chat import Chat
from steerloop.loading.fit import check_fit, output_head
from steerloop.loading.layers import band, projections
from steerloop.loading.weights import load_weights, stop_ids


@dataclass
class Model(Chat):
    """A wrapped language model: the untouched base, the gated stack, and (Chat) how to talk to it:
    `render` a prompt, text `to_ids`, ids `to_text`."""

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
        out = self.decoder(input_ids=ids, attention_mask=mask.long(), position_ids=place,
                           **cached(self.decoder, cache))
        return out.last_hidden_state

    def hidden(self, batch: Batch) -> Float[Tensor, "n d"]:
        """The hidden states from which the completion tokens of a batch are predicted."""
        return rearrange(self.trunk(batch.ids, batch.mask), "b t d -> (b t) d")[batch.positions]

    @contextmanager
    def hooked(self, hooks: dict[int, Callable[[Tensor], Tensor]]) -> Iterator[None]:
        """While open, the output h (b, t, d) of each of these blocks becomes f(h); every hook is
        removed on any exit. Older versions of the library return a tuple that starts with h."""

        def run(block: nn.Module, inputs: Any, out: Any, f: Callable[[Tensor], Tensor]) -> Any:
            return (f(out[0]), *out[1:]) if isinstance(out, tuple) else f(out)

        handles = [self.decoder.layers[block].register_forward_hook(partial(run, f=f))
                   for block, f in hooks.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def steps(self, rows: Rows) -> Eager:
        """Logits of the next token of each row, step after step, from the states of `trunk`."""
        moving = None if self.gates.value is None or self.gates.fixed else self.gates
        return steps(self.decoder, self.trunk, self.head, rows, moving)

    def pad(self, rows: Ids) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
        """Prompts → left-padded ids and mask: they end together, ready to be continued."""
        return pad(rows, self.stop_ids[0], self.device, left=True)

    def batch(self, prompts: Ids, completions: Ids, doses: list[float] | None = None) -> Batch:
        """Prompts, completions and doses (units of the vector) → what `hidden` takes."""
        return collate(prompts, completions, doses, self.stop_ids[0], self.device)

    def batches(self, table: pl.DataFrame, size: int) -> Iterator[Batch]:
        """The same of a table with prompt_ids, completion_ids and dose, `size` rows at a time."""
        for part in table.select("prompt_ids", "completion_ids", "dose").iter_slices(size):
            yield self.batch(*(column.to_list() for column in part))

    def told(self, persona: str) -> "Model":
        """The same model, weights and gates shared, under a system text for prompts without one."""
        return replace(self, persona=persona)


def load(cfg: Config) -> Model:
    """Load weights and tokenizer, freeze and wrap: the student starts as the base, exactly.

    Raises UserError when the model is not found or does not fit, or a target is not in it.
    """
    device = hardware(cfg.device, cfg.threads)
    tokenizer, hf = load_weights(cfg.model, cfg.dtype, cfg.attn, cfg.quant, device)
    decoder = hf.get_decoder()
    blocks = band(cfg.lora_blocks, cfg.lora_band, len(decoder.layers), "lora")
    names = projections(hf, decoder.layers, blocks, cfg.targets)
    gates = lora.Gates(cfg.rounds)
    layers = lora.wrap(hf, names, gates, cfg.r, cfg.alpha)
    dense = Dense(hf, layers, gates, cfg.decode)
    model = Model(tokenizer, stop_ids(hf), hf, decoder, output_head(hf), gates, layers, dense,
                  device)
    check_fit(cfg.model, model)
    return model
