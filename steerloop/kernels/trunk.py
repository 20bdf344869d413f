"""A decoder as a function: ids → the hidden states that an output head reads.

Letters: b rows, t tokens, T tokens with those in the cache, d width.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from steerloop.kernels.caches import cached


class Trunk:
    """`decoder` under the positions that a mask says. Where its cache goes on rightly one token at
    a time alone, `stepwise` has to be set (loading/trial.py finds out)."""

    def __init__(self, decoder: PreTrainedModel) -> None:
        self.decoder, self.stepwise = decoder, False

    def __call__(
        self, ids: Int[Tensor, "b t"], mask: Bool[Tensor, "b T"], cache: Cache | None = None,
        place: Int[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b t d"]:  # fmt: skip
        """Final hidden states. `mask` spans cache and ids; its true entries count positions, where
        no `place` says them."""
        t = ids.shape[1]
        if self.stepwise and 1 < t < mask.shape[1]:
            ends = range(mask.shape[1] - t + 1, mask.shape[1] + 1)
            steps = zip(ids.split(1, dim=1), ends, strict=True)
            return torch.cat([self(x, mask[:, :T], cache) for x, T in steps], dim=1)
        if place is None:
            place = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -t:]
        if cache is not None and all(cache.is_linear):
            mask = mask[:, -t:]  # no keys that could be masked
        out = self.decoder(input_ids=ids, attention_mask=mask.long(), position_ids=place,
                           **cached(self.decoder, cache))
        return out.last_hidden_state.to(self.decoder.dtype)  # Mamba's residual stream is in fp32
