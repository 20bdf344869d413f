"""How much the gate tries, the rest being for gate-long: a fifth of a property's random inputs (all
of them under STEERLOOP_MANY=1), and some whole runs on a dense base alone."""

import os

import pytest

PART = 1 if os.environ.get("STEERLOOP_MANY") else 5
nf4_is_long = pytest.mark.parametrize(
    "small", ["none", pytest.param("nf4", marks=pytest.mark.long)], indirect=True)


def many(count: int) -> int:
    """Of so many inputs, how many now."""
    return max(1, count // PART)
