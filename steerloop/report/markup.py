"""HTML that holds untrusted text. What goes through `escape` is text, whatever it says; the page's
own policy lets no script run but the two that the page was written with, and loads nothing else
from anywhere.

Inline scripts are named in the policy by their hash. Plotly's script beside the run folders cannot
be: browsers check the hash of a file on disk against nothing (no CORS on file:), so its element
carries a nonce. That is the hash of all the page shows, so what stands in the page cannot name it.
"""

import base64
import hashlib
import json
import re
from html import escape
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs, get_plotlyjs_version

from steerloop.runfolder.files import write_whole
from steerloop.runfolder.layout import SCRIPT
from steerloop.texts.printable import printable

HERE = Path(__file__).parent
REFRESH = 20  # seconds between two looks at a run that goes on
LONG = {"text", "prompt"}  # columns that wrap
CELL = re.compile(r"(?<!\\)\|")  # what ends a cell; text in one has escaped its own
ESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])")
INTERVAL = re.compile(r"[+-]?[\d.]+ \[[^]]*\]")


def embedded(value: Any) -> str:
    """JSON to stand in a script element, from which no text of it can break out."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    return printable(text).replace("<", "\\u003c")


def table(rows: list[dict[str, Any]]) -> str:
    """Rows → an HTML table. Every cell is text; numbers have three decimals and stand right."""
    if not rows:
        return '<p class="quiet">none</p>'

    def cell(name: str, value: Any) -> str:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        text = f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)
        kind = "n" if number else "text" if name in LONG else text if text in (
            "PASS", "FAIL", "OPEN") else "whole" if INTERVAL.match(text) else ""
        return f'<td class="{kind}">{escape(text)}</td>'

    numeric = {k for k, v in rows[0].items() if isinstance(v, int | float)}
    head = "".join(f'<th class="{"n" if k in numeric else ""}">{escape(k)}</th>' for k in rows[0])
    body = "".join("<tr>" + "".join(cell(k, row[k]) for k in rows[0]) + "</tr>" for row in rows)
    return (f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>")


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
        rows = [[bare(x.strip()) for x in CELL.split(line)[1:-1]] for line in lines]
        return table([dict(zip(rows[0], row, strict=False)) for row in rows[2:]])
    if first.startswith("- "):
        return "<ul>" + "".join(f"<li>{bold(x[2:])}</li>" for x in lines) + "</ul>"
    return "<p>" + bold("\n".join(lines)) + "</p>"


def bold(text: str) -> str:
    """Escaped text in which **this** is bold."""
    return bare(re.sub(r"(?<!\\)\*\*(.+?)(?<!\\)\*\*", r"<b>\1</b>", escape(text)))


def bare(text: str) -> str:
    """Text without the backslashes that `report/text.py` escapes Markdown with. It makes no markup
    of text that HTML was escaped in: no "<" comes of it."""
    return ESCAPED.sub(r"\1", text)


def shared_script(root: Path) -> str | None:
    """Name of plotly's script under a runs folder, written there unless it is there already, byte
    for byte; None where the name is taken by a folder: pages hold the script themselves then."""
    path, script = root / SCRIPT.format(get_plotlyjs_version()), get_plotlyjs()
    if path.is_dir():
        return None
    if not path.is_file() or path.read_bytes() != script.encode():
        write_whole(path, lambda part: part.write_text(script, encoding="utf-8"))
    return path.name


def digest(text: str) -> str:
    """SHA-256 of a text, as policies write it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def page(
    title: str, body: str, figures: dict[str, Any], script: str | None, live: bool
) -> str:
    """A whole page. `script`: address of plotly's script; None puts it into the page itself.
    While `live` the page looks for a newer version of itself now and then."""
    title, body, data = printable(title), printable(body), embedded(figures)
    own = (HERE / "page.js").read_text(encoding="utf-8")
    plotly = get_plotlyjs() if script is None else ""
    nonce = digest(f"{title}\n{body}\n{data}")
    allowed = f"'sha256-{digest(own)}' " + (
        f"'sha256-{digest(plotly)}'" if script is None else f"'nonce-{nonce}'")
    policy = (f"default-src 'none'; script-src {allowed}; img-src data: blob:; "
              "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'")
    refresh = f'<meta http-equiv="refresh" content="{REFRESH}">' if live else ""
    loaded = f"<script>{plotly}</script>" if script is None else (
        f'<script nonce="{nonce}" src="{escape(script)}"></script>')
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
{refresh}
<title>{escape(title)}</title>
<style>
{(HERE / "page.css").read_text(encoding="utf-8")}</style>
</head>
<body>
{body}
<script type="application/json" id="figures">{data}</script>
{loaded}
<script>{own}</script>
</body>
</html>
"""
