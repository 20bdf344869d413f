"""What a careful reader would find wrong with the texts of a pack, as far as it can be counted."""

import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import polars as pl

from steerloop.texts.data import lines
from steerloop.texts.packs import NAMES, SIDES, contrast, persona
from steerloop.texts.reader import read_text, toml

PROMPTS, ITEMS, PAIRS = 40, 60, 4  # the least of a pack: to train on, held out, personas
ALIKE = 0.5  # words that two prompts may share
WORDS = (4, 60)  # of an answer
LENGTHS = 1.25  # longest over shortest side of an item, in words
EVEN = 0.05  # difference of the sides over the whole file
PHRASE = 4  # words in a row that are wording of a persona
OFTEN = 2  # persona texts of one pole in which a word is that pole's
SHORT = 5  # letters from which a word says something
FRAME = {"even", "when", "means", "someone", "somebody", "person", "being", "answer", "people",
         "about", "other", "others", "which", "their", "would", "should"}


def words(text: str) -> list[str]:
    """Lower-case words."""
    return re.findall(r"[a-z0-9']+", text.lower())


def grams(text: str, n: int) -> set[tuple[str, ...]]:
    """Word n-grams."""
    found = words(text)
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}


def own_words(pairs: list[tuple[str, str]]) -> set[str]:
    """Words that mark a pole: in OFTEN of its texts, and in none of the other's."""
    marks = set()
    for side in (0, 1):
        mine, other = ([set(words(pair[x])) for pair in pairs] for x in (side, 1 - side))
        counts = Counter(w for text in mine for w in text if len(w) >= SHORT and w not in FRAME)
        marks |= {w for w, n in counts.items() if n >= OFTEN and not any(w in x for x in other)}
    return marks


def faults(folder: Path) -> list[str]:
    """One line for each. Raises UserError or ValueError for files that cannot be read."""
    table = toml(read_text(folder / NAMES["persona"]))
    pairs, _, _ = persona(read_text(folder / NAMES["persona"]))
    prompts = lines(read_text(folder / NAMES["prompts"]))
    items = contrast(read_text(folder / NAMES["contrast"]))
    held = items.filter(~pl.col("prompt").is_in(prompts))
    found = [f"{n} {what}, {least} are wanted" for n, what, least in (
        (len(pairs), "persona pairs", PAIRS), (len(prompts), "training prompts", PROMPTS),
        (len(held), "held-out items", ITEMS)) if n < least]
    found += alike([*prompts, *held["prompt"]])
    found += repeated(items) + leaks(items, pairs)
    return found + ([] if table.get("length") == "trait" else uneven(items))


def alike(prompts: list[str]) -> list[str]:
    """Prompts that are nearly another."""
    sets = [(x, set(words(x))) for x in prompts]
    return [f"prompts alike: {a!r} and {b!r}" for (a, x), (b, y) in combinations(sets, 2)
            if len(x & y) > ALIKE * len(x | y)]


def answers(items: pl.DataFrame) -> list[str]:
    """Of either side."""
    return [x for row in items.select(*SIDES).rows() for side in row for x in side]


def repeated(items: pl.DataFrame) -> list[str]:
    """Answers that two items share, and items with one answer a side."""
    counts = Counter(" ".join(words(x)) for x in answers(items))
    found = [f"answer twice: {x!r}" for x, n in counts.items() if n > 1]
    thin = items.filter(pl.min_horizontal(pl.col(x).list.len() for x in SIDES) < 2)["prompt"]
    return found + [f"two answers a side are wanted: {x!r}" for x in thin]


def leaks(items: pl.DataFrame, pairs: list[tuple[str, str]]) -> list[str]:
    """Answers in the wording of a persona text."""
    marks = own_words(pairs)
    phrases = {g for pair in pairs for x in pair for g in grams(x, PHRASE)}
    return [f"wording of a persona in an answer: {x!r}" for x in answers(items)
            if grams(x, PHRASE) & phrases or marks & set(words(x))]


def uneven(items: pl.DataFrame) -> list[str]:
    """Sides that differ in length."""
    found, totals = [], [0, 0]
    for prompt, *sides in items.select("prompt", *SIDES).rows():
        sizes = [[len(words(x)) for x in side] for side in sides]
        means = [sum(x) / len(x) for x in sizes]
        if max(means) > LENGTHS * min(means):
            found.append(f"sides of unequal length: {prompt!r}")
        if not all(WORDS[0] <= n <= WORDS[1] for side in sizes for n in side):
            found.append(f"answers of {WORDS[0]} to {WORDS[1]} words are wanted: {prompt!r}")
        totals = [a + sum(b) for a, b in zip(totals, sizes, strict=True)]
    if abs(totals[0] - totals[1]) > EVEN * min(totals):
        found.append(f"words of the sides in all: {totals[0]} and {totals[1]}")
    return found
