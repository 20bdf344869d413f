"""Held-out slot combinations: a combination belongs to train, dev or test by its hash alone.

The assignment depends on the words of the combination and on nothing else (no order, no seed), so
a corpus of any seed never shows a dev or test combination. Every single word still occurs in
training, because each is part of many combinations.
"""

import hashlib
from collections.abc import Callable
from typing import Literal, TypeVar

Split = Literal["train", "dev", "test"]
T = TypeVar("T")


def split_of(*words: str) -> Split:
    """80 / 10 / 10 by hash of the words."""
    digest = hashlib.blake2b("|".join(words).encode(), digest_size=8).digest()
    bucket = int.from_bytes(digest, "big") % 10
    return "train" if bucket < 8 else "dev" if bucket == 8 else "test"


def redraw(draw: Callable[[], T], key: Callable[[T], tuple[str, ...]], split: Split) -> T:
    """Draw until the drawn thing's key falls into `split`."""
    while True:
        thing = draw()
        if split_of(*key(thing)) == split:
            return thing
