"""Rows and Markdown → HTML that holds untrusted text. What goes through `escape` is text, whatever
it says."""

import re
from html import escape
from typing import Any

LONG = {"text", "prompt"}  # columns that wrap
CELL = re.compile(r"(?<!\\)\|")  # what ends a cell; text in one has escaped its own
ESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])")
INTERVAL = re.compile(r"[+-]?[\d.]+ \[[^]]*\]")


class Html(str):
    """Text that is HTML already, made here."""


def table(rows: list[dict[str, Any]]) -> str:
    """Rows → an HTML table. Every cell is text; numbers have three decimals and stand right."""
    if not rows:
        return '<p class="quiet">none</p>'

    numeric = {k for k, v in rows[0].items() if isinstance(v, int | float)}
    head = "".join(f'<th class="{"n" if k in numeric else ""}">{escape(k)}</th>' for k in rows[0])
    body = "".join("<tr>" + "".join(cell(k, row[k]) for k in rows[0]) + "</tr>" for row in rows)
    return (f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>")


def cell(name: str, value: Any, more: str = "") -> str:
    """A cell of a column of this name; `more` are attributes."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    text = f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)
    kind = "n" if number else "text" if name in LONG else text if text in (
        "PASS", "FAIL", "OPEN") else "whole" if INTERVAL.match(text) else ""
    shown = value if isinstance(value, Html) else escape(text)
    return f'<td class="{kind}"{more}>{shown}</td>'


def from_markdown(text: str, below: int = 1) -> str:
    """The Markdown that this package writes (headings, tables, bullets, indented code) → HTML,
    headings `below` levels further down. Text of completions is indented there, hence code here."""
    return "\n".join(block(lines, below) for lines in blocks(text.split("\n")))


def blocks(lines: list[str]) -> list[list[str]]:
    """Lines grouped as paragraphs; an indented block holds blank lines that are indented."""
    groups: list[list[str]] = [[]]
    for line in lines:
        now, code = groups[-1], line.startswith("    ")
        inside = bool(now) and now[0].startswith("    ")
        if now and (code != inside or not (code or line.strip())):
            groups.append([])
        if line.strip() or code:
            groups[-1].append(line)
    return [x for x in groups if x]


def block(lines: list[str], below: int) -> str:
    """One paragraph of Markdown as HTML."""
    first = lines[0]
    if first.startswith("    "):
        return "<pre>" + escape("\n".join(x[4:] for x in lines)) + "</pre>"
    if first.startswith("#"):
        level = len(first) - len(first.lstrip("#"))
        tag = f"h{level + below}"
        said = re.sub(r" (PASS|FAIL|OPEN)$", r' <span class="\1">\1</span>',
                      bare(escape(first.lstrip("# "))))
        return f"<{tag}>{said}</{tag}>" + "".join(block(x, below) for x in [lines[1:]] if x)
    if first.startswith("|"):
        rows = [[bare(x) for x in cells(line)] for line in lines]
        return table([dict(zip(rows[0], row, strict=False)) for row in rows[2:]])
    if first.startswith("- "):
        return "<ul>" + "".join(f"<li>{bold(x[2:])}</li>" for x in lines) + "</ul>"
    return "<p>" + bold("\n".join(lines)) + "</p>"


def cells(line: str) -> list[str]:
    """The cells of a line of a table, as they are written."""
    return [x.strip() for x in CELL.split(line)[1:-1]]


def bold(text: str) -> str:
    """Escaped text in which **this** is bold."""
    return bare(re.sub(r"(?<!\\)\*\*(.+?)(?<!\\)\*\*", r"<b>\1</b>", escape(text)))


def bare(text: str) -> str:
    """Text without the backslashes that `report/text.py` escapes Markdown with. It makes no markup
    of text that HTML was escaped in: no "<" comes of it."""
    return ESCAPED.sub(r"\1", text)
