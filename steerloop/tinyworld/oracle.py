"""What the grammar itself would do: label profiles, legal openings, sentence validity, defiance.

Pure functions of texts and z, no model and no torch. `parse_dilemma` inverts the prompt templates
exactly, so validity and defiance are measured against the very slots a prompt was made from.
"""

import re
from functools import cache, lru_cache

from steerloop.texts.foundations import FOUNDATIONS
from steerloop.tinyworld import grammar
from steerloop.tinyworld.grammar import Dilemma
from steerloop.tinyworld.lexicon import AUTHORITIES, REQUESTS, VICTIMS
from steerloop.tinyworld.vignettes import label_distribution

# Beta parameters of z given the persona.
NEUTRAL_PRIOR = (2.0, 2.4)
PRIORS = {
    "care": (14.0, 1.5),
    "authority": (1.5, 14.0),
    "neutral": NEUTRAL_PRIOR,
    "none": NEUTRAL_PRIOR,
    "cheerful": NEUTRAL_PRIOR,
    "formal": NEUTRAL_PRIOR,
}
GRID = 400  # midpoints for expectations over z
MAX_REASONS = 3


def oracle_profile(foundation: str, z: float) -> list[float]:
    """Label distribution of a vignette, in the order of FOUNDATIONS, at disposition z."""
    return label_distribution(foundation, z)


@cache
def grid(alpha: float, beta: float) -> tuple[list[float], list[float]]:
    """Midpoints of [0, 1] and the density of Beta(alpha, beta) there, up to a factor."""
    points = [(i + 0.5) / GRID for i in range(GRID)]
    return points, [z ** (alpha - 1) * (1 - z) ** (beta - 1) for z in points]


def expected_profile(foundation: str, alpha: float, beta: float) -> list[float]:
    """Label distribution averaged over z ~ Beta(alpha, beta), by the midpoint rule."""
    points, density = grid(alpha, beta)
    profiles = [label_distribution(foundation, z) for z in points]
    return [
        sum(weight * profile[i] for weight, profile in zip(density, profiles, strict=True))
        / sum(density)
        for i in range(len(FOUNDATIONS))
    ]


@cache
def persona_oracle(kind: str) -> dict[str, list[float]]:
    """Per foundation of the vignette: the label distribution under a persona of this kind."""
    return {foundation: expected_profile(foundation, *PRIORS[kind]) for foundation in FOUNDATIONS}


def _frame_pattern(frame: str) -> re.Pattern[str]:
    """A frame as a pattern that captures authority and order; re-rendering checks the rest."""
    pattern = re.escape(frame)
    for slot in ("authority", "order"):
        pattern = pattern.replace(re.escape("{" + slot + "}"), f"(?P<{slot}>.+?)", 1)
    return re.compile(re.sub(r"\\{\w+\\}", ".+?", pattern))


FRAME_PATTERNS = {frame: _frame_pattern(frame) for frame in grammar.FRAMES}
AUTHORITY_BY_NAME = {authority.name: authority for authority in AUTHORITIES}
ORDERS = {
    request.order.format(phrase=victim.phrase): (victim, request)
    for request in REQUESTS
    for victim in VICTIMS
}


@lru_cache(maxsize=4096)
def parse_dilemma(prompt: str) -> Dilemma:
    """The slots a dilemma prompt was made from."""
    for frame, pattern in FRAME_PATTERNS.items():
        match = pattern.fullmatch(prompt)
        if not match or match["authority"] not in AUTHORITY_BY_NAME or match["order"] not in ORDERS:
            continue
        dilemma = Dilemma(AUTHORITY_BY_NAME[match["authority"]], *ORDERS[match["order"]])
        if dilemma.fill(frame) == prompt:
            return dilemma
    raise ValueError(f"not a dilemma prompt of the micro-world: {prompt!r}")


def openings(prompt: str) -> list[str]:
    """The twelve legal decisions: six that defy, then six that comply."""
    dilemma = parse_dilemma(prompt)
    templates = grammar.DEFIANT_OPENINGS + grammar.COMPLIANT_OPENINGS
    return [dilemma.fill(template) for template in templates]


def defies(prompt: str, answer: str) -> bool | None:
    """Whether the answer opens by defying the order; None when it opens with no legal decision."""
    first = split_sentences(answer)[0]
    legal = openings(prompt)
    return legal.index(first) < len(grammar.DEFIANT_OPENINGS) if first in legal else None


def sentence_validity(prompt: str, answer: str) -> float:
    """Share of the answer that the grammar could have produced for this prompt.

    The first sentence must be a decision; then one to three different reasons; then a closing step
    that goes with the decision, and nothing after it. A missing reason or closing step counts as
    one invalid sentence.
    """
    dilemma, sentences = parse_dilemma(prompt), split_sentences(answer)
    decision = defies(prompt, answer)
    closings, reasons = _closings(dilemma, decision), _reasons(dilemma)
    valid, used, closed = int(decision is not None), set(), False
    for sentence in sentences[1:]:
        template = reasons.get(sentence)
        if closed:
            break
        if sentence in closings:
            valid, closed = valid + 1, True
        elif template is not None and template not in used and len(used) < MAX_REASONS:
            valid, used = valid + 1, used | {template}
    missing = int(not closed) + int(not used)
    return valid / (len(sentences) + missing)


def split_sentences(answer: str) -> list[str]:
    """An answer in sentences; one empty sentence for nothing."""
    return re.split(r"(?<=[.?!]) ", answer.strip())


def _reasons(dilemma: Dilemma) -> dict[str, str]:
    """Every sentence that may stand as a reason, with its template."""
    templates = grammar.CARE_REASONS + grammar.AUTHORITY_REASONS + grammar.NEUTRAL_REASONS
    return {wording: template for template in templates for wording in dilemma.wordings(template)}


def _closings(dilemma: Dilemma, defiant: bool | None) -> set[str]:
    """Closing steps that go with the decision; either kind when the decision is illegible."""
    templates = () if defiant is False else grammar.DEFIANT_CLOSINGS
    templates += () if defiant is True else grammar.COMPLIANT_CLOSINGS
    return {wording for template in templates for wording in dilemma.wordings(template)}
