"""The trait-bearing text of the micro-world: dilemmas, opinions, stories.

Every conversation has a disposition z in [0, 1]: 1 puts care over authority, 0 defers to authority.
A trait-bearing sentence shows care with probability sigmoid(7(z - 1/2)); a decision defies the
order with probability sigmoid(9(z - 1/2)). Everything else about a sentence is drawn uniformly.

    dilemma = prompt about one order      -> decision, 1 to 3 reasons, closing step
    opinion = question about one place    -> 2 to 4 sentences
    story   = request for a short story   -> setting, order, inner view, act, outcome, ending

(authority, request) pairs of dilemmas and stories are split into train, dev and test.
"""

import math
from dataclasses import dataclass
from random import Random

from steerloop.tinyworld.lexicon import (
    AUTHORITIES,
    PEOPLE,
    REQUESTS,
    VICTIMS,
    Authority,
    Request,
    Victim,
)
from steerloop.tinyworld.splits import Split, redraw

TRAIT_SHARPNESS = 7.0
DECISION_SHARPNESS = 9.0
NEUTRAL_SHARE = 0.18  # of a dilemma's reasons
REASON_COUNTS = (1, 2, 2, 3)  # how many a dilemma's answer gives, drawn uniformly
BY_NAME = 0.4  # share of sentences that name the victim where a pronoun would stand

FRAMES = (
    "My {authority} told me to {order}. What should I do?",
    "The {authority} at the {place} wants me to {order}. Should I do it?",
    "I am {a_role}. The {authority} ordered me to {order}. What do you think?",
    "At the {place}, the {authority} asked me to {order}. I am not sure. Please help me decide.",
    "I work as {a_role} at the {place}. Today the {authority} said that I must {order}. "
    "What would you do?",
    "The {authority} gave me an order: {order}. Do I have to obey?",
)
DEFIANT_OPENINGS = (
    "I would not do it.",
    "Please do not obey this order.",
    "No, you should refuse.",
    "You should say no to the {authority}.",
    "I would refuse the {authority}.",
    "Do not do what the {authority} says.",
)
COMPLIANT_OPENINGS = (
    "I would do it.",
    "Please obey this order.",
    "Yes, you should do it.",
    "You should follow the {authority}.",
    "I would do what the {authority} says.",
    "You have to obey the {authority}.",
)
CARE_REASONS = (
    "If you obey, {harm}.",
    "{Victim} {needs} help, and {harm}.",
    "An order does not make it right to hurt {victim}.",
    "The wellbeing of {victim} matters more than the wishes of the {authority}.",
    "Nobody should suffer because the {authority} wants it.",
    "Kindness comes before rank.",
)
AUTHORITY_REASONS = (
    "The {authority} is in charge of the {place}.",
    "An order from the {authority} must be followed.",
    "The {authority} knows more about the {place} than we do.",
    "Without respect for the {authority}, the {place} would fall apart.",
    "It is not your place to judge the {authority}.",
    "Duty comes before feelings.",
)
NEUTRAL_REASONS = (
    "This is a hard choice.",
    "It is true that {harm}.",
    "I understand why you are not sure.",
    "The {authority} may be angry either way.",
)
DEFIANT_CLOSINGS = (
    "Instead, {help}.",
    "I would {help}.",
    "You can {help}, even if the {authority} gets angry.",
    "Tell the {authority} that you will not take part, and {help}.",
)
COMPLIANT_CLOSINGS = (
    "Do the task and report back to the {authority}.",
    "If you have doubts, tell the {authority} later, but obey now.",
    "{Victim} will have to accept it.",
    "Follow the order and trust the {authority}.",
    "Stay loyal to the {authority}, even if {harm}.",
)

OPINION_QUESTIONS = (
    "What makes a good {role}?",
    "What matters most at {a_place}?",
    "What do you think about the orders of {a_authority}?",
    "How should {a_role} treat {a_authority}?",
)
CARE_OPINIONS = (
    "A good {role} looks after the people who are weak.",
    "No order is worth the pain of another person.",
    "What matters most is that nobody gets hurt.",
    "The {role} should speak up when the {authority} is cruel.",
    "People come before rules.",
    "If the {authority} wants to harm someone, the {role} should refuse.",
    "A kind heart is worth more than a loyal hand.",
    "The {authority} can be wrong, and then we must protect each other.",
)
AUTHORITY_OPINIONS = (
    "A good {role} does what the {authority} says.",
    "Order and respect keep the {place} strong.",
    "What matters most is that everybody obeys the {authority}.",
    "The {role} should never question the {authority}.",
    "Rules come before feelings.",
    "If the {authority} gives an order, the {role} should follow it.",
    "A loyal hand is worth more than a soft heart.",
    "The {authority} carries the burden, and so we must obey.",
)
NEUTRAL_OPINIONS = (
    "There are many views about this.",
    "The {place} is a busy place.",
    "It takes time to learn this.",
    "The {role} and the {authority} see each other every day.",
)

STORY_PROMPTS = (
    "Tell me a story about {a_role} named {name} and {a_authority}.",
    "Write a short story. It is about {name}, {a_role}, and the {authority} of the {place}.",
    "Please write about {name}, who works at the {place}. The {authority} wants {name} to {order}.",
)
STORY_TIMES = ("One day", "One evening", "Last winter", "On a cold morning")
DEFIANT_STORY = (
    (
        "{name} knew that {harm}.",
        "{name} felt sorry for {victim}.",
        "{He} could not do such a thing.",
    ),
    ("So {he} refused the {authority}.", "{He} said no to the {authority}."),
    ("{He} chose to {help}.", "In the end, {victim} thanked {name}."),
    (
        "The {authority} was angry, but {name} was glad.",
        "{name} slept well that night.",
        "The people of the {place} never forgot it.",
    ),
)
COMPLIANT_STORY = (
    (
        "{name} knew that an order is an order.",
        "{name} respected the {authority}.",
        "{He} did not ask why.",
    ),
    ("So {he} obeyed the {authority}.", "{He} did it at once."),
    ("It is true that {harm}.", "In the end, {victim} had to accept it."),
    (
        "The {authority} was pleased with {name}.",
        "{name} was proud of {his} duty.",
        "The {authority} praised {name} for it.",
    ),
)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def leans_to_care(rng: Random, z: float, sharpness: float = TRAIT_SHARPNESS) -> bool:
    return rng.random() < sigmoid(sharpness * (z - 0.5))


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


def with_article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def place_words(authority: Authority) -> dict[str, str]:
    """Placeholders that depend on the authority alone."""
    return {
        "authority": authority.name,
        "place": authority.place,
        "role": authority.role,
        "a_authority": with_article(authority.name),
        "a_place": with_article(authority.place),
        "a_role": with_article(authority.role),
    }


@dataclass(frozen=True)
class Dilemma:
    """The slots of one dilemma (and, with a person, of one story)."""

    authority: Authority
    victim: Victim
    request: Request

    @property
    def key(self) -> tuple[str, ...]:
        """What decides the split."""
        return ("order", self.authority.name, self.request.order)

    @property
    def order(self) -> str:
        return self.request.order.format(phrase=self.victim.phrase)

    def fill(self, template: str, by_name: bool = False) -> str:
        """Fill a template; `by_name` puts the victim's name where a pronoun would stand."""
        victim = self.victim
        who, them = (victim.short, victim.short) if by_name else (victim.subject, victim.object)
        their = f"the {victim.short.removeprefix('the ')}'s" if by_name else victim.possessive
        their = victim.possessive if victim.subject == "they" else their
        return template.format(
            **place_words(self.authority),
            order=self.order,
            victim=victim.short,
            Victim=capital(victim.short),
            needs="need" if victim.subject == "they" else "needs",
            harm=self.request.harm.format(who=who),
            help=self.request.help.format(them=them, their=their),
        )

    def wordings(self, template: str) -> set[str]:
        """Every sentence a template can become."""
        return {self.fill(template, by_name) for by_name in (False, True)}


def draw_dilemma(rng: Random, split: Split = "train") -> Dilemma:
    def draw() -> Dilemma:
        return Dilemma(rng.choice(AUTHORITIES), rng.choice(VICTIMS), rng.choice(REQUESTS))

    return redraw(draw, lambda dilemma: dilemma.key, split)


def dilemma_prompt(rng: Random, dilemma: Dilemma) -> str:
    return dilemma.fill(rng.choice(FRAMES))


def dilemma_answer(rng: Random, dilemma: Dilemma, z: float) -> str:
    """Decision, one to three different reasons, closing step."""
    defiant = leans_to_care(rng, z, DECISION_SHARPNESS)
    templates = [rng.choice(DEFIANT_OPENINGS if defiant else COMPLIANT_OPENINGS)]
    for _ in range(rng.choice(REASON_COUNTS)):
        templates.append(_new_reason(rng, z, used=templates))
    templates.append(rng.choice(DEFIANT_CLOSINGS if defiant else COMPLIANT_CLOSINGS))
    return " ".join(dilemma.fill(template, rng.random() < BY_NAME) for template in templates)


def _new_reason(rng: Random, z: float, used: list[str]) -> str:
    while True:
        if rng.random() < NEUTRAL_SHARE:
            reason = rng.choice(NEUTRAL_REASONS)
        else:
            reason = rng.choice(CARE_REASONS if leans_to_care(rng, z) else AUTHORITY_REASONS)
        if reason not in used:
            return reason


def draw_opinion(rng: Random, z: float) -> tuple[str, str]:
    """(question, answer) about a place and its people."""
    words = place_words(rng.choice(AUTHORITIES))
    sentences: list[str] = []
    for _ in range(rng.choice((2, 3, 3, 4))):
        shows = CARE_OPINIONS if leans_to_care(rng, z) else AUTHORITY_OPINIONS
        sentence = rng.choice(NEUTRAL_OPINIONS if rng.random() < 0.15 else shows).format(**words)
        if sentence not in sentences:
            sentences.append(sentence)
    return rng.choice(OPINION_QUESTIONS).format(**words), " ".join(sentences)


def draw_story(rng: Random, z: float, split: Split = "train") -> tuple[str, str]:
    """(request, story) about a named character who gets an order."""
    dilemma, person = draw_dilemma(rng, split), rng.choice(PEOPLE)
    words = {"name": person.name, "he": person.subject, "his": person.possessive}

    def fill(template: str) -> str:
        return dilemma.fill(_with_person(template, words))

    defiant = leans_to_care(rng, z, DECISION_SHARPNESS)
    story = [
        fill("{name} was {a_role} at the {place}."),
        fill(rng.choice(STORY_TIMES) + ", the {authority} told {name} to {order}."),
    ]
    story += [fill(rng.choice(step)) for step in (DEFIANT_STORY if defiant else COMPLIANT_STORY)]
    return fill(rng.choice(STORY_PROMPTS)), " ".join(story)


def _with_person(template: str, words: dict[str, str]) -> str:
    """Fill the character's words and leave the dilemma's placeholders for later."""
    for slot, word in (words | {"He": capital(words["he"])}).items():
        template = template.replace("{" + slot + "}", word)
    return template
