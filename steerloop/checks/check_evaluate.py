"""The forced choice reads the right digit of the right menu, and neither a preferred position nor a
preferred digit can look like a moral profile."""

import math
import zlib
from dataclasses import replace

import polars as pl
import pytest
import torch

from steerloop.baselines import Headline, dose_for
from steerloop.checks.small import data_files
from steerloop.checks.twins import row_logits
from steerloop.dose import dose
from steerloop.evaluate import evaluate
from steerloop.kernels.head import Head
from steerloop.readouts import forced_choice
from steerloop.readouts.forced_choice import both_orders, by_order, choices
from steerloop.report import measures
from steerloop.report.sight import READOUTS
from steerloop.report.trait import measured
from steerloop.steer import extract, steered
from steerloop.texts import questions
from steerloop.texts.data import read_data
from steerloop.texts.foundations import FOUNDATIONS
from steerloop.texts.questions import SCAFFOLD, parses, question

DIGITS = range(1, 8)


def menu(text):
    """Digit → option of a question."""
    found = [line.partition(": ") for line in text.splitlines()]
    return {int(d): option for d, sep, option in found if sep and d.isdigit()}


def check_the_reversed_menu_maps_back():
    forward, backward = menu(question("X.", False)), menu(question("X.", True))
    assert list(forward) == list(backward) == list(DIGITS)
    assert tuple(forward.values()) == FOUNDATIONS
    for digit in DIGITS:
        assert backward[digit] == forward[8 - digit]
    assert "Think first" in question("X.", False, think=True)
    assert question("You see x.", True).startswith("You see x.\n")


def check_both_orders_is_its_plain_twin():
    logp = torch.randn(10, 7).log_softmax(-1) - 0.1
    found = both_orders(logp)
    for v in range(5):
        score = []
        for i, f in enumerate(FOUNDATIONS):
            digit = {option: d for d, option in menu(question("X.", True)).items()}[f]
            score.append((logp[2 * v, i].item() + logp[2 * v + 1, digit - 1].item()) / 2)
        total = sum(map(math.exp, score))
        assert found[v].tolist() == pytest.approx([math.exp(x) / total for x in score], rel=1e-4)
    alone = by_order(logp).softmax(-1)
    for order, reverse in enumerate((False, True)):
        for digit, option in menu(question("X.", reverse)).items():
            logps = logp[order::2].softmax(-1)[:, digit - 1]
            assert torch.allclose(alone[order, :, FOUNDATIONS.index(option)], logps)


@pytest.mark.parametrize("prior", [[9.0, 0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7.0]])
def check_a_position_prior_cancels_where_it_is_all_there_is(prior):
    """Preferring low digits in one order is preferring the last options in the other."""
    logp = torch.tensor(prior).log_softmax(-1)
    p = both_orders(torch.stack([logp, logp]))[0]
    assert torch.allclose(p, p.flip(-1), atol=1e-6)  # symmetric: no direction is preferred
    if prior == sorted(prior):  # a prior that falls evenly cancels altogether
        assert torch.allclose(p, torch.full((7,), 1 / 7), atol=1e-6)


@pytest.mark.parametrize(("text", "valid"), [
    ('{"choice": 4}', True),
    ('{"choice": 1}', True),
    ('{"choice": 7} and more', True),
    ('I think\n{"choice":3}', True),
    ('{"choice": 3, "why": "rank"}', True),
    ('{"choice": 0}', False),
    ('{"choice": 8}', False),
    ('{"choice": "4"}', False),
    ('{"choice": 4.0}', False),
    ('{"choice": true}', False),
    ('{"choice": null}', False),
    ('{"choice": }', False),
    ('{"choice": 4', False),
    ('{"answer": 4}', False),
    ("{}", False),
    ("4", False),
    ("", False),
    ('{"other": 1} {"choice": 4}', False),
])
def check_parses(text, valid):
    assert parses(text) is valid


@pytest.fixture
def case(small, tmp_path):
    """A small model and data; its rows fit one batch."""
    s = small(**data_files(tmp_path))
    return s, read_data(s.cfg)


def check_choices_are_those_of_single_forwards(case):
    s, data = case
    rows, bare = choices(s.model, data.vignettes, s.cfg), s.bare()
    digits = [s.model.to_ids(str(d))[0] for d in DIGITS]
    scaffold = s.model.to_ids(SCAFFOLD)
    for row, text in zip(rows.iter_rows(named=True), data.vignettes["text"], strict=True):
        logps, nlls, masses, valid = [], [], [], []
        for reverse in (False, True):
            prompt = s.model.render(question(text, reverse))
            logp = row_logits(bare, prompt + scaffold).log_softmax(-1)
            logps.append(logp[-1, digits])
            masses.append(logp[-1, digits].exp().sum().item())
            hits = [logp[len(prompt) + i - 1, x].item() for i, x in enumerate(scaffold)]
            nlls.append(-sum(hits) / len(hits))
            valid.append(0.0)  # a random model writes no JSON
        p = both_orders(torch.stack(logps))[0]
        assert row["vignette"] == text
        assert [row[f"p_{f}"] for f in FOUNDATIONS] == pytest.approx(p.tolist(), rel=1e-3)
        assert row["p_ans_any"] == pytest.approx(sum(masses) / 2, rel=1e-3)
        assert row["scaffold_nll"] == pytest.approx(sum(nlls) / 2, rel=1e-3)
        assert row["json_is_valid"] == 0
        assert row["top1"] == float(FOUNDATIONS[p.argmax()] == row["foundation"])


def answering(monkeypatch, s, digit_of_row):
    """The head answers with a digit that depends on the row of the batch alone."""
    def logits(self, h):
        z = torch.zeros(*h.shape[:-1], len(self.weight))
        for i in range(h.shape[0]):
            z[i, ..., s.model.to_ids(str(digit_of_row(i)))[0]] = 30.0
        return z

    monkeypatch.setattr(Head, "__call__", logits)


def check_a_model_that_prefers_a_digit_has_no_profile(case, monkeypatch):
    s, data = case
    found = {}
    for digit in DIGITS:
        answering(monkeypatch, s, lambda i, d=digit: d)
        rows = choices(s.model, data.vignettes, s.cfg, free=False)
        found[digit] = [rows[f"p_{f}"].mean() for f in FOUNDATIONS]
        assert rows["p_ans_any"].min() > 0.99
        assert found[digit] == pytest.approx(found[digit][::-1], rel=1e-4)
    mean = [sum(x) / 7 for x in zip(*found.values(), strict=True)]
    assert mean == pytest.approx([1 / 7] * 7, rel=1e-3)  # no foundation gains from digit priors


@pytest.mark.parametrize("foundation", FOUNDATIONS)
def check_a_model_that_means_a_foundation_gets_it(case, monkeypatch, foundation):
    s, data = case
    at = FOUNDATIONS.index(foundation) + 1
    answering(monkeypatch, s, lambda i: at if i % 2 == 0 else 8 - at)  # forward, reversed in turn
    rows = choices(s.model, data.vignettes, s.cfg, free=False)
    assert rows[f"p_{foundation}"].min() > 0.99
    assert rows["top1"].to_list() == [float(f == foundation) for f in rows["foundation"]]


def check_thinking_comes_between_prompt_and_answer(case):
    """With a thought, the slot is read after it: twin by hand for one row."""
    s, data = case
    s.cfg.think_tokens = 6
    rows, bare = choices(s.model, data.vignettes[:1], s.cfg), s.bare()
    logps = []
    for reverse in (False, True):
        ids = s.model.render(question(data.vignettes["text"][0], reverse, True))
        for _ in range(6):
            z = row_logits(bare, ids)[-1]
            z[s.model.stop_ids] = -torch.inf
            ids = [*ids, z.argmax().item()]
        z = row_logits(bare, ids + s.model.to_ids("\n" + SCAFFOLD))[-1].log_softmax(-1)
        logps.append(z[[s.model.to_ids(str(d))[0] for d in DIGITS]])
    p = both_orders(torch.stack(logps))[0].tolist()
    assert [rows[f"p_{f}"][0] for f in FOUNDATIONS] == pytest.approx(p, rel=1e-3)


def extra(model, cfg):
    """A probe, which --probes names."""
    return {"extra": [1.0, 2.0]}


def check_evaluate_hands_on_probes_and_mundane_text(case):
    s, data = case
    longer = [x * n for x, n in zip(data.mundane["text"], (1, 3, 2), strict=True)]
    data = replace(data, mundane=data.mundane.with_columns(text=pl.Series(longer)))
    cfg = replace(s.cfg, probes=[f"{extra.__module__}:extra"])
    rows, items, answers = evaluate(s.model, data, cfg)
    assert len(rows) == len(data.vignettes) and len(answers) == len(data.contrast)
    assert items.filter(measure="extra")["value"].to_list() == [1.0, 2.0]
    found, bare = items.filter(measure="mundane_nll")["value"], s.bare()
    assert len(found) == len(data.mundane) == 3
    for value, (prompt, text) in zip(found, data.mundane.rows(), strict=True):
        ids, tokens = s.model.render(prompt), s.model.to_ids(text)
        logp = row_logits(bare, ids + tokens).log_softmax(-1)
        wanted = sum(-logp[len(ids) + i - 1, x].item() for i, x in enumerate(tokens)) / len(tokens)
        assert value == pytest.approx(wanted, rel=1e-4)


def check_embedded_model_answers_and_steering_moves_authority(world):
    """The embedded model knows its task; its persona vector, at the iso-KL dose, moves authority
    down and negated up; a dose is found for a given shift."""
    data = replace(world.data, vignettes=world.data.vignettes[::7])
    cfg = replace(world.cfg, dose_prompts=8, dose_tokens=24)
    base = choices(world.model, data.vignettes, cfg)
    assert base["p_ans_any"].min() > 0.9 and base["json_is_valid"].mean() > 0.9
    assert base["top1"].mean() > 0.6
    start = math.log(base["p_authority"].mean())
    few = replace(data, contexts=data.contexts[:48])
    vector = extract(world.model, few, replace(cfg, batch_rows=64))
    c_star, _ = dose(world.model, vector, data, cfg, "check")

    def shift(size):
        with torch.no_grad(), steered(world.model, vector, size):
            rows = choices(world.model, data.vignettes, cfg, free=False)
        return math.log(rows["p_authority"].mean()) - start

    assert shift(c_star) < -0.5 and shift(-c_star) > 0.1
    goal = -(start + shift(0.7 * c_star))
    found = dose_for(
        world.model, vector, Headline("digits", data, cfg), -start, goal, 4 * c_star)
    assert found == pytest.approx(0.7 * c_star, rel=0.1)


def check_two_evaluations_of_a_state_are_identical(case):
    """To the bit, by every readout: base, and a steered student."""
    s, data = case
    for size in (0.0, 0.5):
        first, second = (evaluate(s.model, data, s.cfg, s.vector(), size) for _ in range(2))
        assert all(a.equals(b) for a, b in zip(first, second, strict=True))
        assert set(measured(first, [data.down, data.up])) == set(READOUTS)
        s.stir(2)


def check_permuting_vignettes_changes_nothing(case):
    s, data = case
    rows = choices(s.model, data.vignettes, s.cfg)
    mixed = choices(s.model, data.vignettes[[2, 0, 1]], s.cfg).sort("vignette")
    for a, b in zip(rows.sort("vignette").rows(), mixed.rows(), strict=True):
        assert a[:2] == b[:2] and a[2:] == pytest.approx(b[2:], rel=1e-5)


def check_reversing_all_option_orders_changes_nothing(case, monkeypatch):
    """Each vignette is asked in both orders, so which of them is called forward is no matter, for
    the free answers, too: what they are is judged by a coin that depends on every letter."""
    s, data = case
    monkeypatch.setattr(forced_choice, "parses", lambda text: zlib.crc32(text.encode()) % 2)
    rows = choices(s.model, data.vignettes, s.cfg)
    for place in (forced_choice, questions):
        monkeypatch.setattr(place, "FOUNDATIONS", FOUNDATIONS[::-1])
    other = {"forward": "reverse", "reverse": "forward"}
    swapped = {x: "_".join([other[order], f]) for x in rows.columns
               for order, _, f in [x.partition("_")] if order in other}
    turned = choices(s.model, data.vignettes, s.cfg).rename(swapped).select(rows.columns)
    for a, b in zip(rows.rows(), turned.rows(), strict=True):
        assert a[:2] == b[:2] and a[2:] == pytest.approx(b[2:], rel=1e-4)


def check_human_ratings_reach_the_measures(case):
    s, data = case
    ratings = {f"h_{f}": [float(f == "loyalty")] * 3 for f in FOUNDATIONS}
    asked = data.vignettes.with_columns(**{k: pl.Series(x) for k, x in ratings.items()})
    rated = evaluate(s.model, replace(data, vignettes=asked), s.cfg)
    found = measures(rated, rated, 3.0)["overlap"]
    assert found == pytest.approx(rated[0]["p_loyalty"].mean())
    plain = evaluate(s.model, data, s.cfg)
    assert "overlap" not in measures(plain, plain, 3.0)
