"""What a text gives away by itself: repetition (four measures that miss different loops), talk
about its persona, refusal."""

import re
import zlib
from collections.abc import Iterable
from typing import Any

import polars as pl

from steerloop import UserError

LOOP = re.compile(r"(.{1,12}?)\1{3,}", re.DOTALL)
NARRATES = re.compile(
    r"\b(as|i am|i'm|you are) (someone|a person|an assistant|a model) (who|that)\b"
    r"|\b(persona|role[- ]?play)\b|\bi('m| am) (pretending|supposed|instructed|playing)\b",
    re.IGNORECASE,
)
REFUSES = re.compile(
    r"\b(as|i am|i'm) an? (ai|artificial|language model)\b|\bi('m| am) sorry, but\b"
    r"|\bi (can ?not|can't|won't|am unable to) (help|assist|answer|respond|discuss)\b",
    re.IGNORECASE,
)
ALLOWED = {1: 0.4, 2: 0.1, 3: 0.0, 4: 0.0}  # prose repeats words and pairs, hardly longer n-grams


def grams(text: str, n: int) -> list[tuple[str, ...]]:
    """Word n-grams, in order."""
    words = re.findall(r"\w+", text.lower())
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def repeated(text: str) -> float:
    """Worst share of repeated word n-grams, n = 1 to 4, among the last 64: loops persist.

    Counted above what prose is allowed and rescaled to [0, 1]; single words show soup.
    """
    worst = 0.0
    for n, allowed in ALLOWED.items():
        if len(last := grams(text, n)[-64:]) > 4:
            share = 1 - len(set(last)) / len(last)
            worst = max(worst, (share - allowed) / (1 - allowed))
    return worst


def looped(text: str) -> float:
    """Share of characters in immediate repeats, 4 or more, of a unit of up to 12 characters."""
    return sum(x.end() - x.start() for x in LOOP.finditer(text)) / max(1, len(text))


def echoed(text: str) -> float:
    """Share of sentences, of three words or more, that were said before in the same text."""
    sentences = [tuple(re.findall(r"\w+", x.lower())) for x in re.split(r"[.?!]+\s|\n", text)]
    sentences = [x for x in sentences if len(x) >= 3]
    return 1 - len(set(sentences)) / len(sentences) if sentences else 0.0


def zipped(text: str) -> float:
    """zlib compression ratio; 1 for texts of up to 200 bytes, where it means nothing."""
    raw = text.encode()
    return len(zlib.compress(raw)) / len(raw) if len(raw) > 200 else 1.0


def narrates(text: str, personas: list[str]) -> bool:
    """Whether the text speaks about its role, or repeats five words in a row of a persona text."""
    echo = {g for persona in personas for g in grams(persona, 5)}
    return bool(NARRATES.search(text)) or not echo.isdisjoint(grams(text, 5))


def refuses(text: str) -> bool:
    """Whether the text declines to answer, as assistants do."""
    return bool(REFUSES.search(text))


def scores(texts: pl.Series) -> list[pl.Series]:
    """Each text's four measures of repetition, as columns: repeat, echo, loop, zip (all shares)."""
    measures = {"repeat": repeated, "echo": echoed, "loop": looped, "zip": zipped}
    return [pl.Series(name, [f(x) for x in texts]) for name, f in measures.items()]


def talk(texts: pl.Series, personas: list[str]) -> dict[str, pl.Series]:
    """Whether each text refuses, or narrates its persona: by reason."""
    return {"refuses": pl.Series([refuses(x) for x in texts]),
            "narrates": pl.Series([narrates(x, personas) for x in texts])}


def alive(texts: Iterable[str], cfg: Any) -> list[bool]:
    """Whether each text neither repeats itself nor loops, by the limits of a config."""
    return [repeated(x) <= cfg.max_repeat and looped(x) <= cfg.max_loop for x in texts]


class Starved(UserError):
    """A round whose completions the filter drops."""


def starved(table: pl.DataFrame, wanted: int) -> Starved:
    """Of all rows that were judged too few were kept: what dropped the rest, and what to do."""
    why = table["drop_reason"].drop_nulls().value_counts(sort=True).rows()
    return Starved(f"the filter is starved: {table['keep'].sum()} of {len(table)} completions "
                   f"kept, {wanted} needed ({', '.join(f'{n} {x}' for x, n in why)}); lower "
                   "--target_kl or --multiples, raise --ppl_factor or lower --n_keep")
