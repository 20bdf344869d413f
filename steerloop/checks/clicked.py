"""A page on disk, clicked through in Chromium by a script of a check."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steerloop.checks.browser import visit


def driven(page: Path, script: str) -> Path:
    """A copy of the page beside it with a script of ours behind its own, which its policy would not
    let run: the copy has none."""
    text = page.read_text(encoding="utf-8")
    start = text.index('<meta http-equiv="Content-Security-Policy"')
    text = text[:start] + text[text.index(">", start) + 1:]
    other = page.with_name("driven.html")
    other.write_text(text.replace("</body>", f"""<script>{{
const click = (x) => document.querySelector(x).click();
const said = {{}};
{script}
document.body.dataset.said = JSON.stringify(said);
}}</script></body>"""), encoding="utf-8")
    return other


def said(page: Path, script: str, fragment: str = "", options: Sequence[str] = ()) -> Any:
    """What the script puts into its object `said`; nothing may reach the console."""
    document, console = visit(driven(page, script), fragment, options)
    assert console == []
    return json.loads(next(a["data-said"] for _, a, _ in document.elements if "data-said" in a))
