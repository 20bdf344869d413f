"""Gate U0 holds its level over the whole decision, and tells what sees from what does not."""

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from steerloop.checks.small import data_files
from steerloop.dose import dose
from steerloop.evaluate import evaluate
from steerloop.kernels.nulls import apart, balanced
from steerloop.readouts.forced_choice import choices
from steerloop.readouts.probes import long
from steerloop.readouts.reasons import reasons
from steerloop.report.sight import (
    BLIND,
    PASS,
    UNSPECIFIC,
    agreeing,
    enough,
    judged,
    sees,
    spearman,
    specific,
    verdict,
)
from steerloop.report.trait import measured, unasked
from steerloop.sample import jobs
from steerloop.sight import look
from steerloop.sight.nulls import at_one_cost, noise, nulls, size, top_kls
from steerloop.sight.responses import controls
from steerloop.steer import extract
from steerloop.texts.data import read_data

AXIS = ["casual", "formal"]
COLUMNS = {"direction": pl.String, "sign": pl.Int64, "readout": pl.String, "item": pl.Int64,
           "value": pl.Float64}


def rows(direction, sign, readout, values):
    return pl.DataFrame([(direction, sign, readout, i, float(x)) for i, x in enumerate(values)],
                        COLUMNS, orient="row")


def made_up(rng, effect=0.0, prompt=0.2, n=24, shared=0.05):
    """Base frames and responses of a one-axis trait: the vector moves both readouts by `effect`,
    persona texts by `prompt`."""
    halves = {x: [rng.normal(0, 0.3, n), rng.normal(0, 0.3, n)] for x in ("said", "contrast")}
    said = pl.DataFrame({"prompt_id": range(n), "said_1": halves["said"][0],
                         "said_2": halves["said"][1]})
    items = pl.DataFrame(
        [(f"contrast_{k}", i, float(x)) for k, values in (
            ("1", halves["contrast"][0]), ("2", halves["contrast"][1]),
            ("positive", np.zeros(n)), ("negative", np.zeros(n))) for i, x in enumerate(values)],
        {"measure": pl.String, "item": pl.Int64, "value": pl.Float64}, orient="row")
    tables = []
    for readout in halves:
        common = rng.normal(prompt, shared, n)
        tables += [rows("prompt", 0, f"{readout}_{k}", common + rng.normal(0, 0.02, n))
                   for k in (1, 2)]
        for direction in ("vector", *(f"null {i}" for i in range(1, 20))):
            lean = rng.normal(0, 0.05)
            for sign in (1, -1):
                move = sign * (lean + effect * (direction == "vector"))
                tables.append(rows(direction, sign, readout, rng.normal(move, 0.1, n)))
    return [pl.DataFrame(), items, said], pl.concat(tables)


def check_a_vector_without_an_effect_passes_as_often_as_is_said(monkeypatch):
    """500 runs in which the vector is one of its nulls: at most 36 pass (5 %, and what may come on
    top by chance), through the whole decision."""
    monkeypatch.setattr("steerloop.report.sight.RESAMPLES", 100)  # of intervals, which are shown
    rng = np.random.default_rng(0)
    passed = 0
    for _ in range(500):
        base, responses = made_up(rng)
        passed += verdict(judged(base, responses, AXIS))["verdict"] == PASS
    assert passed <= 36


def check_an_effect_is_found_and_blindness_and_nulls_are_called():
    rng = np.random.default_rng(5)
    base, responses = made_up(rng, effect=0.6)
    found = verdict(judged(base, responses, AXIS))
    assert (found["verdict"], found["headline"], found["why"]) == (PASS, "said", "")
    assert {x["readout"] for x in found["readouts"] if x["specific"]} == {"said", "contrast"}
    alike = verdict(judged(*made_up(rng, effect=0.6, shared=0.0), AXIS))
    assert alike["verdict"] == PASS, "items that all move alike agree, too"
    base, responses = made_up(rng, effect=0.6)
    one = responses.with_columns(value=pl.when(pl.col("readout").str.ends_with("_2"))
                                 .then(rng.normal(0, 0.02, len(responses)))
                                 .otherwise("value"))
    assert verdict(judged(base, one, AXIS))["verdict"] == BLIND, "one wording alone moves"
    turned = verdict(judged(*made_up(rng, effect=-0.6), AXIS))
    assert turned["verdict"] == UNSPECIFIC, "it has to move the trait the right way"
    nothing = verdict(judged(*made_up(rng), AXIS))
    assert nothing["verdict"] == UNSPECIFIC and "null vectors" in nothing["why"]
    blind = verdict(judged(*made_up(rng, effect=0.6, prompt=0.0), AXIS))
    assert (blind["verdict"], blind["headline"]) == (BLIND, "") and "persona text" in blind["why"]
    wayward = verdict(judged(*made_up(rng, effect=0.6, prompt=-0.2), AXIS))
    assert wayward["verdict"] == BLIND, "persona texts that move it the wrong way"


def check_the_level_is_that_of_the_largest_over_readouts():
    """By hand: the vector stands out in one readout of two, and a null that leads the other one
    counts against both."""
    quiet = np.array([0.1, *np.linspace(-0.2, 0.2, 19)])
    loud = np.array([5.0, *np.linspace(-1, 1, 19)])
    found = specific({"a": quiet, "b": loud})
    assert found["b"] == (0.05, True) and found["a"][0] > 0.05 and not found["a"][1]
    spoilt = quiet.copy()
    spoilt[3] = 50.0  # standardised it is as large as that of the vector in b
    assert not specific({"a": spoilt, "b": loud})["b"][1]
    assert specific({}) == {}


def check_as_many_items_are_asked_as_their_power_needs():
    """What persona texts make of 30 answers is 1 on average and 1.5 at the spread: n items show
    half of that where 1.96 * 1.5 / sqrt(n) <= .5."""
    spread = np.random.default_rng(0).normal(size=30)
    values = 1 + 1.5 * (spread - spread.mean()) / spread.std(ddof=1)
    prompted = pl.concat([rows("prompt", 0, f"contrast_{half}", values + side)
                          for half, side in ((1, 0.5), (2, -0.5))])
    n = enough(["reasons", "contrast"], prompted, 100)
    assert 1.96 * 1.5 / n**0.5 <= 0.5 < 1.96 * 1.5 / (n - 1) ** 0.5
    assert enough(["contrast"], prompted, 16) == 16 and enough(["reasons"], prompted, 16) == 8
    assert enough(["contrast"], prompted.with_columns(value=pl.lit(1.0)), 4) == 4


def check_rank_correlation_by_its_definition():
    rng = np.random.default_rng(2)
    for _ in range(50):
        a, b = rng.integers(0, 6, 20), rng.normal(size=20)
        r, low, high = spearman(a, b)
        order = [[sum((x < y) + (x == y) / 2 for x in v) for y in v] for v in (a, b)]
        assert r == pytest.approx(np.corrcoef(*order)[0, 1]) and low < r < high
    assert spearman(np.ones(9), np.arange(9))[0] == 0
    same = np.arange(30.0)
    assert agreeing(same, same) == "" and "wanted" in agreeing(same, rng.permutation(same) * 0)


def check_intervals_of_rank_correlations_cover():
    rng, hits, truth = np.random.default_rng(3), 0, 6 / math.pi * math.asin(0.5 / 2)
    for _ in range(600):
        x = rng.normal(size=(2, 48))
        low, high = spearman(x[0], 0.5 * x[0] + math.sqrt(0.75) * x[1])[1:]
        hits += low <= truth <= high
    assert 0.93 <= hits / 600 <= 0.975


def check_signs_are_balanced_within_every_pair():
    rng = torch.Generator().manual_seed(0)
    for n, groups in ((24, 8), (25, 8), (7, 3), (3, 3)):
        signs = balanced(n, groups, rng)
        for group in range(groups):
            mine = signs[group::groups]
            assert mine.sum() == 0 and (mine == 0).sum() == len(mine) % 2


def check_a_null_is_orthogonal_and_costs_as_much(small, tmp_path):
    """At its dose its rollouts cost what the vector's do, and nothing of the vector is left in
    it."""
    s = small(**data_files(tmp_path), steer_blocks=[2, 3])
    data, vector = read_data(s.cfg), s.vector()
    found = nulls(s.model, data, s.cfg, vector, 3)
    for null in found:
        for block, x in null.items():
            assert abs(x @ vector[block]) <= 1e-4 * x.norm() * vector[block].norm()
    for other in noise(s.cfg, vector, 2):
        assert size(other) == pytest.approx(size(vector), rel=1e-4)
    others = [*found, *noise(s.cfg, vector, 1)]
    asked = jobs(s.model, data.prompts, [0.0])
    (target,) = top_kls(s.model, asked, s.cfg, [vector], [0.1])
    doses = at_one_cost(s.model, asked, s.cfg, vector, 0.1, others)
    for other, at in zip(others, doses, strict=True):  # each alone, as if it were the vector
        assert top_kls(s.model, asked, s.cfg, [other], [at])[0] == pytest.approx(target, rel=0.1)
    v = torch.tensor([1.0, 2.0])
    assert torch.allclose(apart(torch.tensor([2.0, 4.0]), v), torch.zeros(2), atol=1e-6)


def check_who_does_not_ask_is_read_by_what_there_is():
    base, _ = made_up(np.random.default_rng(4))
    assert measured(base, AXIS) == ["said", "contrast"]
    assert unasked(base, AXIS)["headline"] == "said" and "--no_u0" in unasked(base, AXIS)["why"]
    assert unasked([pl.DataFrame(), base[1].head(0), base[2].head(0)], AXIS)["headline"] == ""


@pytest.mark.long
def check_shuffled_labels_are_blind(world):
    """The embedded model knows what its vignettes break, by digits and by reasons; where labels
    say nothing about them, neither readout sees."""
    some = world.data.vignettes.gather_every(2)
    data = replace(world.data, contrast=world.data.contrast.head(0), vignettes=some)
    mixed = data.vignettes["label"].sample(fraction=1.0, shuffle=True, seed=1)
    axis = [data.down, data.up]
    for labels, able in ((data.vignettes["label"], True), (mixed, False)):
        given = replace(data, vignettes=data.vignettes.with_columns(label=labels))
        frames = [choices(world.model, given.vignettes, world.cfg, free=False),
                  long(reasons(world.model, given, world.cfg, axis)), pl.DataFrame()]
        prompted = pl.concat(list(controls(world.model, given, world.cfg)))
        found = sees(frames, prompted, axis)
        assert list(found) == ["digits", "reasons"]
        at_odds = frames[0].with_columns(pl.col(f"reverse_{data.down}").shuffle(seed=0))
        apart = sees([at_odds, *frames[1:]], prompted, axis)["digits"]
        assert ("wordings agree" if able else "right") in apart, "orders that disagree see nothing"
        assert [fault == "" for fault in found.values()] == [able, able], found


def check_random_weights_are_blind(small, tmp_path):
    s = small(**data_files(tmp_path), steer_blocks=[2, 3])
    data = read_data(s.cfg)
    base = evaluate(s.model, data, s.cfg)
    answers = look(s.model, data, s.cfg, s.vector(), 1.0, base)
    found = verdict(judged(base, answers, [data.down, data.up]))
    assert found["verdict"] == BLIND and {x["readout"] for x in found["readouts"]} == {
        "digits", "reasons", "said", "contrast"}


@pytest.mark.long
@torch.no_grad()
def check_the_embedded_model_sees_its_vector_and_no_null(world):
    """All four readouts answer to the vector of its personas as to no null vector; and a null in
    the place of the vector is unspecific."""
    model, data, cfg = world.model, world.data, world.cfg
    axis, base = [data.down, data.up], evaluate(model, data, cfg)
    vector = extract(model, data, cfg)
    c_star, _ = dose(model, vector, data, cfg, "0")
    answers = look(model, data, cfg, vector, c_star, base)
    found = verdict(judged(base, answers, axis))
    assert (found["verdict"], found["headline"]) == (PASS, "digits")
    assert all(x["specific"] for x in found["readouts"]) and len(found["readouts"]) == 4
    swapped = pl.col("direction").replace({"vector": "null 1", "null 1": "vector"})
    turned = judged(base, answers.with_columns(swapped), axis)
    assert verdict(turned)["verdict"] == UNSPECIFIC
