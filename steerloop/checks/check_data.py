"""The text data pack is what its card says: enough items, each its own, in words that neither
negate nor name the answer."""

import re
from collections import Counter
from itertools import combinations, pairwise

import pytest

from steerloop.texts.data import PACKAGE, lines, persona, read, table
from steerloop.texts.foundations import FOUNDATIONS
from steerloop.traits.faults import faults

TRAITS = PACKAGE / "data/traits"
PACKS = sorted(x.parent.name for x in TRAITS.glob("*/trait.toml"))
OLDEST = ("care_over_authority", "fairness_over_loyalty", "liberty_over_sanctity")
PROMPTS = "traits/care_over_authority/prompts.txt"
FILES = ("contexts.txt", PROMPTS, "vignettes.jsonl", "mundane.jsonl")
EACH = 24  # vignettes per foundation
NEAR = 0.25  # no two items of a file share a larger part of their word 3-grams
NEGATION = re.compile(
    r"n't\b|\b(not|cannot|no|nor|neither|never|none|nobody|nothing|nowhere|without|refus\w*|den(y|ies)"
    r"|un(?!der|til|i)\w+|dis(?!t)\w+|non\w+|ignor\w*|avoid\w*|reject\w*|oppos\w*)\b",
    re.I,
)
# beginnings of the options and of all their inflections and derivations
OPTIONS = re.compile(r"\b(un|dis|ab)?(car(e|ing)|fair|loyal|authorit|sanct|libert|soci|norm)", re.I)


def vignettes():
    """All vignettes with their labels."""
    return read("data/vignettes.jsonl", table("text", "foundation_coarse"))


def pairs(name):
    """The pole pairs of a pack."""
    return read(f"data/traits/{name}/trait.toml", persona)[0]


def texts(name):
    """Every text of a file that stands for itself."""
    if name.endswith(".txt"):
        return read(f"data/{name}", lines)
    if name == "vignettes.jsonl":
        return vignettes()["text"].to_list()
    frame = read(f"data/{name}", table("prompt", "text"))
    return frame["prompt"].to_list() + frame["text"].to_list()


def words(text):
    """Lower-case words, apostrophes kept."""
    return re.findall(r"[a-z0-9']+", text.lower())


def grams(text):
    """Set of word 3-grams; the text itself when it is shorter."""
    found = words(text)
    return {tuple(found[i : i + 3]) for i in range(max(len(found) - 2, 1))}


def lengths(found):
    """Fewest and most words of a text."""
    counts = [len(x.split()) for x in found]
    return min(counts), max(counts)


def check_files_are_as_many_and_as_long_as_said():
    contexts, prompts = texts("contexts.txt"), texts(PROMPTS)
    replies = read("data/mundane.jsonl", table("prompt", "text"))["text"].to_list()
    assert len(contexts) >= 264 and len(prompts) >= 48 and len(replies) >= 48
    for found, least, most in [
        (contexts, 4, 45),
        (prompts, 25, 60),
        (texts("vignettes.jsonl"), 8, 28),
        (replies, 30, 90),
    ]:
        low, high = lengths(found)
        assert least <= low <= high <= most, (low, high, found[0])


def check_every_foundation_has_as_many_vignettes_anywhere_in_the_file():
    labels = vignettes()["foundation_coarse"].to_list()
    assert Counter(labels) == dict.fromkeys(FOUNDATIONS, EACH)
    for i in range(0, len(labels), len(FOUNDATIONS)):
        assert set(labels[i : i + len(FOUNDATIONS)]) == set(FOUNDATIONS), i
    assert all(a != b for a, b in pairwise(labels))


def check_few_vignettes_say_you_see():
    found = texts("vignettes.jsonl")
    assert sum(x.startswith("You see ") for x in found) <= len(found) / 3


def check_no_vignette_names_an_option():
    for text in texts("vignettes.jsonl"):
        assert not OPTIONS.search(text), text


@pytest.mark.parametrize("word", ["cared", "carefully", "Unfair", "disloyal", "abnormal", "social"])
def check_inflected_options_are_seen(word):
    assert OPTIONS.search(f"a {word}, b") and not OPTIONS.search("carpet carrots scare affair")


@pytest.mark.parametrize("name", FILES)
def check_no_text_is_nearly_another(name):
    found = texts(name)
    assert len({" ".join(words(x)) for x in found}) == len(found)
    for (a, x), (b, y) in combinations([(x, grams(x)) for x in found], 2):
        assert len(x & y) <= NEAR * len(x | y), (a, b)


def check_vignettes_are_not_among_the_texts_that_steer():
    elsewhere = {x: grams(x) for name in ("contexts.txt", PROMPTS) for x in texts(name)}
    for text in texts("vignettes.jsonl"):
        mine = grams(text)
        for other, theirs in elsewhere.items():
            assert text.lower() not in other.lower(), text
            assert len(mine & theirs) <= NEAR * len(mine | theirs), (text, other)


def check_dilemmas_and_contexts_do_not_overlap():
    for prompt in texts(PROMPTS):
        for context in texts("contexts.txt"):
            x, y = grams(prompt), grams(context)
            assert len(x & y) <= NEAR * len(x | y), (prompt, context)


def check_dilemmas_end_with_a_question():
    assert all(x.endswith("?") for x in texts(PROMPTS))


OWN = sorted(str(x.relative_to(PACKAGE / "data")) for x in TRAITS.glob("*/*"))


@pytest.mark.parametrize("path", [*FILES, "reasons.toml", *OWN])
def check_files_are_plain_ascii(path):
    text = (PACKAGE / "data" / path).read_bytes()
    assert text.isascii() and text.endswith(b"\n") and b"\t" not in text and b"\r" not in text
    assert b"  " not in text or not path.endswith(".txt")


@pytest.mark.parametrize("name", PACKS)
def check_a_persona_has_eight_pairs_on_one_axis(name):
    found, up, down = read(f"data/traits/{name}/trait.toml", persona)
    assert len(found) == 8
    if up in FOUNDATIONS:
        assert down in FOUNDATIONS
    assert len({x for pair in found for x in pair}) == 16
    assert len({tuple(words(x)[:2]) for x, _ in found}) == 8, "frames differ"


@pytest.mark.parametrize("name", PACKS)
def check_the_texts_of_a_pack_are_without_fault(name):
    assert len(PACKS) >= 12 and faults(TRAITS / name) == []


@pytest.mark.parametrize("name", OLDEST)
def check_poles_are_opposites_in_the_same_words(name):
    for positive, negative in pairs(name):
        x, y = Counter(words(positive)), Counter(words(negative))
        assert positive != negative
        assert abs(x.total() - y.total()) <= 1, (positive, negative)
        assert (x & y).total() >= 0.6 * max(x.total(), y.total()), (positive, negative)
        assert words(positive)[:2] == words(negative)[:2]
        assert " even " in positive and " even " in negative


@pytest.mark.parametrize("name", OLDEST)
def check_poles_do_not_negate(name):
    for text in (x for pair in pairs(name) for x in pair):
        assert not NEGATION.search(text), text


@pytest.mark.parametrize("text", ["Don't obey.", "Never obey.", "Be unkind.", "Act without love."])
def check_negation_is_seen(text):
    assert NEGATION.search(text) and not NEGATION.search("Know an honest note under distress.")
