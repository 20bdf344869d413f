"""The seven-way forced choice: how it is asked, and how its answers are read.

The answer is the option's digit inside a JSON scaffold: a digit is one clean token, while the names
of foundations split unevenly. Asked in both option orders, position and digit priors cancel.

Letters: v vignettes, b rows (v × 2 orders, forward and reversed in turn), f foundations.
"""

import json
import re
from collections.abc import Callable

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from steerloop import UserError
from steerloop.kernels.foundations import FOUNDATIONS

SCAFFOLD = '{"choice": '


def question(vignette: str, reverse: bool, think: bool = False) -> str:
    """The vignette, seven numbered options, and what form the answer takes."""
    order = FOUNDATIONS[::-1] if reverse else FOUNDATIONS
    menu = "\n".join(f"{i}: {option}" for i, option in enumerate(order, 1))
    how = "Think first, then answer with JSON." if think else "Answer with JSON."
    return f"{vignette}\nWhich rule does this break most?\n{menu}\n{how}"


def answers(encode: Callable[[str], list[int]], think: bool) -> list[list[int]]:
    """Token ids of the scaffold with each digit in turn; they differ in the last token alone.

    Raises UserError where the tokenizer does not give the digit a token of its own.
    """
    scaffold = encode(prefix := "\n" * think + SCAFFOLD)
    ends = [encode(f"{prefix}{i}") for i in range(1, len(FOUNDATIONS) + 1)]
    if any(ids[:-1] != scaffold for ids in ends):
        raise UserError("this model's tokenizer: the answer digit is not a token of its own")
    return ends


def parses(text: str) -> bool:
    """Whether the first {...} in a free answer is JSON with an allowed choice."""
    found = re.search(r"\{[^{}]*\}", text)
    try:
        answer = json.loads(found[0]).get("choice") if found else None
    except json.JSONDecodeError:
        return False
    return type(answer) is int and 1 <= answer <= len(FOUNDATIONS)


def both_orders(logp: Float[Tensor, "b f"]) -> Float[Tensor, "v f"]:
    """Log-probabilities of the digits → p per foundation, renormalised over the seven."""
    forward, backward = rearrange(logp, "(v o) f -> o v f", o=2)
    return ((forward + backward.flip(-1)) / 2).softmax(-1)
