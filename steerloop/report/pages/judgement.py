"""verdicts.html: of each question the verdict and what it rests on; the numbers and the rows behind
them are folded below it. Made of verdicts.md, which says the same."""

import re
from collections import Counter
from html import escape
from pathlib import Path

from steerloop.report.pages.frame import page
from steerloop.report.pages.markup import bare, cells, from_markdown
from steerloop.report.pages.site import Status, anchor, masthead, verdict_lines
from steerloop.runfolder import layout
from steerloop.runfolder.files import write_whole

SECTION = re.compile(r"^## ", re.MULTILINE)
GUIDE = "How to read the lines"


def write_judgement(run: Path, status: Status) -> None:
    """Write verdicts.html."""
    body = masthead(run, layout.VERDICTS_PAGE, status) + judgement("\n".join(verdict_lines(run)))
    text = page(f"verdicts: {run.name}", body, live=status == "running")
    write_whole(run / layout.VERDICTS_PAGE, lambda path: path.write_text(text, encoding="utf-8"))


def judgement(text: str) -> str:
    """verdicts.md as HTML, evidence folded."""
    top, *parts = SECTION.split(text)
    because = dict(reasons(top))
    if not parts:
        return '<p class="quiet">No round has been judged yet.</p>'
    guide = top[top.index(GUIDE):]
    return "".join(section(x, because) for x in parts) + (
        f'<section id="guide"><h2>{GUIDE}</h2>{from_markdown(guide)}</section>')


def reasons(top: str) -> list[tuple[str, str]]:
    """Question → what its verdict rests on, by the first table of verdicts.md."""
    rows = [cells(x) for x in top.split("\n") if x.startswith("|")]
    return [(bare(x[0]), bare(x[2])) for x in rows[2:]]


def counted(table: str) -> str:
    """How many lines of evidence there are, and what they say."""
    lines = [cells(x) for x in table.split("\n") if x.startswith("|")]
    if len(lines) < 3:
        return "no numbers"
    head, _, *rows = lines
    words = Counter(row[head.index("verdict")] or "only reported" for row in rows)
    said = ", ".join(f"{n} {word}" for word, n in words.items())
    return f"{len(rows)} number{'s' * (len(rows) != 1)}: {said}"


def section(part: str, because: dict[str, str]) -> str:
    """A question: verdict and reason, then what is behind it."""
    head, _, rest = part.partition("\n")
    question, _, word = bare(head.strip()).rpartition(" ")
    why = because.get(question, "")
    table, _, reading = rest.strip().partition("\n\n")
    said = f'<p class="lead">{escape(why)}</p>' if why else ""
    folds = [(counted(table), table), ("rows to read", reading)]
    return (f'<section id="{escape(anchor(question))}"><h2>{escape(question)} '
            f'<span class="{escape(word)}">{escape(word)}</span></h2>{said}' + "".join(
                f"<details><summary>{escape(name)}</summary>{from_markdown(x)}</details>"
                for name, x in folds if x.strip()) + "</section>")
