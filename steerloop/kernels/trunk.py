"""A decoder as a function: ids → the hidden states that an output head reads.

Letters: b rows, t tokens, T tokens with those in the cache, d width.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from steerloop.kernels.caches import cached


class Trunk:
    """`decoder` under the positions that a mask says."""

    def __init__(self, decoder: PreTrainedModel) -> None:
        self.decoder = decoder

    def __call__(
        self, ids: Int[Tensor, "b t"], mask: Bool[Tensor, "b T"], cache: Cache | None = None
    ) -> Float[Tensor, "b t d"]:
        """Final hidden states. `mask` spans cache and ids; its true entries count positions."""
        place = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        return self.decoder(input_ids=ids, attention_mask=mask.long(), position_ids=place,
                            **cached(self.decoder, cache)).last_hidden_state
