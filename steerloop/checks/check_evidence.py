"""What verdicts.md rests on: KL to base and the direction of the student by slow twins, and a
filter that is judged on completions of which is known whether they are coherent."""

from dataclasses import replace

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steerloop import lora
from steerloop.checks.many import many
from steerloop.checks.small import Small, completions, data_files
from steerloop.checks.twins import dense_kl, row_logits
from steerloop.evidence.drift import BEFORE, BINS, PLACE, drift, histogram, moved, worst
from steerloop.evidence.planted import KINDS, ROWS, planted
from steerloop.report.stats import wilson
from steerloop.texts.data import read_data


@pytest.fixture
def case(small, tmp_path):
    """A student of one round, and its data."""
    s = small(**data_files(tmp_path))
    s.stir(seed=0)
    s.fold()
    lora.open_round(s.model.layers, s.model.gates, 0)
    return s, read_data(s.cfg)


def check_kl_to_base_is_its_dense_twin(case):
    s, data = case
    table, bare, kls = completions(5), s.bare(), []
    for p, c in table.select("prompt_ids", "completion_ids").rows():
        at = slice(len(p) - 1, len(p) + len(c) - 1)
        student, base = (row_logits(hf, p + c)[at].log_softmax(-1) for hf in (s.model.hf, bare))
        kls += dense_kl(student, base).tolist()
    found, *_ = drift(s.model, table, data, s.cfg, s.vector())
    assert found["kl_base"] == pytest.approx(sum(kls) / len(kls), rel=1e-3) and min(kls) > 0
    assert s.model.gates.value is None


def check_the_students_shift_is_that_of_its_hidden_states(case):
    s, data = case
    found, bare = moved(s.model, data.contexts, [2, 3], size=2), s.bare()
    for block, shift in found.items():
        total = 0
        for text in data.contexts:
            ids = torch.tensor([s.model.render(text)])
            with torch.no_grad():
                now, was = (hf(input_ids=ids, output_hidden_states=True).hidden_states[block + 1]
                            for hf in (s.model.hf, bare))
            total = total + (now - was)[0, -1]
        assert torch.allclose(shift, total / len(data.contexts), atol=1e-4)
        assert shift.norm() > 0.01
    along, *_ = drift(s.model, completions(3), data, s.cfg, found)
    turned = {b: -v for b, v in found.items()}
    against, *_ = drift(s.model, completions(3), data, s.cfg, turned)
    assert along["cos_teacher"] == pytest.approx(1, abs=1e-5)
    assert against["cos_teacher"] == pytest.approx(-1, abs=1e-5)


@pytest.mark.parametrize("ref", ["base", "prev"])
def check_the_worst_tokens_are_found_by_hand(case, monkeypatch, ref):
    """Against base, or the student before the round: the library's own logits, a row at a time."""
    s, data = case
    table, before = completions(5), s.bare()
    if ref == "prev":
        before = Small(s.cfg)
        before.stir(seed=0)
        before.fold()
        before, s = before.model.hf, Small(replace(s.cfg, ref=ref))
        for seed in (0, 1):
            s.stir(seed)
            s.fold()
    monkeypatch.setattr("steerloop.evidence.drift.WORST", 7)
    went, found, bins = drift(s.model, table, data, s.cfg, s.vector())
    wanted = {}
    for row, p, c in table.select("row", "prompt_ids", "completion_ids").rows():
        at = slice(len(p) - 1, len(p) + len(c) - 1)
        now, was = (row_logits(hf, p + c)[at].log_softmax(-1) for hf in (s.model.hf, before))
        for i, kl in enumerate(dense_kl(now, was).tolist()):
            wanted[row, i] = kl, c[i], (p + c[:i])[-BEFORE:]
    most = sorted(wanted, key=lambda x: -wanted[x][0])[:7]
    assert found.select("row", "position").rows() == most
    for at, kl, token, ids, said in found.select(
            pl.struct("row", "position"), "kl", "token_id", "before_ids", "before").rows():
        assert (kl, token, ids) == (pytest.approx(wanted[*at.values()][0], rel=1e-3),
                                    *wanted[*at.values()][1:])
        assert said == s.model.to_text(ids, special=True)
    assert bins["reference"].unique(maintain_order=True).to_list() == sorted({"base", ref})
    kls = [kl for kl, *_ in wanted.values()]
    for (reference,), part in bins.partition_by("reference", as_dict=True).items():
        assert part["tokens"].sum() == len(kls)
        mean = part["kl"].sum() / len(kls)
        assert mean == pytest.approx(went["kl_base"], rel=1e-5) or reference == "prev" != mean
    for low, high, n, kl in bins.filter(reference=ref).drop("reference").rows():
        inside = [x for x in kls if (low or -1) <= x < (high or 99)]
        assert abs(n - len(inside)) <= 1 and kl == pytest.approx(sum(inside), abs=0.1)


ROWS_OF_KLS = st.lists(st.lists(st.floats(-0.125, 8192, width=32), max_size=9), min_size=1)


@given(kls=ROWS_OF_KLS)
def check_every_token_is_in_one_bin(kls):
    found, flat = histogram("base", [torch.tensor(x) for x in kls]), [x for r in kls for x in r]
    assert found.schema == BINS and found["high"][:-1].to_list() == found["low"][1:].to_list()
    for _, low, high, n, kl in found.rows():
        inside = [x for x in flat if (low is None or low <= x) and (high is None or x < high)]
        assert n == len(inside) and kl == pytest.approx(sum(inside), abs=1e-9)


@settings(max_examples=many(2500), database=None)
@given(kls=st.lists(st.lists(st.sampled_from([0.0, 0.25, 0.5, 3.0]), max_size=9), min_size=1,
                    max_size=9),
       start=st.integers(0, 9), count=st.integers(1, 20))
def check_the_worst_tokens_of_any_rows(kls, start, count):
    """As many as there are, none outside of the list above one of it, each in its place."""
    table = pl.DataFrame({
        "row": range(start, start + len(kls)), "prompt_ids": [[7] * (start + 1) for _ in kls],
        "completion_ids": [[10 * i + j for j in range(len(x))] for i, x in enumerate(kls)]},
        {"row": pl.Int64, "prompt_ids": pl.List(pl.Int64), "completion_ids": pl.List(pl.Int64)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("steerloop.evidence.drift.WORST", count)
        found = worst(table, [torch.tensor(x) for x in kls], str)
    every = sorted((x for row in kls for x in row), reverse=True)
    assert found["kl"].to_list() == every[:count] and found.schema == PLACE
    for row, at, token, text, kl, before, said in found.rows():
        i = row - start
        assert (kl, token, text) == (kls[i][at], 10 * i + at, str([10 * i + at]))
        assert before == ([7] * (start + 1) + [10 * i + j for j in range(at)])[-BEFORE:]
        assert said == str(before)
    assert len(found.unique(["row", "position"])) == len(found)


def check_planted_faults_are_all_there_and_no_answer_is_touched(world):
    found = planted(world.model, world.data, replace(world.cfg, filter=False), world.limit)
    counts = dict(found.filter(source="planted").group_by("kind").len().rows())
    assert counts == dict.fromkeys(KINDS, ROWS)
    own = found.filter(source="base")
    assert own["coherent"].all() and len(own) == ROWS
    assert not found.filter(source="planted")["coherent"].any()
    assert set(found.filter(kind="empty")["drop_reason"]) == {"empty"}
    assert set(found.filter(kind="refuse")["drop_reason"]) == {"refuses"}
    assert (found.filter(kind="narrate")["drop_reason"] == "narrates").mean() > 0.8
    assert found.equals(planted(world.model, world.data, world.cfg, world.limit))


def check_the_filter_separates_what_was_labelled_by_hand(world):
    """Bounds of U1 on the embedded model: at least 60 labels, both kinds in plenty, and the filter
    with its default settings finds four fifths of the broken ones and is right as often."""
    found = planted(world.model, world.data, world.cfg, world.limit)
    labelled = found.filter(source="labelled")
    assert len(labelled) >= 60 and 0.3 < labelled["coherent"].mean() < 0.7
    broken, dropped = labelled.filter(~pl.col("coherent")), labelled.filter(~pl.col("keep"))
    assert wilson((~broken["keep"]).cast(float).to_numpy())[0] >= 0.8
    assert wilson((~dropped["coherent"]).cast(float).to_numpy())[0] >= 0.8
    assert found.filter(source="planted")["keep"].mean() <= 0.05
    assert found.filter(source="base")["keep"].mean() >= 0.9
