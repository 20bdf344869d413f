"""Decoding from a recorded graph gives the tokens of decoding step by step. There is no GPU here:
recording is replaced by a function that runs the step again into the same tensor, so that buffers,
masks, positions and rows that end are the real ones."""

from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import pairwise
from weakref import WeakKeyDictionary

import pytest
import torch

from steerloop.checks.check_sample import LONG
from steerloop.checks.families import DENSE, save_family
from steerloop.checks.small import Small, small_config
from steerloop.kernels import graphs
from steerloop.kernels.decode import generate, pick
from steerloop.readouts.forced_choice import choices
from steerloop.sample import in_flight, jobs, sample
from steerloop.texts.data import read_data

PROMPTS = ["Why?", "Must I go to the old town hall today, or may I stay at home with you?", "So."]
DOSES = [0.0, 0.5, 2.0]


@pytest.fixture
def recorded(monkeypatch):
    """As if the device had graphs; the batch sizes that were recorded."""
    sizes = []
    monkeypatch.setattr(graphs, "recordable", lambda _: True)
    monkeypatch.setattr(graphs, "repeatable", recorded_by(sizes))
    monkeypatch.setattr(graphs, "refused", WeakKeyDictionary())
    return sizes


def recorded_by(sizes):
    """Recording as above, of which `sizes` hears."""

    def repeatable(run, device):
        run()
        run()  # as libraries are warmed up
        out = run()
        sizes.append(len(out))
        return lambda: out.copy_(run()), out

    return repeatable


def drawn(s, stops=True):
    table = jobs(s.model, PROMPTS, DOSES)
    return sample(s.model, table, s.vector(), s.cfg, "0|test", stops=stops)["completion_ids"]


@pytest.mark.parametrize("family", DENSE)
def check_a_graph_decodes_what_steps_decode(family, tmp_path, monkeypatch, recorded):
    """Steered rows of several lengths, past the window, ending at different times."""
    s = Small(small_config(save_family(tmp_path / "m", family), quant="none", **LONG))
    found = drawn(s)
    assert recorded and recorded == sorted(recorded, reverse=True)
    assert all(b <= a // 2 for a, b in pairwise(recorded))
    assert len(set(map(len, found))) > 1
    monkeypatch.setattr(graphs, "recordable", lambda _: False)
    assert drawn(s).to_list() == found.to_list()


@pytest.mark.parametrize("think", [0, graphs.PAYS])
def check_a_graph_evaluates_as_steps_do(small, think, monkeypatch, recorded):
    """What is decoded is forked, and followed by an ending: the cache flows again."""
    s = small(think_tokens=think)
    asked = read_data(s.cfg).vignettes.head(6)
    found = choices(s.model, asked, s.cfg)
    assert bool(recorded) is True  # the free answer has as many tokens, whatever the thought
    monkeypatch.setattr(graphs, "recordable", lambda _: False)
    wanted = choices(s.model, asked, s.cfg)
    for name in ("p_care", "p_authority", "p_ans_any", "scaffold_nll", "json_is_valid"):
        assert found[name].to_list() == pytest.approx(wanted[name].to_list(), abs=1e-5)


def check_what_cannot_be_recorded_is_tried_once_said_once_and_decoded(
    small, monkeypatch, recorded
):
    """The cause counts, not what the recording says when it breaks off."""
    said, tried, s = [], [], small(**LONG)
    wanted = drawn(s).to_list()

    def repeatable(run, device):
        tried.append(run())
        try:
            raise RuntimeError("a called synchronizing CUDA operation\nand more")
        except RuntimeError:
            raise RuntimeError("due to a previous error during capture")  # noqa: B904, as torch does

    monkeypatch.setattr(graphs, "repeatable", repeatable)
    monkeypatch.setattr(graphs.logger, "warning", said.append)
    assert drawn(s).to_list() == wanted == drawn(s).to_list()
    assert len(said) == 1 and len(tried) == len(set(map(len, tried)))  # each batch once
    assert "synchronizing" in said[0] and "\n" not in said[0]
    assert f"({__file__}:" in said[0]  # and where

    monkeypatch.setattr(graphs, "repeatable", recorded_by(recorded))
    fewer = jobs(s.model, PROMPTS, DOSES[:1])  # another batch may do what that one could not
    sample(s.model, fewer, s.vector(), s.cfg, "0|test")
    assert recorded and len(said) == 1


@pytest.mark.parametrize("decode", ["nf4", "dense"])
def check_gates_in_the_layers_are_recorded(small, monkeypatch, recorded, decode):
    """One vector for all; and one a row, whose rows leave at different times."""
    s = small(decode=decode, **LONG)
    s.stir(seed=0)
    s.fold()
    s.stir(seed=1)
    s.fold()
    gates = s.model.gates

    def mixed():
        rows = in_flight(s.model, jobs(s.model, PROMPTS, DOSES), s.cfg, "0|test")
        choose = partial(pick, temperature=1.0, k=64, p=1.0)
        each = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0]]).repeat(3, 1)
        with torch.no_grad(), gates(each):
            rows.gates = gates
            step = graphs.steps(s.model.trunk, s.model.head, rows)
            return generate(step, rows, choose, s.model.stop_ids)

    def shut():
        with torch.no_grad(), gates(gates.before(1)):
            return drawn(s).to_list()

    found = mixed(), shut()
    assert recorded and len(set(map(len, found[0]))) > 1
    monkeypatch.setattr(graphs, "recordable", lambda _: False)
    assert found == (mixed(), shut())
    assert gates.value is None


def check_few_steps_and_caches_of_other_kinds_are_not_recorded(small, monkeypatch, recorded):
    said, s = [], small(**LONG)
    monkeypatch.setattr(graphs.logger, "warning", said.append)
    table = jobs(s.model, PROMPTS, DOSES)
    sample(s.model, table, {}, replace(s.cfg, max_new_tokens=graphs.PAYS - 1), "0|test")
    assert not recorded and not said
    monkeypatch.setattr(graphs, "KNOWN", ())
    drawn(s)
    assert not recorded and len(said) == 1 and "cache" in said[0]


def check_caches_go_there_and_back(small):
    """Bit for bit, before and after the window is full."""
    s = small()
    for length in (5, 40):
        ids = torch.randint(10, 100, (2, length))
        cache = graphs.empty_cache(s.model.hf)
        with torch.no_grad():
            s.model.trunk(ids, ids >= 0, cache)
            whole = deepcopy(cache)
            back = graphs.flowing(graphs.fixed(cache, length, length + 7), length, s.model.hf)
        for a, b in zip(whole.layers, back.layers, strict=True):
            assert torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)
            assert a.get_seq_length() == b.get_seq_length() == length
