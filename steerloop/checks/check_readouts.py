"""Readouts of text are what a slow reader finds, one row and one forward pass at a time, on the
untouched base and on a student."""

from dataclasses import replace
from itertools import permutations, product
from statistics import fmean

import polars as pl
import pytest
import torch

from steerloop.checks.small import data_files
from steerloop.checks.twins import row_logits
from steerloop.readouts.contrast import contrast
from steerloop.readouts.endings import endings
from steerloop.readouts.reasons import reasons
from steerloop.readouts.said import read, said
from steerloop.sample import jobs
from steerloop.texts.data import read_data


@pytest.fixture
def case(small, tmp_path):
    """A student of a small model, with data."""
    s = small(**data_files(tmp_path), said_tokens=9, min_tokens=1)
    s.stir(1)
    return s, read_data(s.cfg)


@torch.no_grad()
def mean_logp(hf, prompt, ending):
    """Mean log-probability per token of an ending after a prompt, nats."""
    logp = row_logits(hf, prompt + ending).log_softmax(-1)
    return fmean(logp[len(prompt) + i - 1, x].item() for i, x in enumerate(ending))


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("persona", ["", "You are kind, and patient with people."])
def check_endings_are_those_of_single_forwards(case, k, persona):
    """Prompts of several lengths, endings of several lengths, cut into batches anyhow."""
    s, _ = case
    prompts = [s.model.render(x, persona)
               for x in ("Why?", "Must I go to the old town hall?", "Why so?")]
    texts = [[s.model.to_ids(x + y) for y in ("no", "yes, I would", "he said")]
             for x in ("", "a ", "the long ")]
    pairs = zip(prompts, texts, strict=True)
    wanted = [[mean_logp(s.model.hf, p, x) for x in row] for p, row in pairs]
    for size in (1, 2, 99):
        found = endings(s.model, prompts, [x[:k] for x in texts], size, "x").tolist()
        for a, b in zip(found, wanted, strict=True):
            assert a == pytest.approx(b[:k], rel=1e-3, abs=1e-3)


def check_one_ending_each_reads_the_common_start_once(case, monkeypatch):
    """And where a cache is gone on from a token at a time, every row from its start."""
    s, _ = case
    prompts = [s.model.render(x, "You are kind.") for x in ("Why?", "Why not?", "Why me?")]
    read, trunk = [], type(s.model.trunk).__call__

    def counted(self, ids, *rest):
        read.append(ids.numel())
        return trunk(self, ids, *rest)

    monkeypatch.setattr(type(s.model.trunk), "__call__", counted)
    texts = [[s.model.to_ids("no")]] * 3
    many = endings(s.model, prompts, texts, 9, "x")
    monkeypatch.setattr(s.model.trunk, "stepwise", True)
    alone = endings(s.model, prompts, texts, 9, "x")
    start = next(i for i, x in enumerate(zip(*prompts, strict=False)) if len({*x}) > 1)
    longest = max(map(len, prompts)) + len(texts[0][0])
    assert read == [start, 3 * (longest - start), 3 * longest] and start > 8
    assert torch.allclose(many, alone, atol=1e-4)


def check_contrast_is_the_two_sides_of_every_item(case):
    s, data = case
    found, hf = contrast(s.model, data, s.cfg), s.model.hf
    for i, (prompt, up, down) in enumerate(
            data.contrast.select("prompt", "positive", "negative").rows()):
        ids = s.model.render(prompt)
        sides = [[mean_logp(hf, ids, s.model.to_ids(x)) for x in side] for side in (up, down)]
        assert found["contrast_positive"][i] == pytest.approx(fmean(sides[0]), abs=1e-3)
        assert found["contrast_negative"][i] == pytest.approx(fmean(sides[1]), abs=1e-3)
        for half, at in (("contrast_1", 0), ("contrast_2", -1)):
            assert found[half][i] == pytest.approx(sides[0][at] - sides[1][at], abs=2e-3)
    trained_on = replace(data, contrast=data.contrast.with_columns(held=False))
    assert contrast(s.model, trained_on, s.cfg) == {}


def check_every_vignette_is_asked_in_either_wording(case):
    s, data = case
    named = list(data.reasons[0].reasons)
    found = [reasons(s.model, data, s.cfg, named, turn) for turn in (0, 1)]
    place = {text: i for i, text in enumerate(sorted(data.vignettes["text"]))}
    for i, text in enumerate(data.vignettes["text"]):
        for turn in (0, 1):
            wording = data.reasons[(place[text] + turn) % 2]
            ids = s.model.render(wording.ask.replace("{vignette}", text))
            for f, phrases in wording.reasons.items():
                wanted = fmean(mean_logp(s.model.hf, ids, s.model.to_ids(x)) for x in phrases)
                assert found[turn][f"reasons_{f}"][i] == pytest.approx(wanted, abs=1e-3)
    few = reasons(s.model, data, s.cfg, ["authority"])
    assert few == {"reasons_authority": pytest.approx(found[0]["reasons_authority"], abs=1e-5)}
    assert reasons(s.model, data, s.cfg, ["authority", "liberty"]) == {}
    assert reasons(s.model, replace(data, vignettes=data.vignettes.head(0)), s.cfg, named) == {}


def check_what_is_said_is_read_by_the_untouched_base(case):
    """The student speaks, steered, and the base reads: by hand for every answer and pair."""
    s, data = case
    data = replace(data, pairs=[(f"Be kind {x}.", f"Obey {x}.") for x in "abcde"])
    table, base = said(s.model, data, s.cfg, s.vector(), 0.5), s.bare()
    assert len(table) == len(data.contrast) and set(table["dose"]) == {0.5}
    for prompt, ids, *scores in table.select(
            "prompt", "completion_ids", "said_1", "said_2").rows():
        for half, score in enumerate(scores):
            sides = [[mean_logp(base, s.model.render(prompt, x), ids) for x in pair]
                     for pair in data.pairs[half:5:2]]
            wanted = fmean(up - down for up, down in sides)
            assert score == pytest.approx(wanted, abs=2e-3)
    again = said(s.model, data, s.cfg, s.vector(), 0.5)
    assert again.equals(table)
    assert said(s.model, replace(data, contrast=data.contrast.head(0)), s.cfg, {}, 0.0).is_empty()


SAME = {"rel": 1e-5, "abs": 1e-5}


def alike(found, wanted, order):
    """Whether item i of `found` is item order[i] of `wanted`, in every column."""
    assert found.keys() == wanted.keys()
    for name, values in found.items():
        assert values == pytest.approx([wanted[name][i] for i in order], **SAME), name


def check_neither_the_order_of_items_nor_of_answers_counts(case):
    """Contrast: items in any order, answers of a side in any order, whatever batches they fall
    into. Which answer of a side is its first is what tells the two halves apart."""
    s, data = case
    wanted, items = contrast(s.model, data, s.cfg), data.contrast
    for size in (1, 16):
        cfg = replace(s.cfg, batch_rows=size)
        for order in permutations(range(len(items))):
            alike(contrast(s.model, replace(data, contrast=items[list(order)]), cfg), wanted, order)
    turned = items.with_columns(pl.col("positive", "negative").list.reverse())
    halves = {"contrast_1": "contrast_2", "contrast_2": "contrast_1"}
    found = contrast(s.model, replace(data, contrast=turned), s.cfg)
    alike({halves.get(k, k): x for k, x in found.items()}, wanted, range(len(items)))


def check_neither_the_order_of_vignettes_nor_of_phrases_counts(case):
    """Reasons: vignettes in any order keep their wording; phrases in any order, of foundations in
    any order."""
    s, data = case
    more = [x._replace(reasons={f: [*texts, "So it is."] for f, texts in x.reasons.items()})
            for x in data.reasons]
    data, named = replace(data, reasons=more), ["care", "authority"]
    wanted = [reasons(s.model, data, s.cfg, named, turn) for turn in (0, 1)]
    asked = data.vignettes
    for size, order in product((1, 16), permutations(range(len(asked)))):
        mixed, cfg = replace(data, vignettes=asked[list(order)]), replace(s.cfg, batch_rows=size)
        for turn in (0, 1):
            alike(reasons(s.model, mixed, cfg, named, turn), wanted[turn], order)
    turned = [x._replace(reasons={f: texts[::-1] for f, texts in reversed(x.reasons.items())})
              for x in more]
    found = reasons(s.model, replace(data, reasons=turned), s.cfg, named[::-1])
    alike(found, wanted[0], range(len(asked)))


def check_neither_the_order_of_prompts_nor_of_readers_counts(case):
    """Said: a prompt keeps its draws by its number, so rows in any order, and in any batches, get
    the same answers and scores; persona pairs in any order within a half read the same."""
    s, data = case
    data = replace(data, pairs=[(f"Be kind {x}.", f"Obey {x}.") for x in "abcdef"])
    asked = jobs(s.model, data.contrast["prompt"].to_list(), [0.3])
    keep, scores = ["prompt_id", "prompt", "completion_ids", "text"], ["said_1", "said_2", "ppl"]
    wanted = read(s.model, asked, s.vector(), data, s.cfg)
    order = [2, 3, 0, 1, 4, 5]  # every other one is a half
    for size, mixed, pairs in ((16, [2, 0, 1], order), (1, [1, 2, 0], order), (2, [0, 1, 2], None)):
        some = replace(data, pairs=[data.pairs[i] for i in pairs] if pairs else data.pairs)
        found = read(s.model, asked[mixed], s.vector(), some, replace(s.cfg, batch_rows=size))
        assert found["prompt_id"].to_list() == mixed
        found = found.sort("prompt_id")
        assert found.select(keep).equals(wanted.select(keep))
        for name in scores:
            assert found[name].to_list() == pytest.approx(wanted[name].to_list(), **SAME)
