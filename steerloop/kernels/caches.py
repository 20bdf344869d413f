"""Keys and values of tokens that were read, in the library's own cache objects."""

from collections.abc import Callable
from inspect import signature
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

# ids (b, t), mask (b, T) of cache and ids, the cache → hidden states (b, t, d)
Read = Callable[[Tensor, Tensor, Cache], Tensor]


def empty_cache(hf: PreTrainedModel) -> DynamicCache:
    """A key-value cache of a model's kind, nothing in it."""
    return DynamicCache(config=hf.config.get_text_config())


def arrange(cache: Cache, rows: Int[Tensor, "k"]) -> None:
    """Row i of a cache becomes what row rows[i] was: rows leave it, or go on as several.

    The library's batch_select_indices and batch_repeat_interleave know keys and values alone, not
    the states of linear attention.
    """
    cache.reorder_cache(rows)


def cached(decoder: nn.Module, cache: Cache | None) -> dict[str, Any]:
    """How this decoder is handed its cache: older versions of the library say past_key_values."""
    name = "cache" if "cache" in signature(decoder.forward).parameters else "past_key_values"
    return {"use_cache": cache is not None, name: cache}
