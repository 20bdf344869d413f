"""How many random inputs a property is tried on: a fifth in the gate, all of them under
STEERLOOP_MANY=1, as `just gate-long` has it."""

import os

PART = 1 if os.environ.get("STEERLOOP_MANY") else 5


def many(count: int) -> int:
    """Of so many inputs, how many now."""
    return max(1, count // PART)
