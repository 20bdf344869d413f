"""Rows → Markdown tables, and intervals → text."""

from typing import Any

import polars as pl


def markdown(rows: list[dict[str, Any]]) -> str:
    """A Markdown table; numbers with three decimals."""
    with pl.Config(
        tbl_formatting="ASCII_MARKDOWN", tbl_hide_column_data_types=True, tbl_rows=-1, tbl_cols=-1,
        tbl_hide_dataframe_shape=True, tbl_width_chars=10_000, fmt_str_lengths=1_000,
        float_precision=3,
    ):  # fmt: skip
        return str(pl.DataFrame(rows, infer_schema_length=None))


def interval(shift: list[float], form: str = "+.2f") -> str:
    """[estimate, low, high] → text; without brackets where there is no width to tell of: of base
    against itself, of too few items."""
    value, low, high = (f"{round(x, 9) + 0.0:{form}}" for x in shift)
    return f"{value} [{low}, {high}]" if shift[1] < shift[2] else value
