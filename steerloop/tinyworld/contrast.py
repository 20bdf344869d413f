"""The micro-world's trait pack: opposed answers to held-out dilemmas, reasons per foundation.

An opposed pair of answers differs in nothing but the trait: each has a decision, two reasons of its
own side and a closing step, and both have about as many words.
"""

from random import Random

from steerloop.texts.foundations import FOUNDATIONS
from steerloop.texts.questions import question
from steerloop.tinyworld import grammar
from steerloop.tinyworld.acts import WHY
from steerloop.tinyworld.grammar import Dilemma
from steerloop.tinyworld.oracle import parse_dilemma
from steerloop.tinyworld.vignettes import ASKED, MATTERS, PARAPHRASES

Row = dict[str, str | list[str]]

A_SIDE = 2  # answers
REASONS = 2  # of an answer
LENGTHS = 0.1  # largest difference of two opposed answers in words, of the longer one
SIDES = (
    (grammar.DEFIANT_OPENINGS, grammar.CARE_REASONS, grammar.DEFIANT_CLOSINGS),
    (grammar.COMPLIANT_OPENINGS, grammar.AUTHORITY_REASONS, grammar.COMPLIANT_CLOSINGS),
)


def side_answers(rng: Random, dilemma: Dilemma, defiant: bool) -> list[str]:
    """Answers of one side that share no template with each other."""
    openings, reasons, closings = SIDES[0 if defiant else 1]
    first, last = rng.sample(openings, A_SIDE), rng.sample(closings, A_SIDE)
    between = rng.sample(reasons, A_SIDE * REASONS)
    answers = []
    for i in range(A_SIDE):
        templates = [first[i], *between[REASONS * i : REASONS * (i + 1)], last[i]]
        answers.append(" ".join(dilemma.fill(x, rng.random() < grammar.BY_NAME) for x in templates))
    return answers


def matched(one: str, other: str) -> bool:
    """Whether two answers are about equally long."""
    lengths = sorted(len(x.split()) for x in (one, other))
    return lengths[1] - lengths[0] <= LENGTHS * lengths[1]


def contrast_rows(rng: Random, prompts: list[str]) -> list[Row]:
    """Per prompt: answers that defy out of care, and as many that comply out of respect, matched in
    length one by one. No answer stands twice."""
    rows, used = [], set()
    for prompt in prompts:
        dilemma, new = parse_dilemma(prompt), False
        while not new:
            positive, negative = (side_answers(rng, dilemma, x) for x in (True, False))
            new = all(map(matched, positive, negative)) and not used & {*positive, *negative}
        used |= {*positive, *negative}
        rows.append({"prompt": prompt, "positive": positive, "negative": negative})
    return rows


def wordings() -> list[tuple[str, dict[str, list[str]]]]:
    """Two questions about a {vignette} that ask for a thought first, each with two phrases per
    foundation; the two share no phrase, and neither the order of options nor the question."""
    one, other = {}, {}
    for name in FOUNDATIONS:
        first, second, third = WHY[name]
        one[name] = [first, second]
        other[name] = [third, f"{third} {MATTERS[0].format(name)}"]
    asked = question("{vignette}", reverse=True, think=True).replace(ASKED, PARAPHRASES[1])
    return [(question("{vignette}", reverse=False, think=True), one), (asked, other)]
