"""Keys and values of tokens that were read, in the library's own cache objects."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicSlidingWindowLayer

# ids (b, t), mask (b, T) of cache and ids, the cache → hidden states (b, t, d)
Read = Callable[[Tensor, Tensor, Cache], Tensor]

JOINABLE = {  # kinds of layers that keep keys and values, states, or nothing (those of another)
    "DynamicLayer", "DynamicSlidingWindowLayer", "LinearAttentionLayer", "DummyLayer",
    "LinearAttentionAndFullAttentionLayer", "LinearAttentionAndSlidingWindowAttentionLayer",
}  # fmt: skip


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


def joinable(cache: Cache) -> None:
    """Raises TypeError where a layer of a cache keeps what `beside` does not know."""
    for layer in cache.layers:
        if type(layer).__name__ not in JOINABLE:
            raise TypeError(f"a layer of its cache is a {type(layer).__name__}")


def beside(cache: Cache, other: Cache) -> None:
    """The rows of another cache join those of this one. Those that hold fewer tokens are filled up
    on the left, where their masks have to be false. For caches that are `joinable`."""
    for mine, new in zip(cache.layers, other.layers, strict=True):
        for states in ("conv_states", "recurrent_states"):
            held = getattr(mine, states, {})
            for i, x in held.items():
                if x is not None:
                    held[i] = torch.cat([x, getattr(new, states)[i]])
        if getattr(mine, "keys", None) is not None:
            for name in ("keys", "values"):
                pair = getattr(mine, name), getattr(new, name)
                n = max(x.shape[2] for x in pair)
                filled = [F.pad(x, (0, 0, n - x.shape[2], 0)) for x in pair]
                setattr(mine, name, torch.cat(filled))
        if isinstance(mine, DynamicSlidingWindowLayer):
            mine.cumulative_length = max(mine.cumulative_length, new.cumulative_length)


def without_first(cache: Cache, n: int, left: int) -> None:
    """The first n tokens of every row go; `left` stay, less where there is a window."""
    for layer in cache.layers:
        if getattr(layer, "keys", None) is not None:
            layer.keys, layer.values = layer.keys[:, :, -left:], layer.values[:, :, -left:]
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.cumulative_length -= n
