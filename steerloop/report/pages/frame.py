"""A whole page around its body: what it may load, which scripts run in it, what they read.

The page's own policy lets no script run but those that it was written with, and loads nothing else
from anywhere. Inline scripts are named in the policy by their hash. Plotly's script beside the run
folders cannot be: browsers check the hash of a file on disk against nothing (no CORS on file:), so
its element carries a nonce. That is the hash of all the page shows, so what stands in the page
cannot name it.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs, get_plotlyjs_version

from steerloop.runfolder.files import write_whole
from steerloop.runfolder.layout import SCRIPT
from steerloop.texts.printable import printable

HERE = Path(__file__).parent
REFRESH = 20  # seconds between two looks at a run that goes on
REFRESHES = f'<meta http-equiv="refresh" content="{REFRESH}">'
NONE = ""  # plotly's address on a page without its charts


def embedded(value: Any) -> str:
    """JSON to stand in a script element, from which no text of it can break out."""
    text = json.dumps(seen(value), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def seen(value: Any) -> Any:
    """A JSON value whose texts are printable. (JSON writes control characters as escapes, which
    a script would turn into themselves again.)"""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(k): seen(x) for k, x in value.items()}
    return [seen(x) for x in value] if isinstance(value, list | tuple) else value


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


def own(name: str) -> str:
    """A file of this folder."""
    return (HERE / name).read_text(encoding="utf-8")


def scripts() -> list[str]:
    """Every script that pages run, but for plotly's."""
    return [own(x.name) for x in sorted(HERE.glob("*.js"))]


def page(
    title: str, body: str, data: dict[str, Any] | None = None, scripts: Sequence[str] = (),
    plotly: str | None = NONE, live: bool = False,
) -> str:
    """A whole page. `data`: id → what scripts read there as JSON; `scripts`: files of this folder
    that run in this order, after page.js and plotly's. `plotly`: address of that one; None puts it
    into the page itself. While `live` the page looks for a newer version of itself now and then."""
    title, body = printable(title), printable(body)
    held = "\n".join(f'<script type="application/json" id="{escape(k)}">{embedded(v)}</script>'
                     for k, v in (data or {}).items())
    inline = [own(x) for x in ("page.js", *scripts)]
    inline = [get_plotlyjs(), *inline] if plotly is None else inline
    allowed = [f"'sha256-{digest(x)}'" for x in inline]
    loaded = ""
    if plotly:
        nonce = digest(f"{title}\n{body}\n{held}")
        allowed.append(f"'nonce-{nonce}'")
        loaded = f'<script nonce="{nonce}" src="{escape(plotly)}"></script>'
    policy = (f"default-src 'none'; script-src {' '.join(allowed)}; img-src data: blob:; "
              "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'")
    refresh = REFRESHES if live else ""
    run = "\n".join(f"<script>{x}</script>" for x in inline)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
{refresh}
<title>{escape(title)}</title>
<style>
{own("page.css")}</style>
</head>
<body>
{body}
{held}
{loaded}
{run}
</body>
</html>
"""
