"""Text of models and of strangers for terminals and files that people read: what is there is seen.

What could move the cursor, turn the direction of writing or hide in the text is shown as U+FFFD,
one for one, so that its place is seen. Some characters without a glyph are part of words and stay:

    joiners (U+200C, U+200D)    after a letter or mark of a script that joins (Arabic, Indic, …)
    zero-width joiner           after a pictograph: families, professions, flags
    variation selectors         one, after anything but another
    number signs of Arabic      (U+0600 and its like) which are drawn, though they are "format"

Tags (U+E0020 …), in which whole sentences can hide, do not stay: three flags are the price.
"""

import re
import unicodedata
from functools import lru_cache

SHOWN = "\ufffd"
OTHER = re.compile(r"[^\n\t -~]")  # than what every terminal shows
JOINERS = "\u200c\u200d"
DRAWN = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}  # category Cf
JOINING = ((0x600, 0x109F), (0x1780, 0x18AF), (0xA840, 0xA8FF), (0xAA60, 0xAA7F), (0xFB50, 0xFEFC),
           (0x10A00, 0x11FFF), (0x1E900, 0x1E95F))  # scripts whose letters take another form
BLANK = ((0x34F, 0x34F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180E, 0x180E), (0x2065, 0x2065),
         (0x3164, 0x3164), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0xE0000, 0xE00FF),
         (0xE01F0, 0xE0FFF))  # drawn as nothing, and no part of a word
SELECTORS = ((0x180B, 0x180D), (0x180F, 0x180F), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF))


def within(char: str, ranges: tuple[tuple[int, int], ...]) -> bool:
    """Whether a character is in one of the ranges, ends included."""
    return any(low <= ord(char) <= high for low, high in ranges)


@lru_cache(2**14)
def seen(char: str, before: str) -> bool:
    """Whether a character may stand where it does, after `before` ("" at the start)."""
    kind, last = unicodedata.category(char), unicodedata.category(before) if before else ""
    if char in JOINERS:
        letter = last[:1] in ("L", "M") and within(before, JOINING)
        picture = before != SHOWN and (last in ("So", "Sk") or before == "\ufe0f")
        return letter or (char == "\u200d" and picture)
    if within(char, SELECTORS):
        return bool(before) and last[:1] not in ("C", "Z") and not within(before, SELECTORS)
    if kind == "Cf":
        return ord(char) in DRAWN
    return kind not in ("Cc", "Cs", "Zl", "Zp") and not within(char, BLANK)


def printable(text: str) -> str:
    """Text of which every character is seen, or is part of a word; others become U+FFFD.

    It looks back alone, so that text which comes in pieces can be shown as it comes: what
    `printable` makes of a beginning is the beginning of what it makes of the whole.
    """
    return OTHER.sub(lambda found: found[0] if seen(
        found[0], text[found.start() - 1 : found.start()]) else SHOWN, text)
