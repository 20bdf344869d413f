"""A compiled block decodes what the library's blocks decode, compiled a few times for all of them.
As in check_graphs.py, recording is replaced by running the step again."""

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from steerloop.checks.check_graphs import drawn, recorded  # noqa: F401, a fixture
from steerloop.checks.check_sample import LONG
from steerloop.checks.families import DENSE, save_family
from steerloop.checks.small import Small, small_config
from steerloop.kernels import graphs, hardware
from steerloop.kernels.blocks import one_block

MOST = 6  # compilations of a decoding: with a window or not, trained or not, one row or several


@pytest.fixture
def small_family(tmp_path, monkeypatch):
    """A small student of a family, whose decoding is long; nothing was compiled before."""
    torch._dynamo.reset()
    hardware._compiled.cache_clear()

    def open_(family, **fields):
        path = save_family(tmp_path / family, family)
        s = Small(small_config(path, **{"quant": "none", "dtype": "float32", **fields, **LONG}))
        s.stir(seed=0)
        s.fold()
        monkeypatch.setattr(graphs, "LONG", s.cfg.max_new_tokens)
        return s

    return open_


def kept_compiled(decoder, sizes):
    """Recording as check_graphs.py has it, but what is repeated runs from the compiled block: a
    real graph keeps its kernels."""
    def repeatable(run, device):
        run()
        out = run()
        sizes.append(len(out))

        def replay():
            with one_block(decoder):
                out.copy_(run())

        return replay, out

    return repeatable


def graphs_made():
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("family", [
    "gemma3", *(pytest.param(x, marks=pytest.mark.long) for x in DENSE if x != "gemma3")])
def check_one_block_decodes_what_all_decode(family, small_family, monkeypatch, recorded):  # noqa: F811
    """Steered rows of several lengths, past the window, ending at different times."""
    s, before = small_family(family), graphs_made()
    assert not hardware.compiler("cpu")  # else this compared the same with the same
    plain = graphs.repeatable
    monkeypatch.setattr(graphs, "repeatable", kept_compiled(s.model.decoder, recorded))
    found = drawn(s).to_list()
    assert recorded and 0 < graphs_made() - before <= MOST
    monkeypatch.setattr(graphs, "LONG", 10**6)
    monkeypatch.setattr(graphs, "repeatable", plain)
    wanted = drawn(s).to_list()
    assert sum(a != b for a, b in zip(found, wanted, strict=True)) <= 1  # a draw on a boundary


def check_few_tokens_are_not_compiled_for(small_family, monkeypatch, recorded):  # noqa: F811
    s, before = small_family("llama3"), graphs_made()
    monkeypatch.setattr(graphs, "LONG", s.cfg.max_new_tokens + 1)
    drawn(s)
    assert recorded and graphs_made() == before


def check_a_block_that_cannot_be_compiled_is_said_once(small_family, monkeypatch, recorded):  # noqa: F811
    said, s = [], small_family("llama3")

    def broken(block, *given, **named):
        raise RuntimeError("no such instruction\nand more")

    monkeypatch.setattr("steerloop.kernels.blocks.compiled", lambda f, like: broken)
    monkeypatch.setattr(graphs.logger, "warning", said.append)
    found = drawn(s).to_list()
    assert recorded and len(said) == 1 and "compiled: no such instruction (" in said[0]
    monkeypatch.setattr(graphs, "LONG", 10**6)
    assert drawn(s).to_list() == found


def check_blocks_are_as_they_were_whatever_happens():
    decoder = nn.Module()
    decoder.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
    forwards = [block.forward for block in decoder.layers]
    with pytest.raises(KeyboardInterrupt), one_block(decoder):
        assert decoder.layers[0].forward != forwards[0]
        raise KeyboardInterrupt
    assert [block.forward for block in decoder.layers] == forwards
