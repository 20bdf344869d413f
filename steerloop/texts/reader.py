"""The one reader of people's files: bytes → text → lines, JSON lines, TOML.

A file is UTF-8, with or without a byte-order mark, whatever the locale says. "\\n" and "\\r\\n"
end a line and nothing else does: U+2028, a form feed or a lone carriage return belong to the text.
Values of JSON lines keep the type that their own line gives them, so what the first rows are like
decides nothing about the later ones. Every ValueError says at which byte, line or key.
"""

import codecs
import json
import math
import re
import tomllib
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from steerloop import UserError

MARKS = {  # of four bytes first: that of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16",
}
REMEDY = "save the file as UTF-8"
UNSEEN = {"Cc", "Cf", "Zs", "Zl", "Zp"}  # controls, what has no width, white space
Row = tuple[int, dict[str, Any]]  # number of the line, from 1, and its object


def read_text(path: Path) -> str:
    """The text of a person's file. Raises UserError, naming the file, where there is none in it."""
    try:
        return decoded(path.read_bytes())
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from e
    except ValueError as e:
        raise UserError(f"cannot read {path}: {e}") from e


def decoded(raw: bytes) -> str:
    """UTF-8 → text, without the byte-order mark. Raises ValueError naming the encoding where its
    mark tells it, else the first byte that is wrong, counted from 0."""
    for mark, name in MARKS.items():
        if raw.startswith(mark):
            raise ValueError(f"its first bytes are the mark of {name}: {REMEDY}")
    if b"\0" in raw:
        at = raw.index(b"\0")
        raise ValueError(f"byte {at} is NUL, which no text has (UTF-16 without its mark has many): "
                         f"{REMEDY}")
    start = len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0
    try:
        text = raw[start:].decode("utf-8")
    except UnicodeDecodeError as e:
        at = start + e.start
        raise ValueError(f"byte {at} (0x{raw[at]:02x}) is not UTF-8: {REMEDY}") from e
    if second := re.search(r"^\ufeff", text, re.MULTILINE):
        at = start + len(text[: second.start()].encode())
        raise ValueError(f"at byte {at} a line begins with a byte-order mark, as where two files "
                         "were joined: take it out")
    return text


def numbered(text: str) -> list[tuple[int, str]]:
    """Lines with their numbers, from 1."""
    return list(enumerate(re.split(r"\r?\n", text), 1))


@contextmanager
def at_line(number: int) -> Iterator[None]:
    """What is wrong in here is wrong on that line."""
    try:
        yield
    except ValueError as e:
        raise ValueError(f"line {number}: {e}") from e


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The keys and values of a JSON object. Raises ValueError for a key that is there twice."""
    known: dict[str, Any] = {}
    for key, value in pairs:
        if key in known:
            raise ValueError(f"the key {key!r} is there twice")
        known[key] = value
    return known


def no_number(literal: str) -> NoReturn:
    """NaN and the infinities are none."""
    raise ValueError(f"{literal} is no number")


def finite(literal: str) -> float:
    """A decimal number. Raises ValueError for one that is too large for a float."""
    number = float(literal)
    return number if math.isfinite(number) else no_number(literal)


def json_object(line: str) -> dict[str, Any]:
    """One JSON object. Raises ValueError for anything else."""
    try:
        row = json.loads(line, object_pairs_hook=distinct, parse_float=finite,
                         parse_constant=no_number)
    except json.JSONDecodeError as e:
        raise ValueError(f"column {e.colno} is no JSON ({e.msg}); JSON lines are needed, one "
                         "object {\"key\": value} a line") from e
    except RecursionError as e:
        raise ValueError("its JSON is nested too deeply") from e
    if not isinstance(row, dict):
        raise ValueError(f"it is {kind(row)}; JSON lines are needed, one object {{\"key\": value}} "
                         "a line")
    return row


def json_lines(text: str) -> list[Row]:
    """JSON lines → their objects; blank lines do not count. Raises ValueError naming the line."""
    rows = []
    for number, line in numbered(text):
        if not is_blank(line):
            with at_line(number):
                rows.append((number, json_object(line)))
    return rows


def toml(text: str) -> dict[str, Any]:
    """TOML → its table. Raises ValueError naming the line."""
    try:
        return tomllib.loads(text)
    except RecursionError as e:
        raise ValueError("its TOML is nested too deeply") from e


def kind(value: Any) -> str:
    """What a value of JSON or TOML is, in words."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number",
             str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def is_blank(text: str) -> bool:
    """Whether there is nothing in it to see."""
    return all(unicodedata.category(x) in UNSEEN for x in text)


def fault(value: Any, blank: bool = False) -> str:
    """Why a value is no text that a model could read, '' if it is one. `blank` ones may be fine."""
    if not isinstance(value, str):
        return kind(value)
    if "\0" in value:
        return "text with a NUL in it"
    if re.search("[\ud800-\udfff]", value):
        return "text with half of a surrogate pair in it"
    return "blank" if is_blank(value) and not blank else ""


def text_of(row: dict[str, Any], column: str, blank: bool = False) -> str:
    """The text in a column of a line. Raises ValueError where there is none, or it is no text."""
    wrong = fault(row[column], blank) if column in row else "missing"
    if wrong:
        raise ValueError(f"every line needs {column}, as text; here it is {wrong}")
    return row[column]


def no_repeats(items: Iterable[tuple[int, str]], unit: str = "line") -> None:
    """Raises ValueError for a text that is there twice, up to white space: it would count twice,
    and intervals would be narrower than what was seen allows."""
    first: dict[str, int] = {}
    for number, text in items:
        before = first.setdefault(" ".join(text.split()), number)
        if before != number:
            raise ValueError(f"{unit} {number} says the same as {unit} {before}: take one of them "
                             "out")
