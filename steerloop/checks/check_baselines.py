"""Baselines: measured on the same items in the same run, compared at the same shift or not."""

import json
import math
from dataclasses import replace

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from steerloop import dose, lora, train
from steerloop.baselines import Headline, dose_for, strength_for, turned
from steerloop.checks.many import nf4_is_long
from steerloop.checks.small import data_files, short_run, small_config
from steerloop.checks.synthetic import tilted, write_run
from steerloop.readouts.forced_choice import choices
from steerloop.report import finish
from steerloop.report.rivals import PPL, outcomes, sides
from steerloop.report.text import inline
from steerloop.texts.data import read_data
from steerloop.texts.faults import starved


@pytest.fixture
def folder(small, tmp_path):
    """A short run with `--baselines`."""
    return short_run(tmp_path, small().cfg, baselines=True)


@nf4_is_long
def check_every_baseline_is_measured_on_the_same_vignettes(folder):
    events = [json.loads(x) for x in (folder / "events.jsonl").read_text().splitlines()]
    states = {e["state"]: e for e in events if e["stage"] == "evaluate" and e["round"] == 1}
    assert {"healed", "calibrated", "prompted", "matched", "nll", "taught"} <= set(states)
    first = next(e["c_star"] for e in events if e["stage"] == "sample")
    assert states["matched"]["dose"] <= first * (1 + 1e-9)  # the largest multiple is 1
    assert states["calibrated"]["dose"] == first and states["prompted"]["dose"] == 0
    base = pl.read_parquet(folder / "rounds/00/base.eval.parquet")
    for name in states:
        rows = pl.read_parquet(folder / f"rounds/01/{name}.eval.parquet")
        assert rows["vignette"].to_list() == base["vignette"].to_list()
        assert rows["p_care"].to_list() != base["p_care"].to_list()
    for name in ("nll", "taught"):
        assert [e["round"] for e in events if e["stage"] == f"heal_{name}"] == [0, 1]
    rows = pl.read_parquet(folder / "rounds/01/taught.completions.parquet")
    assert set(rows["dose"]) == {0.0} and rows["train"].sum() == 4
    summary = json.loads((folder / "summary.json").read_text())
    assert [x["rival"] for x in summary["rivals"]] == ["steering", "nll", "taught", "prompt"]


def check_a_rival_without_completions_does_not_end_the_run(folders, tmp_path, monkeypatch):
    def short(batches, kappas, cfg):
        if cfg.teacher == "prompt":
            raise starved(pl.DataFrame({"keep": [False], "drop_reason": ["narrates"]}), 4)
        return dose.short(batches, kappas, cfg)

    stages = [short if x is dose.short else x for x in train.STAGES]
    monkeypatch.setattr(train, "STAGES", stages)
    run = short_run(tmp_path, small_config(folders(), quant="none"), baselines=True, rounds=1)
    assert "no taught beside this run: the filter is starved" in (run / "log.txt").read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["ended"] and [x["rival"] for x in summary["rivals"]] == [
        "steering", "nll", "prompt"]


def check_the_persona_is_the_system_prompt(small):
    model = small().model
    plain, system = model.render("Why?"), model.render("Why?", "You are kind.")
    told = replace(model, persona="You are kind.")
    assert told.render("Why?") == system != plain
    assert told.render("Why?", "You are bold.") == model.render("Why?", "You are bold.")
    assert model.render("Why?") == plain and told.gates is model.gates  # one model, told or not


def check_gates_are_turned_to_a_shift(small, tmp_path):
    s = small(**data_files(tmp_path))
    data = read_data(s.cfg)

    def level(strength):
        with torch.no_grad(), s.model.gates(turned(s.model, strength)):
            rows = choices(s.model, data.vignettes, s.cfg, free=False)
        return -math.log(rows["p_authority"].mean())

    for seed in range(9):  # a random Δ moves authority either way: take one that moves it down
        s.stir(seed, size=0.02)
        if level(1.0) > level(0.5) > level(0.0):
            break
    else:
        raise AssertionError("no seed moves authority down")
    goal = level(0.4)
    found = strength_for(s.model, Headline("digits", data, s.cfg), level(0.0), goal)
    assert level(found) == pytest.approx(goal, abs=0.02)


@pytest.mark.long
def check_the_plain_rival_is_a_run_without_a_barrier(folders, tmp_path, monkeypatch):
    """After its first round it is, bit for bit, what `--barrier nll` heals from the same data."""
    saved = []
    monkeypatch.setattr(train, "fold", lambda *a: saved.append(a[2]) or lora.fold(*a))
    cfg = small_config(folders(), quant="none", coh_drop=1.0, tau_share=0.0, lam=3.0)
    short_run(tmp_path, cfg, runs="both", baselines=True, epochs=3)
    plain = short_run(tmp_path, cfg, runs="plain", barrier="nll", epochs=3)
    ours, theirs = saved[2], load_file(plain / "rounds/00/adapter.safetensors")  # after two rounds
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert any(not torch.equal(saved[0][k], ours[k]) for k in ours)  # the barrier did something


BASE = {"ppl_mundane": 2.0}


def state(shift, coherence, ppl, dose=0.0, **probes):
    return {"dose": dose, "headline": [-float(shift), 0, 0],
            "measures": {"coherence": coherence, "ppl_mundane": 2 * ppl} | probes}


def exact(found, width=0.0):
    """Gains as the measures have them, with intervals so wide."""
    def gain(ours, theirs, name):
        a, b = (sides(found[x], BASE)[name] for x in (ours, theirs))
        x = b - a if name == PPL else a - b
        return [x, x - width, x + width]

    return gain


def check_a_gain_within_its_interval_is_a_tie():
    found = {"healed": state(-1, 0.99, 1.0), "matched": state(-1, 0.95, 1.0)}
    for width, word in ((0.03, "yes"), (0.05, "tie")):
        (row,) = outcomes(found, BASE, exact(found, width), 1.0)
        assert row["beaten"] == word
    found["healed"], found["matched"] = found["matched"], found["healed"]
    assert outcomes(found, BASE, exact(found, 0.05), 1.0)[0]["beaten"] == "tie"


@pytest.mark.parametrize(("ours", "theirs", "word"), [
    ((0.99, 1.01), (0.95, 1.01), "yes"),
    ((0.99, 1.01), (0.95, 1.05), "yes"),
    ((0.95, 1.05), (0.99, 1.01), "no"),
    ((0.99, 1.05), (0.95, 1.01), "mixed"),
    ((0.99, 1.01), (0.9905, 1.0105), "tie"),
])
def check_outcomes_say_what_the_numbers_say(ours, theirs, word):
    found = {"healed": state(-1, *ours), "matched": state(-1, *theirs)}
    (row,) = outcomes(found, BASE, exact(found), 1.0)
    assert row["beaten"] == word
    assert row["coherence: student, rival; gain"][:2] == (ours[0], theirs[0])


def check_only_equal_shifts_are_compared():
    """A rival that moved less is met by a student turned down; one that cannot be met is said."""
    found = {"healed": state(-1, 0.9, 1.1), "matched": state(-1, 0.9, 1.1),
             "nll": state(-0.4, 0.97, 1.0), "healed_as_nll": state(-0.4, 0.99, 1.0),
             "prompted": state(-2, 1.0, 1.0)}
    rows = {x["rival"]: x for x in outcomes(found, BASE, exact(found), 1.0)}
    assert rows["nll"]["beaten"] == "yes"
    assert rows["nll"]["shift student, rival"] == (0.4, 0.4)
    assert rows["prompt"]["beaten"] == "no match" and "one shift" in rows["prompt"]["because"]
    far = {"healed": state(-1.2, 0.9, 1.1), "matched": state(-0.02, 1.0, 1.0)}
    assert [x["beaten"] for x in outcomes(far, BASE, exact(far), 1.0)] == ["no match"]
    found["nll_turned"] = state(-1, 0.8, 1.1)
    rows = {x["rival"]: x for x in outcomes(found, BASE, exact(found), 1.0)}
    assert rows["nll"]["coherence: student, rival; gain"][:2] == (0.9, 0.8)


@settings(max_examples=1500, database=None)
@given(dose=st.floats(0, 40), reach=st.floats(0, 20), ours=st.floats(-2, 0), gap=st.floats(-1, 1),
       better=st.floats(-0.2, 0.2))
def check_a_match_beyond_what_was_calibrated_is_open(dose, reach, ours, gap, better):
    """Of any two states: steering at a dose that nobody calibrated beats nothing and is beaten by
    nothing, and the reason names both doses; within it only the shifts count."""
    found = {"healed": state(ours, 0.9 + better, 1.1), "matched": state(ours + gap, 0.9, 1.1, dose)}
    (row,) = outcomes(found, BASE, exact(found), reach)
    compared = "coherence: student, rival; gain" in row
    assert compared is not bool(row.get("because"))
    if dose > reach * 1.001:
        assert row["beaten"] == "OPEN" and f"{dose:.3g}" in row["because"]
        assert f"{reach:.3g}" in row["because"]
    elif dose <= reach:
        near = abs(gap) <= 0.05 + 0.05 * abs(ours + gap)
        assert compared is near or abs(abs(gap) - 0.05 - 0.05 * abs(ours + gap)) < 1e-9
        assert compared or row["beaten"] == "no match"


def check_an_overdosed_match_of_an_older_run_is_open(tmp_path):
    """A finished folder whose match lies at 13.2 c*: no table and no file says "yes" any more."""
    run = write_run(tmp_path / "runs/one", [tilted({"authority": -0.9})], [tilted({})], others={
        "matched": tilted({"authority": -0.9})})
    lines = [json.loads(x) for x in (run / "events.jsonl").read_text().splitlines()]
    for x in lines:
        x |= {"dose": 13.2} if x.get("state") == "matched" else {}
    (run / "events.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    said = finish(run)
    (row,) = json.loads((run / "summary.json").read_text())["rivals"]
    assert row["beaten"] == "OPEN" and "dose 13.2, and 1 is the largest" in row["because"]
    assert all(inline(row["because"]) in x for x in (said, (run / "verdicts.md").read_text()))


@nf4_is_long
def check_a_rival_out_of_reach_is_met_at_the_largest_calibrated_dose(small, tmp_path):
    """Whatever the student's shift is, steering is not searched for beyond c* × the largest
    multiple, and no gate is turned above 1."""
    s = small(**data_files(tmp_path))
    data = read_data(s.cfg)
    for name in ("digits", "reasons", "said", "contrast"):
        headline = Headline(name, data, s.cfg)
        for goal in (-99.0, 99.0):
            assert 0 < dose_for(s.model, s.vector(), headline, 0.0, goal, 3.0) <= 3.0
            assert 0 < strength_for(s.model, headline, 0.0, goal) <= 1.0
        assert dose_for(s.model, s.vector(), headline, 0.0, 99.0, 3.0) == 3.0


def check_legality_counts_where_it_is_known():
    found = {"healed": state(-1, 0.99, 1.0, opening_mass=0.99, sentence_validity=0.97),
             "matched": state(-1, 0.99, 1.0, opening_mass=0.95, sentence_validity=0.98)}
    (row,) = outcomes(found, BASE, exact(found), 1.0)
    assert row["beaten"] == "mixed" and (
        row["opening_mass: student, rival; gain"][:2] == (0.99, 0.95))
