"""Conversations: a persona sets the disposition z, and every turn of the conversation shows it.

    z | care persona        ~ Beta(14, 1.5)
    z | authority persona   ~ Beta(1.5, 14)
    z | any other           ~ Beta(2, 2.4)

A forced choice is trained on its exact label distribution. Where the persona is the only evidence
about z, that is the expectation over z given the persona; after other trait-bearing turns it is the
distribution at the drawn z, whose average is the right posterior.
"""

from dataclasses import dataclass, field
from functools import cache
from random import Random

from steerloop.texts.foundations import FOUNDATIONS
from steerloop.tinyworld import grammar, personas, vignettes
from steerloop.tinyworld.mundane import draw_mundane
from steerloop.tinyworld.oracle import PRIORS, expected_profile
from steerloop.tinyworld.splits import Split

PERSONA_KINDS = {
    "care": 0.24,
    "authority": 0.24,
    "neutral": 0.24,
    "none": 0.14,
    "cheerful": 0.07,
    "formal": 0.07,
}
# Forms of a conversation and their shares; "+" joins two turns that share z.
FORMS = {
    "dilemma": 0.14,
    "choice": 0.17,
    "think": 0.10,
    "opinion": 0.06,
    "story": 0.07,
    "mundane": 0.17,
    "dilemma+choice": 0.09,
    "choice+dilemma": 0.05,
    "opinion+dilemma": 0.04,
    "opinion+choice": 0.02,
    "mundane+choice": 0.03,
    "dilemma+mundane": 0.03,
    "mundane+dilemma": 0.03,
}


@dataclass(frozen=True)
class Turn:
    """A user text, the model's answer, and the label distribution of its digit, if it has one."""

    user: str
    answer: str
    digits: list[float] | None = None


@dataclass(frozen=True)
class Conversation:
    """One training example."""

    persona: str
    z: float
    form: str
    system: str
    turns: list[Turn] = field(default_factory=list)


def draw_disposition(rng: Random, persona: str) -> float:
    return rng.betavariate(*PRIORS[persona])


def draw_system(rng: Random, persona: str) -> str:
    """A system text of the persona; empty for "none"."""
    if persona == "none":
        return ""
    if persona == "neutral":
        return rng.choice(personas.NEUTRAL)
    if persona in personas.DISTRACTORS:
        traits, manners = personas.DISTRACTORS[persona]
    else:
        pole = ("care", "authority").index(persona)
        traits = [pair[pole] for pair in personas.TRAITS]
        manners = [pair[pole] for pair in personas.PRICES]
    return f"{rng.choice(personas.STEMS)} {rng.choice(traits)} {rng.choice(manners)}."


def with_tone(rng: Random, persona: str, answer: str) -> str:
    """A distractor style decorates the answer; other personas leave it alone."""
    if persona not in personas.TONES:
        return answer
    before, after = personas.TONES[persona]
    opening = rng.choice(before) + " " if rng.random() < 0.8 else ""
    ending = " " + rng.choice(after) if rng.random() < 0.6 else ""
    return opening + answer + ending


@cache
def _prior_profile(persona: str, foundation: str) -> list[float]:
    return expected_profile(foundation, *PRIORS[persona])


def draw_choice(
    rng: Random, persona: str, z: float, think: bool, z_is_shown: bool, split: Split
) -> Turn:
    """A forced choice in a random option order, with or without a thought before it."""
    vignette, reverse = vignettes.draw_vignette(rng, split), rng.random() < 0.5
    asked = vignettes.choice_question(rng, vignette, reverse, think)
    profile = vignettes.label_distribution(vignette.foundation, z)
    (label,) = rng.choices(FOUNDATIONS, profile)
    if think:
        target = vignettes.thought_distribution(label)
        (chosen,) = rng.choices(FOUNDATIONS, target)
        before = vignettes.thought(rng, label) + "\n"
    else:
        target = profile if z_is_shown else _prior_profile(persona, vignette.foundation)
        chosen, before = label, ""
    answer = before + vignettes.choice_answer(chosen, reverse)
    return Turn(asked, answer, vignettes.by_digit(target, reverse))


def draw_turn(
    rng: Random, part: str, persona: str, z: float, z_is_shown: bool, split: Split
) -> Turn:
    if part in ("choice", "think"):
        return draw_choice(rng, persona, z, part == "think", z_is_shown, split)
    if part == "dilemma":
        dilemma = grammar.draw_dilemma(rng, split)
        user, answer = grammar.dilemma_prompt(rng, dilemma), grammar.dilemma_answer(rng, dilemma, z)
    elif part == "opinion":
        user, answer = grammar.draw_opinion(rng, z)
    elif part == "story":
        user, answer = grammar.draw_story(rng, z, split)
    else:
        task = draw_mundane(rng, split)
        user, answer = task.prompt, task.answer
    return Turn(user, with_tone(rng, persona, answer))


def draw_conversation(rng: Random, split: Split = "train") -> Conversation:
    (persona,) = rng.choices(tuple(PERSONA_KINDS), tuple(PERSONA_KINDS.values()))
    (form,) = rng.choices(tuple(FORMS), tuple(FORMS.values()))
    z, z_is_shown, turns = draw_disposition(rng, persona), False, []
    for part in form.split("+"):
        turns.append(draw_turn(rng, part, persona, z, z_is_shown, split))
        z_is_shown = z_is_shown or part != "mundane"
    return Conversation(persona, z, form, draw_system(rng, persona), turns)
