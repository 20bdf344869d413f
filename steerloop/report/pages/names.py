"""Names that others gave to folders, in pages; and the name of a page that compares runs."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from steerloop.runfolder import layout
from steerloop.texts.printable import printable

DIGITS = 12  # of a hash, in a name
HELD = "compared"  # id of the names of its runs, in a page that compares them
NAMES = re.compile(f'<script type="application/json" id="{HELD}">(.*?)</script>')


def shown(name: str) -> str:
    """A name, whatever it is made of, as one line that can be read."""
    return " ".join(printable(name.encode(errors="backslashreplace").decode()).split())


def href(path: str) -> str:
    """A path below a page, or beside it, as an address that is nothing else."""
    return quote(os.fsencode(path))


def link(path: str, text: str) -> str:
    """The way there, as HTML; `text` is shown."""
    return f'<a href="{href(path)}">{escape(shown(text))}</a>'


def comparison_name(names: Sequence[str]) -> str:
    """Of the page that compares runs of these names, in this order."""
    text = json.dumps(list(names))
    return layout.COMPARISON.format(hashlib.sha256(text.encode()).hexdigest()[:DIGITS])


def comparisons(root: Path) -> dict[str, list[str]]:
    """The pages under `root` that compare runs → the names of their runs; a page that is not called
    after the names in it is none."""
    found = {}
    for path in sorted(root.glob(layout.COMPARISON.format("*"))):
        try:
            held = NAMES.search(path.read_text(encoding="utf-8")) if path.is_file() else None
            names = json.loads(held[1]) if held else None
        except (OSError, ValueError, RecursionError):  # gone meanwhile, or a stranger's
            continue
        texts = isinstance(names, list) and all(isinstance(x, str) for x in names)
        if texts and comparison_name(names) == path.name:
            found[path.name] = names
    return found
