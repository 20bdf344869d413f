"""Readouts of text rank five dispositions of the embedded model as its grammar does, whose
likelihoods are known exactly (tinyworld/likelihood.py).

A disposition is given by what stands before the question: a persona text of either pole, nothing,
or an opinion that the speaker voiced already, after which the grammar's own posterior is known.
"""

from dataclasses import fields, replace
from itertools import pairwise
from random import Random
from statistics import fmean

import numpy as np
import polars as pl
import pytest
import torch

from steerloop.dose import dose
from steerloop.model import Model
from steerloop.readouts.contrast import contrast
from steerloop.readouts.forced_choice import choices
from steerloop.readouts.reasons import reasons
from steerloop.readouts.said import margins, spoken
from steerloop.report.sight import axis_values
from steerloop.report.stats import difference
from steerloop.sample import jobs
from steerloop.steer import extract, steered
from steerloop.tinyworld import grammar, likelihood, oracle
from steerloop.tinyworld.likelihood import DISPOSITIONS

AXIS = ["authority", "care"]
VOICED = 4  # sentences of an opinion
# from authority to care: the pole of the persona text, and of the opinion before the question
STATES = ((1, None), (None, 1), (None, None), (None, 0), (0, None))
POLES = ("care", "authority")
READERS = ("digits", "reasons", "contrast")


class Recalls(Model):
    """A model that has answered one question before."""

    before: tuple[str, str] | None = None

    def render(self, user: str, system: str | None = None) -> list[int]:
        if not self.before:
            return super().render(user, system)
        asked, answer = self.before
        return super().render(asked, system) + self.to_ids(answer) + self.follow(user)


def speaker(world, persona, opinion, turn):
    """One of STATES; another `turn` has other texts."""
    given = {x.name: getattr(world.model, x.name) for x in fields(Model) if x.init}
    pair = world.data.pairs[turn % len(world.data.pairs)]
    found = Recalls(**given | {"persona": None if persona is None else pair[persona]})
    if opinion is not None:
        rng = Random(turn)
        words = grammar.place_words(rng.choice(grammar.AUTHORITIES))
        table = (grammar.CARE_OPINIONS, grammar.AUTHORITY_OPINIONS)[opinion]
        texts = [rng.choice(grammar.OPINION_QUESTIONS), *rng.sample(table, VOICED)]
        asked, *voiced = (x.format(**words) for x in texts)
        found.before = asked, " ".join(voiced)
    return found


def believed(persona, opinion):
    """The mean of z given a state's texts."""
    points, density = oracle.grid(*oracle.PRIORS[
        "none" if persona is None else POLES[persona]])
    if opinion is not None:
        sharp = grammar.TRAIT_SHARPNESS * (1 if opinion == 0 else -1)
        shown = [grammar.sigmoid(sharp * (z - 0.5)) ** VOICED for z in points]
        density = [a * b for a, b in zip(density, shown, strict=True)]
    return sum(z * p for z, p in zip(points, density, strict=True)) / sum(density)


def ranked(values):
    """Whether each row of `values` (states, items) is above the one before, its interval, too."""
    return all(difference(b - a, 0, 400)[1] > 0
               for a, b in pairwise(values))


def texts_read(model, data, cfg):
    """Readout → table, of those that need no answers."""
    return {"digits": choices(model, data.vignettes, cfg, free=False),
            "reasons": reasons(model, data, cfg, AXIS), "contrast": contrast(model, data, cfg)}


def some(data, vignettes, opposed):
    """Every `vignettes`-th vignette, every `opposed`-th contrasted item."""
    return replace(data, vignettes=data.vignettes[::vignettes],
                   contrast=data.contrast.filter("held")[::opposed])


def check_a_blind_readout_ranks_nothing():
    """Of readouts that answer at random, whatever their items share, next to none would pass."""
    rng = np.random.default_rng(0)
    passed = 0
    for _ in range(500):
        shared, own = rng.normal(0, 3, 20), rng.normal(0, rng.uniform(0.01, 1), (5, 20))
        passed += ranked(shared + own)
    assert passed == 0
    assert not ranked(np.zeros((5, 20))) and not ranked(np.repeat(np.arange(5.0)[::-1, None], 9, 1))
    assert ranked(np.repeat(np.arange(5.0)[:, None], 9, 1) + rng.normal(0, 0.1, (5, 9)))


def check_the_oracle_ranks_the_five_dispositions(world):
    """Each is another one, two on either side of the model without a persona."""
    z = [believed(*x) for x in STATES]
    assert z == sorted(z) and min(b - a for a, b in pairwise(z)) > 0.1
    rows = world.data.contrast.filter("held").to_dicts()
    found = [likelihood.expected(rows[:2], x) for x in z]
    for name in ("reasons", "contrast", "said"):
        assert ranked(np.repeat([[x[name]] for x in found], 9, 1)
                      + np.random.default_rng(0).normal(0, 1e-6, (5, 9))), name


@torch.no_grad()
def check_reasons_and_contrast_rank_five_dispositions(world):
    """In order, and on their side of the model without a persona, which is the one in the middle;
    under persona texts contrast moves as far as the grammar's own likelihoods do."""
    data = some(world.data, 10, 7)
    held = data.contrast.select("prompt", "positive", "negative").rows()
    found = [texts_read(speaker(world, *x, turn=0), data, world.cfg) for x in STATES]
    for name in READERS:
        assert ranked(np.array([axis_values(name, x[name], AXIS) for x in found])), name
    sides = np.array([[x["contrast"][f"contrast_{s}"] for s in ("positive", "negative")]
                      for x in found]).mean(-1)

    def nats(prompt, answers, persona):
        """Per token."""
        return fmean(likelihood.persona_answer_nats(prompt, x, persona)
                     / len(world.model.to_ids(x)) for x in answers)

    for state, persona in ((0, "authority"), (-1, "care")):
        wanted = [fmean(nats(row[0], row[side], persona) - nats(row[0], row[side], "none")
                        for row in held) for side in (1, 2)]
        assert sides[state] - sides[2] == pytest.approx(wanted, abs=0.06)
        moved = (sides[state] - sides[2]) @ (1, -1)
        assert moved == pytest.approx(wanted[0] - wanted[1], rel=0.25)


@torch.no_grad()
def check_what_is_said_is_scored_as_the_grammar_does(world):
    """Answers that the grammar gives at five dispositions, each read by the base to within
    hundredths of a nat a token of their own likelihoods; so they are ranked, too."""
    rng, model = Random(0), world.model
    prompts = world.data.contrast.filter("held")["prompt"].to_list()[:24]
    readers = world.data.pairs[: world.cfg.said_pairs]
    read, known = [], []
    for z in DISPOSITIONS:
        texts = [grammar.dilemma_answer(rng, oracle.parse_dilemma(x), z) for x in prompts]
        ids = [[*model.to_ids(x), model.stop_ids[-1]] for x in texts]
        answers = pl.DataFrame({"prompt_id": range(len(prompts)), "prompt": prompts,
                                "completion_ids": ids})
        read.append(margins(model, answers, readers, world.cfg))
        known.append([
            (likelihood.persona_answer_nats(prompt, text, "care")
             - likelihood.persona_answer_nats(prompt, text, "authority")) / len(tokens)
            for prompt, text, tokens in zip(prompts, texts, ids, strict=True)])
    found, wanted = np.array(read), np.array(known)
    assert np.sqrt(((found - wanted) ** 2).mean()) < 0.04
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.95
    assert found.mean(1) == pytest.approx(wanted.mean(1), abs=0.03)
    assert (np.diff(found.mean(1)) > 0.02).all()


@torch.no_grad()
def uttered(world, speakers, copies, vector, doses):
    """What is said: the value of every answer (states, answers), the draws of all states alike."""
    prompts = world.data.contrast.filter("held")["prompt"].to_list()
    readers = world.data.pairs[: world.cfg.said_pairs]
    tables = [jobs(x, prompts, [d], copy) for x, d in zip(speakers, doses, strict=True)
              for copy in range(copies)]
    answers = spoken(world.model, pl.concat(tables), vector, world.cfg)
    values = margins(world.model, answers, readers, world.cfg)
    return np.array(values).reshape(len(speakers), -1)


@pytest.mark.long
def check_all_readouts_rank_five_dispositions(world):
    """All items, several texts of each disposition, and what is said by the speakers' own
    answers."""
    found = {name: [] for name in (*READERS, "said")}
    data = some(world.data, 3, 1)
    for turn in (0, 3, 6):
        speakers = [speaker(world, *x, turn) for x in STATES]
        with torch.no_grad():
            tables = [texts_read(x, data, world.cfg) for x in speakers]
        for name in READERS:
            found[name].append([axis_values(name, x[name], AXIS) for x in tables])
        found["said"].append(uttered(world, speakers, 3, {}, [0.0] * len(speakers)))
    for name, parts in found.items():
        assert ranked(np.concatenate(parts, 1)), name


@pytest.mark.long
def check_all_readouts_rank_five_doses(world):
    """The same of the steering vector at -c*, -c*/2, 0, c*/2 and c*."""
    model, data, cfg = world.model, some(world.data, 3, 1), world.cfg
    vector = extract(model, world.data, cfg)
    c_star, _ = dose(model, vector, world.data, cfg, "0")
    doses = [x * c_star for x in (-1.0, -0.5, 0.0, 0.5, 1.0)]
    tables = []
    for size in doses:
        with torch.no_grad(), steered(model, vector, size):
            tables.append(texts_read(model, data, cfg))
    for name in READERS:
        assert ranked(np.array([axis_values(name, x[name], AXIS) for x in tables])), name
    assert ranked(uttered(world, [model] * len(doses), 3, vector, doses))
