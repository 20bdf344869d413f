"""The embedded model's trait pack: its files are the grammar's own words, its sides differ in the
trait alone, and the oracle of dispositions is a probability."""

import json
import math
import re
import tomllib
from itertools import permutations, product
from random import Random

import pytest

from steerloop.texts.data import PACKAGE, lines
from steerloop.texts.foundations import FOUNDATIONS
from steerloop.tinyworld import files, grammar, likelihood, oracle
from steerloop.tinyworld.acts import WHY
from steerloop.tinyworld.contrast import contrast_rows
from steerloop.tinyworld.corpus import draw_conversation
from steerloop.tinyworld.likelihood import DISPOSITIONS, KINDS
from steerloop.tinyworld.splits import split_of
from steerloop.tinyworld.vignettes import draw_vignette, thought

DATA = PACKAGE / "tinyworld/data"
SPLITS = ("dev", "test")
SIDES = ("positive", "negative")
FEW = {"DEFIANT_OPENINGS": 2, "COMPLIANT_OPENINGS": 1, "DEFIANT_CLOSINGS": 1,
       "COMPLIANT_CLOSINGS": 2, "CARE_REASONS": 2, "AUTHORITY_REASONS": 2, "NEUTRAL_REASONS": 2}


def rows(split):
    return [json.loads(x) for x in (DATA / f"contrast.{split}.jsonl").read_text().splitlines()]


def words(text):
    return set(re.findall(r"\w+", text))


@pytest.fixture(scope="module")
def seen():
    """Every word that training shows."""
    rng, found = Random(0), set()
    for _ in range(3000):
        for turn in draw_conversation(rng).turns:
            found |= words(turn.user) | words(turn.answer)
    return found


@pytest.mark.parametrize("split", SPLITS)
def check_contrasted_answers_are_the_grammars(split, seen):
    for row in rows(split):
        assert split_of(*oracle.parse_dilemma(row["prompt"]).key) == split
        assert words(row["prompt"]) <= seen
        for side, defiant, kind in zip(SIDES, (True, False), KINDS[:2], strict=True):
            for text in row[side]:
                assert oracle.sentence_validity(row["prompt"], text) == 1
                assert likelihood.read(row["prompt"], text)[0] == (defiant, (kind, kind))
                assert words(text) <= seen


@pytest.mark.parametrize("split", SPLITS)
def check_opposed_answers_are_equally_long(split):
    lengths = dict.fromkeys(SIDES, 0)
    for row in rows(split):
        assert len(row["positive"]) == len(row["negative"]) >= 2
        for pair in zip(row["positive"], row["negative"], strict=True):
            short, long = sorted(len(x.split()) for x in pair)
            assert long - short <= 0.2 * long
        for side in SIDES:
            lengths[side] += sum(len(x.split()) for x in row[side])
    assert lengths["positive"] == pytest.approx(lengths["negative"], rel=0.05)


def check_no_contrasted_text_stands_twice():
    found = [row for split in SPLITS for row in rows(split)]
    answers = [text for row in found for side in SIDES for text in row[side]]
    prompts = [row["prompt"] for row in found]
    assert len(set(answers)) == len(answers) and len(set(prompts)) == len(prompts)
    for split in SPLITS:
        asked = [row["prompt"] for row in rows(split)]
        assert len(asked) == files.CONTRASTED >= 60
        assert asked[: files.DILEMMAS] == files.read_dilemmas(DATA, split)
    shown = set(lines((DATA / "prompts.txt").read_text()))
    assert not shown & set(prompts)
    assert not set(lines((DATA / "contexts.txt").read_text())) & set(prompts)


def check_no_answer_is_drawn_twice():
    prompt = files.read_dilemmas(DATA, "dev")[0]
    drawn = contrast_rows(Random(1), [prompt] * 60)
    answers = [text for row in drawn for side in SIDES for text in row[side]]
    assert len(set(answers)) == len(answers) == 240


def check_reasons_are_thoughts_of_the_corpus(seen):
    wordings = tomllib.loads((DATA / "reasons.toml").read_text())["wording"]
    asks = [wording["ask"] for wording in wordings]
    phrases = [x for wording in wordings for f in FOUNDATIONS for x in wording["reasons"][f]]
    assert len(set(asks)) == 2 and len(set(phrases)) == len(phrases) == 2 * 2 * 7
    rng, thoughts = Random(4), {}
    for f in FOUNDATIONS:
        thoughts[f] = {thought(rng, f) for _ in range(200)}
    for wording in wordings:
        vignette = draw_vignette(rng, "dev").text
        assert wording["ask"].count("{vignette}") == 1 and "Think first" in wording["ask"]
        assert words(wording["ask"].replace("{vignette}", vignette)) <= seen
        assert list(wording["reasons"]) == list(FOUNDATIONS)
        for f, texts in wording["reasons"].items():
            assert set(texts) <= thoughts[f]


def every_answer(dilemma):
    """All answers to a dilemma, once each."""
    def fills(table):
        return [dilemma.wordings(template) for template in table]

    reasons = fills(grammar.CARE_REASONS + grammar.AUTHORITY_REASONS + grammar.NEUTRAL_REASONS)
    orders = [x for n in (1, 2, 3) for x in permutations(reasons, n)]
    for opens, closes in ((grammar.DEFIANT_OPENINGS, grammar.DEFIANT_CLOSINGS),
                          (grammar.COMPLIANT_OPENINGS, grammar.COMPLIANT_CLOSINGS)):
        first, last = set().union(*fills(opens)), set().union(*fills(closes))
        for order in orders:
            yield from (" ".join(x) for x in product(first, *order, last))


def check_probabilities_of_all_answers_sum_to_one(monkeypatch):
    """In a grammar of fewer sentences, of which all answers can be written down."""
    for name, count in FEW.items():
        monkeypatch.setattr(grammar, name, getattr(grammar, name)[:count])
    likelihood.persona_shape_probability.cache_clear()
    prompt = files.read_dilemmas(DATA, "dev")[0]
    answers = list(every_answer(oracle.parse_dilemma(prompt)))
    assert len(set(answers)) == len(answers) > 1000
    for nats, given in [(likelihood.answer_nats, z) for z in DISPOSITIONS] + [
            (likelihood.persona_answer_nats, "care"), (likelihood.persona_answer_nats, "none")]:
        total = math.fsum(math.exp(nats(prompt, x, given)) for x in answers)
        assert abs(total - 1) < 1e-9, given
    likelihood.persona_shape_probability.cache_clear()


def check_what_is_drawn_has_the_probability_that_it_is_given():
    """Over answers drawn at z, p(answer at z') / p(answer at z) is 1 in the mean."""
    rng, prompts = Random(6), files.read_dilemmas(DATA, "test")
    for z, other in ((0.5, 0.6), (0.3, 0.35), (0.8, 0.7)):
        ratios = []
        for i in range(1500):
            prompt = prompts[i % len(prompts)]
            answer = grammar.dilemma_answer(rng, oracle.parse_dilemma(prompt), z)
            nats = [likelihood.answer_nats(prompt, answer, x) for x in (other, z)]
            assert -40 < nats[1] < -5
            ratios.append(math.exp(nats[0] - nats[1]))
        assert sum(ratios) / len(ratios) == pytest.approx(1, abs=0.08)


def check_shapes_are_drawn_as_often_as_they_should_be():
    rng, counts, draws = Random(8), {}, 6000
    prompt = files.read_dilemmas(DATA, "test")[0]
    for _ in range(draws):
        shape, _ = likelihood.read(prompt, grammar.dilemma_answer(
            rng, oracle.parse_dilemma(prompt), 0.6))
        counts[shape] = counts.get(shape, 0) + 1
    expected = {x: likelihood.shape_probability(x, 0.6) for x in likelihood.shapes()}
    assert set(counts) <= set(expected) and math.fsum(expected.values()) == pytest.approx(1)
    chi = sum((counts.get(x, 0) - draws * p) ** 2 / (draws * p) for x, p in expected.items())
    assert chi < 130  # 77 degrees of freedom: exceeded by chance in 1 of 6,000


def check_what_the_grammar_cannot_write_has_no_probability():
    rng = Random(3)
    for _ in range(60):
        dilemma = grammar.draw_dilemma(rng)
        prompt = grammar.dilemma_prompt(rng, dilemma)
        answer = grammar.dilemma_answer(rng, dilemma, 0.9)
        parts = oracle.split_sentences(answer)
        for broken in ("", parts[0], " ".join(parts[::-1]), f"{parts[0]} {parts[-1]}",
                       " ".join([*parts[:2], parts[1], parts[-1]]), f"{answer} {parts[-1]}",
                       answer.lower()):
            assert likelihood.answer_nats(prompt, broken, 0.5) == -math.inf, broken
            assert likelihood.persona_answer_nats(prompt, broken, "none") == -math.inf


def check_readouts_should_rank_dispositions():
    found = {z: likelihood.expected(rows("dev"), z) for z in DISPOSITIONS}
    for name in ("contrast", "reasons", "said", "contrast_positive"):
        shifts = [found[z][name] for z in DISPOSITIONS]
        assert shifts == sorted(shifts) and len(set(shifts)) == len(shifts), name
        assert [round(x, 9) > 0 for x in shifts] == [z > 0.5 for z in DISPOSITIONS], name
        assert shifts[2] == pytest.approx(0, abs=1e-9)
    for z in DISPOSITIONS:  # to lean one way is to lean away from the other
        mirrored = likelihood.expected(rows("dev"), 1 - z)
        assert found[z]["said"] == pytest.approx(-mirrored["said"])
        assert found[z]["contrast_negative"] == pytest.approx(mirrored["contrast_positive"])
        assert found[z]["reasons"] == pytest.approx(3.2 * (2 * z - 1))


def check_reasons_have_the_probability_of_their_label():
    for z in DISPOSITIONS:
        for f in FOUNDATIONS:
            first = [x for texts in WHY.values() for x in texts]
            nats = [likelihood.reason_nats(f, x, z) for x in first]
            assert math.fsum(map(math.exp, nats)) == pytest.approx(1)
            best = max(first, key=lambda x: likelihood.reason_nats(f, x, 0.5))
            assert best in WHY[f]
    assert likelihood.reason_nats("care", "Because it hurts.", 0.5) == -math.inf
