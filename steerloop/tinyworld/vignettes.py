"""Moral vignettes, their label distribution, and the forced choice in both option orders.

    label ~ softmax(3 primary + 1.2 secondary - 2 t authority + 1.2 t care - 0.4 t social norms),
    t = 2z - 1

(act, filler) combinations are split into train, dev and test; the filler is the target or the
leader where the act names one, and the person seen where it does not. Held-out vignettes also
show people that training never shows in this slot, since 12 acts and 16 people leave too few
combinations.
"""

import math
from dataclasses import dataclass
from random import Random

from steerloop.texts.foundations import FOUNDATIONS
from steerloop.texts.questions import SCAFFOLD, question
from steerloop.tinyworld.acts import (
    ACTS,
    LEADERS,
    TARGETS,
    WHY,
    WITNESSED,
    WITNESSED_HELD_OUT,
)
from steerloop.tinyworld.splits import Split, redraw

SECONDARY = {
    "care": "liberty",
    "fairness": "loyalty",
    "loyalty": "authority",
    "authority": "social norms",
    "sanctity": "social norms",
    "liberty": "care",
    "social norms": "authority",
}
TILT = {"authority": -2.0, "care": 1.2, "social norms": -0.4}
THOUGHT_WEIGHT = 0.97  # of the digit that a written thought has decided

PARAPHRASES = (
    "What kind of wrong is this?",
    "Which value is violated here?",
    "What does this go against most?",
)
ASKED = "Which rule does this break most?"
MATTERS = ("It is a matter of {}.", "I think about {}.", "It goes against {}.")


@dataclass(frozen=True)
class Vignette:
    """Someone is seen doing something."""

    foundation: str
    witnessed: str
    act: str
    filler: str

    @property
    def key(self) -> tuple[str, ...]:
        """What decides the split."""
        return ("act", self.act, self.filler)

    @property
    def text(self) -> str:
        act = self.act.format(target=self.filler, leader=self.filler)
        return f"You see {self.witnessed} {act}."


def label_distribution(foundation: str, z: float) -> list[float]:
    """Seven probabilities in the order of FOUNDATIONS."""
    tilt = 2 * z - 1
    logits = [
        3.0 * (name == foundation)
        + 1.2 * (name == SECONDARY[foundation])
        + TILT.get(name, 0.0) * tilt
        for name in FOUNDATIONS
    ]
    weights = [math.exp(logit) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def draw_vignette(rng: Random, split: Split = "train", foundation: str | None = None) -> Vignette:
    people = WITNESSED if split == "train" else WITNESSED + WITNESSED_HELD_OUT

    def draw() -> Vignette:
        primary = foundation or rng.choice(FOUNDATIONS)
        act, witnessed = rng.choice(ACTS[primary]), rng.choice(people)
        filler = witnessed
        if "{target}" in act:
            filler = rng.choice(TARGETS)
        elif "{leader}" in act:
            filler = rng.choice(LEADERS)
        return Vignette(primary, witnessed, act, filler)

    return redraw(draw, lambda vignette: vignette.key, split)


def choice_question(rng: Random, vignette: Vignette, reverse: bool, think: bool = False) -> str:
    """Mostly the evaluator's own question; sometimes a paraphrase of its middle line."""
    asked = question(vignette.text, reverse, think)
    return asked.replace(ASKED, rng.choice(PARAPHRASES)) if rng.random() < 0.15 else asked


def digit_order(reverse: bool) -> tuple[str, ...]:
    """Foundations by option number."""
    return FOUNDATIONS[::-1] if reverse else FOUNDATIONS


def choice_answer(foundation: str, reverse: bool) -> str:
    return f"{SCAFFOLD}{digit_order(reverse).index(foundation) + 1}}}"


def by_digit(distribution: list[float], reverse: bool) -> list[float]:
    """A distribution over FOUNDATIONS as one over the digits 1 to 7."""
    return distribution[::-1] if reverse else list(distribution)


def thought(rng: Random, foundation: str) -> str:
    """One or two sentences that decide the answer."""
    sentence = rng.choice(WHY[foundation])
    return (
        f"{sentence} {rng.choice(MATTERS).format(foundation)}" if rng.random() < 0.6 else sentence
    )


def thought_distribution(foundation: str) -> list[float]:
    """The label once a thought names its foundation."""
    rest = (1 - THOUGHT_WEIGHT) / len(FOUNDATIONS)
    return [rest + THOUGHT_WEIGHT * (name == foundation) for name in FOUNDATIONS]
