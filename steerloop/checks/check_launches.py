"""What is counted in the place of launches on a GPU, and what two ranks are raced by."""

import pytest
import torch

from steerloop.bench import launches, ranks
from steerloop.bench.__main__ import figures, options
from steerloop.config import parse


def check_the_counter_takes_a_kernel_for_one():
    """A chain of elementwise operations is one, a product another, whatever it is called with."""
    made = launches.Made()
    run = made.compiled(lambda x, y: (x.exp() * 2 + 1).sin() @ y, torch.zeros(1))
    for n in (3, 5):
        run(torch.randn(n, 4), torch.randn(4, n))
    assert made.launched == 4


@pytest.mark.long
def check_a_step_launches_less_than_it_did():
    found = figures(options(["launches", "--shape", "tiny"]))
    for step in ("decoding_step", "optimiser_step"):
        assert 0 < found[step]["now"] < 0.4 * found[step]["first"], found
    assert found["decoding_step"]["now"] > found["linear_layers"]


@pytest.mark.long
def check_two_ranks_are_raced_with_one():
    cfg = parse(["--model", "embedded", "--device", "cpu"])
    found = ranks.run(cfg, 1, ["sampling"])["work"]["sampling"]
    assert found["seconds"].keys() == ranks.MODES.keys()
    assert all(x > 0 for x in found["seconds"].values())
