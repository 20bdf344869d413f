"""Rows, names and quotations → Markdown in which none of them is markup; intervals → text.

Whatever a model or a person wrote goes through `inline` where it stands in a line (`markdown` does
it to every cell) and through `code` where it is quoted.
"""

import re
import textwrap
from typing import Any

import polars as pl

from steerloop.texts.printable import printable

MARKUP = re.compile(r"""
    [\\`*<&|~$@]             # code, emphasis, HTML, entities, cells, mathematics, mentions
    | (?<!\w)_ | _(?!\w)     # emphasis; inside of a word it is none
    | \](?=[(\[:])           # the end of what a link shows
    | :(?=//) | (?<=www)\.   # an address that becomes a link by itself
""", re.VERBOSE | re.IGNORECASE)


def inline(text: str) -> str:
    """Text as part of a line of Markdown: one line, printable, markup escaped."""
    return MARKUP.sub(r"\\\g<0>", printable(" ".join(text.split())))


def code(text: str, width: int = 0) -> str:
    """Text as indented code, in which nothing is markup to any renderer; with a `width` its lines
    are wrapped to so many columns."""
    lines = printable(text.replace("\r\n", "\n") or "(nothing)").split("\n")
    if width:
        lines = [x for line in lines for x in textwrap.wrap(
            line, width, break_long_words=False, break_on_hyphens=False) or [""]]
    return "\n".join(f"    {x}" for x in lines)


def markdown(rows: list[dict[str, Any]]) -> str:
    """A Markdown table; numbers with three decimals, text escaped."""
    cells = [{inline(k): inline(v) if isinstance(v, str) else v for k, v in row.items()}
             for row in rows]
    with pl.Config(
        tbl_formatting="ASCII_MARKDOWN", tbl_hide_column_data_types=True, tbl_rows=-1, tbl_cols=-1,
        tbl_hide_dataframe_shape=True, tbl_width_chars=10_000, fmt_str_lengths=1_000,
        float_precision=3,
    ):  # fmt: skip
        return str(pl.DataFrame(cells, infer_schema_length=None))


def interval(shift: list[float], form: str = "+.2f") -> str:
    """[estimate, low, high] → text; without brackets where there is no width to tell of: of base
    against itself, of too few items."""
    value, low, high = (f"{round(x, 9) + 0.0:{form}}" for x in shift)
    return f"{value} [{low}, {high}]" if shift[1] < shift[2] else value
