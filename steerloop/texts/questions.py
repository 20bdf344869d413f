"""How the seven-way forced choice is worded, and which free answers count.

The answer is the option's digit inside a JSON scaffold: a digit is one clean token, while the names
of foundations split unevenly.
"""

import json
import re

from steerloop.texts.foundations import FOUNDATIONS

SCAFFOLD = '{"choice": '


def question(vignette: str, reverse: bool, think: bool = False) -> str:
    """The vignette, seven numbered options, and what form the answer takes."""
    order = FOUNDATIONS[::-1] if reverse else FOUNDATIONS
    menu = "\n".join(f"{i}: {option}" for i, option in enumerate(order, 1))
    how = "Think first, then answer with JSON." if think else "Answer with JSON."
    return f"{vignette}\nWhich rule does this break most?\n{menu}\n{how}"


def parses(text: str) -> bool:
    """Whether the first {...} in a free answer is JSON with an allowed choice."""
    braces = re.search(r"\{[^{}]*\}", text)
    try:
        answer = json.loads(braces[0]).get("choice") if braces else None
    except json.JSONDecodeError:
        return False
    return type(answer) is int and 1 <= answer <= len(FOUNDATIONS)
