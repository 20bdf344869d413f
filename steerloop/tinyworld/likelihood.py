"""What a disposition z makes of a text, exactly: log-probabilities of answers and of reasons, and
so the sign and order in which readouts of the trait must rank dispositions.

An answer has a shape (does it defy, and which kinds of reasons does it give, in which order), whose
probability alone depends on z, and a wording, drawn uniformly given the shape. All values are nats
a text, not a token. Nothing here needs a model.
"""

import math
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import product

from steerloop.texts.foundations import FOUNDATIONS
from steerloop.tinyworld import grammar
from steerloop.tinyworld.acts import WHY
from steerloop.tinyworld.contrast import Row
from steerloop.tinyworld.grammar import sigmoid
from steerloop.tinyworld.oracle import MAX_REASONS, PRIORS, grid, parse_dilemma, split_sentences
from steerloop.tinyworld.vignettes import label_distribution

Shape = tuple[bool, tuple[str, ...]]  # defies; the kinds of its reasons

DISPOSITIONS = (0.05, 0.3, 0.5, 0.7, 0.95)
KINDS = ("care", "authority", "neutral")
BALANCED = 0.5  # the disposition that leans to neither side


def templates(kind: str) -> tuple[str, ...]:
    """The reasons of a kind."""
    tables = grammar.CARE_REASONS, grammar.AUTHORITY_REASONS, grammar.NEUTRAL_REASONS
    return tables[KINDS.index(kind)]


def shapes() -> list[Shape]:
    """Every shape that an answer can have."""
    counts = range(1, MAX_REASONS + 1)
    orders = [kinds for n in counts for kinds in product(KINDS, repeat=n)]
    return [(defiant, kinds) for defiant in (True, False) for kinds in orders]


def shape_probability(shape: Shape, z: float) -> float:
    """Of an answer's shape at disposition z. Reasons are drawn without replacement: one that was
    given already is drawn again."""
    defiant, kinds = shape
    p = sigmoid(grammar.DECISION_SHARPNESS * (z - 0.5) * (1 if defiant else -1))
    p *= grammar.REASON_COUNTS.count(len(kinds)) / len(grammar.REASON_COUNTS)
    care = sigmoid(grammar.TRAIT_SHARPNESS * (z - 0.5))
    trait = 1 - grammar.NEUTRAL_SHARE
    weights = dict(zip(KINDS, (trait * care, trait * (1 - care), grammar.NEUTRAL_SHARE),
                       strict=True))
    sizes = {kind: len(templates(kind)) for kind in KINDS}
    left = dict(sizes)
    for kind in kinds:
        unused = {k: weights[k] * left[k] / sizes[k] for k in KINDS}
        p *= unused[kind] / sum(unused.values())
        left[kind] -= 1
    return p


@cache
def persona_shape_probability(shape: Shape, persona: str) -> float:
    """Of an answer's shape, z drawn given the persona (see PRIORS)."""
    points, density = grid(*PRIORS[persona])
    each = [w * shape_probability(shape, z) for z, w in zip(points, density, strict=True)]
    return sum(each) / sum(density)


@lru_cache(maxsize=4096)
def _wordings(prompt: str, of: tuple[str, ...]) -> dict[str, tuple[str, float]]:
    """Sentence → its template among these, and its probability given that."""
    dilemma, found = parse_dilemma(prompt), {}
    for template in of:
        for by_name, p in ((True, grammar.BY_NAME), (False, 1 - grammar.BY_NAME)):
            sentence = dilemma.fill(template, by_name)
            before = found[sentence][1] if sentence in found else 0.0
            found[sentence] = template, before + p
    return found


def read(prompt: str, answer: str) -> tuple[Shape, float] | None:
    """An answer's shape, and the probability of its wording given the shape; None where the grammar
    cannot have written it."""
    first, *between = split_sentences(answer)
    defiant = first in _wordings(prompt, grammar.DEFIANT_OPENINGS)
    openings = grammar.DEFIANT_OPENINGS if defiant else grammar.COMPLIANT_OPENINGS
    closings = grammar.DEFIANT_CLOSINGS if defiant else grammar.COMPLIANT_CLOSINGS
    last = between.pop() if between else ""
    p, kinds, used = 1.0, [], set()
    for sentence, table in ((first, openings), (last, closings)):
        p *= _wordings(prompt, table).get(sentence, ("", 0.0))[1] / len(table)
    for sentence in between:
        kind = next((k for k in KINDS if sentence in _wordings(prompt, templates(k))), None)
        if kind is None:
            return None
        template, given = _wordings(prompt, templates(kind))[sentence]
        p *= given * (template not in used) / max(1, len(templates(kind)) - kinds.count(kind))
        used.add(template)
        kinds.append(kind)
    return ((defiant, tuple(kinds)), p) if p and 1 <= len(kinds) <= MAX_REASONS else None


def answer_nats(prompt: str, answer: str, z: float) -> float:
    """Log-probability of an answer to a dilemma at disposition z; -inf for one that the grammar
    cannot have written."""
    found = read(prompt, answer)
    return math.log(shape_probability(found[0], z) * found[1]) if found else -math.inf


def persona_answer_nats(prompt: str, answer: str, persona: str) -> float:
    """The same under a persona ("none": without)."""
    found = read(prompt, answer)
    if not found:
        return -math.inf
    return math.log(persona_shape_probability(found[0], persona) * found[1])


def contrast(row: Row, z: float) -> tuple[float, float]:
    """Mean log-probabilities of an item's two sides (positive, negative) at disposition z."""
    positive, negative = (
        sum(answer_nats(row["prompt"], x, z) for x in row[side]) / len(row[side])
        for side in ("positive", "negative")
    )
    return positive, negative


def reason_nats(foundation: str, phrase: str, z: float) -> float:
    """Log-probability that a thought about a vignette of this foundation begins with the phrase;
    -inf for one that no thought begins with."""
    profile = dict(zip(FOUNDATIONS, label_distribution(foundation, z), strict=True))
    first = split_sentences(phrase)[0]
    p = sum(profile[name] / len(WHY[name]) for name in FOUNDATIONS if first in WHY[name])
    return math.log(p) if p else -math.inf


def reasons(foundation: str, z: float) -> float:
    """Care minus authority: log-odds of the two in a thought about such a vignette."""
    profile = dict(zip(FOUNDATIONS, label_distribution(foundation, z), strict=True))
    return math.log(profile["care"] / profile["authority"])


def said(z: float) -> float:
    """Expected log-probability under the care persona less that under the authority persona, of an
    answer that was given at disposition z."""
    return sum(
        shape_probability(shape, z)
        * math.log(persona_shape_probability(shape, "care")
                   / persona_shape_probability(shape, "authority"))
        for shape in shapes()
    )


def expected(rows: Sequence[Row], z: float) -> dict[str, float]:
    """Readout → its shift at disposition z from the balanced one, which has the sign of z - 1/2 and
    grows with z. Of contrast its two sides too."""
    sides = [
        sum(contrast(row, z)[i] - contrast(row, BALANCED)[i] for row in rows) / len(rows)
        for i in (0, 1)
    ]
    leaning = [reasons(name, z) - reasons(name, BALANCED) for name in FOUNDATIONS]
    return {
        "contrast": sides[0] - sides[1],
        "contrast_positive": sides[0],
        "contrast_negative": sides[1],
        "reasons": sum(leaning) / len(leaning),
        "said": said(z),
    }
