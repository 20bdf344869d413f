"""index.html beside the run folders: every run as a row, by arm or in one list."""

import json
import re
import shlex
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from loguru import logger

from steerloop.report.ledger import ASKED, JUDGED, one_line
from steerloop.report.pages.drawing import sparkline
from steerloop.report.pages.frame import page
from steerloop.report.pages.names import comparisons, link, shown
from steerloop.report.pages.standing import Standing, finite, last_by_seed, stamps, standings
from steerloop.report.stats import over_seeds
from steerloop.report.text import interval
from steerloop.report.trait import unit
from steerloop.runfolder import layout
from steerloop.runfolder.files import write_whole
from steerloop.texts.printable import printable

MARK = 'data-page="runs of steerloop"'  # by which a page of ours is known
STAMP = re.compile(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)\d\d_")
TRIES = 3  # times it is written where runs end meanwhile
JUDGEMENTS = (*JUDGED, ASKED)
COLUMNS = {  # heading → kind: numbers, or text; or no order
    "": "", "run": "t", "model": "t", "arm": "t", "seed": "n", "rounds": "n",
    "headline": "n", "by round": "", "coherence": "n", "ppl ×": "n",
    **dict.fromkeys(JUDGEMENTS, "t"), "read by": "t", "started": "t"}


class Cell(NamedTuple):
    """What stands in a cell, as HTML; the number it is sorted by; its classes."""

    html: str = ""
    number: float | None = None
    kind: str = ""


def write_index(root: Path) -> Path | None:
    """Write the page of all runs under `root`, anew from what is there, and again where that
    changed meanwhile: of processes that end together the last one to write has seen all. None
    where something else has its name."""
    path = root / layout.INDEX
    if path.is_symlink() or (path.exists() and not ours(path)):
        logger.warning(f"{path} is no page of this package, and left as it is: move it away, then "
                       "`python -m steerloop.report` writes one")
        return None
    for _ in range(TRIES):
        before = stamps(root)
        text = index(root)
        write_whole(path, lambda part, text=text: part.write_text(text, encoding="utf-8"))
        if stamps(root) == before:
            break
    return path


def ours(path: Path) -> bool:
    """Whether a file is such a page."""
    try:
        return path.is_file() and MARK in path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # another user's
        return False


def index(root: Path) -> str:
    """The page."""
    runs, left = standings(root)
    known = comparisons(root)
    arms = by_arm(runs)
    shared = shared_of(runs)
    ended = sum(x.ended for x in runs)
    rows = [[cells(root, x, own_of(x, shared)) for x in arm] for arm in arms]
    spare = {"model"} & shared.keys() | {
        k for k in (ASKED,) if not any(k in x.judged for x in runs)}
    columns = [k for k in COLUMNS if k not in spare]
    heads = "".join(head(i, name, COLUMNS[name]) for i, name in enumerate(columns))
    groups = "".join(group(told(own_of(arm[0], shared)), each, mean_of(last_by_seed(arm)), columns)
                     for arm, each in zip(arms, rows, strict=True))
    body = f"""<main {MARK}>
<h1>Runs</h1>
<p class="quiet">{ended} finished, {len(runs) - ended} not, in {len(arms)}
{"arm" if len(arms) == 1 else "arms"}{escape(f"; all with {told(shared)}" if shared else "")}</p>
<div class="tools"><label>filter <input type="search" id="filter" autocomplete="off"></label>
<label><input type="checkbox" id="flat" autocomplete="off"> one list</label>
<span class="quiet" id="count" aria-live="polite"></span></div>
<div class="scroll"><table id="runs" class="grouped"><thead><tr>{heads}</tr></thead>
{groups}<tbody id="list"></tbody></table></div>
<div id="chosen" hidden><p></p><p class="quiet">in the folder that holds \
{escape(shown(root.absolute().name))}/:</p><code></code><p id="pages"></p></div>
{links(known)}{omitted(left)}
</main>"""
    return page(f"runs in {one_line(root.absolute().name)}", body,
                {"comparisons": [{"page": k, "runs": x} for k, x in known.items()]}, ["index.js"])


def by_arm(runs: Sequence[Standing]) -> list[list[Standing]]:
    """Runs grouped by their settings but for the seed, in the order of the ledger's table."""
    arms: dict[str, list[Standing]] = {}
    for run in runs:
        own = {k: x for k, x in run.settings.items() if k != "seed"}
        arms.setdefault(json.dumps(own), []).append(run)
    return [sorted(arms[k], key=lambda x: (str(x.settings["seed"]), x.run.name))
            for k in sorted(arms)]


def shared_of(runs: Sequence[Standing]) -> dict[str, Any]:
    """The settings that all runs have in common."""
    first = runs[0].settings if runs else {}
    return {k: x for k, x in first.items() if k != "seed"
            and all(k in run.settings and run.settings[k] == x for run in runs)}


def told(settings: dict[str, Any]) -> str:
    """Settings as text."""
    return ", ".join(f"{k} {x}" for k, x in settings.items())


def head(column: int, name: str, kind: str) -> str:
    """The head of a column, with the button that sorts by it."""
    button = f'<button type="button" data-column="{column}">{escape(name)}</button>'
    classes = " ".join(x for x in (kind, "arm" * (name == "arm")) if x)
    return f'<th scope="col" class="{classes}">{button if kind else escape(name)}</th>'


def own_of(run: Standing, shared: dict[str, Any]) -> dict[str, Any]:
    """The settings of an arm that not all have in common."""
    return {k: x for k, x in run.settings.items() if k not in shared and k != "seed"}


def group(
    own: str, runs: list[dict[str, Cell]], mean: dict[str, Cell], columns: list[str]
) -> str:
    """The rows of an arm, under what is its `own`, above their mean."""
    rows = "".join(row("run", x, columns) for x in runs)
    return (f'<tbody class="group"><tr class="of"><th colspan="{len(columns)}" scope="rowgroup">'
            f"<span>{escape(own or 'one arm')}</span></th></tr>{rows}"
            f"{row('mean', mean, columns) if mean else ''}</tbody>")


def row(kind: str, cells: dict[str, Cell], columns: list[str]) -> str:
    """A row; `cells` by heading."""
    parts = [f'<tr class="{kind}">']
    for name in columns:
        cell = cells.get(name, Cell())
        number = "" if finite(cell.number) is None else f' data-number="{cell.number!r}"'
        classes = " ".join(x for x in (cell.kind, "arm" * (name == "arm")) if x)
        parts.append(f'<td class="{classes}"{number}>{cell.html}</td>')
    return "".join([*parts, "</tr>"])


def cells(root: Path, x: Standing, own: dict[str, Any]) -> dict[str, Cell]:
    """A run as cells by heading; `own` are the settings of its arm."""
    name, settings = shown(x.run.name), x.settings
    seed, wanted = settings["seed"], settings["rounds"]
    stamp = STAMP.match(x.run.name)
    state = "" if x.ended else f'<div class="quiet">not finished; last record {x.written} UTC</div>'
    said = {k: Cell(escape(v), kind=v if v in ("PASS", "FAIL", "OPEN") else "")
            for k, v in x.judged.items()}
    drawn = sparkline(x.course, f"{name}: {', '.join(map(interval, x.course))}") if x.course else ""
    arm = told({k: v for k, v in own.items() if k != "model"})
    return {
        "": tick(root, x.run),
        "run": Cell(linked(x.run) + state, kind="name"),
        "model": Cell(escape(str(settings["model"])), kind="name"),
        "arm": Cell(escape(arm), kind="name"),
        "seed": number(seed, str(seed)),
        "rounds": number(x.healed, f"{x.healed} of {wanted}"),
        "headline": number(x.course[-1][0], interval(x.course[-1])) if x.course else Cell(),
        "by round": Cell(drawn, kind="spark"),
        "coherence": number(x.coherence), "ppl ×": number(x.ppl_ratio),
        "read by": Cell(escape(f"{x.read_by} ({unit(x.read_by)})" if x.read_by else "")),
        "started": Cell("{}-{}-{} {}:{}".format(*stamp.groups()) if stamp else "", kind="whole"),
    } | said


def number(value: Any, text: str = "") -> Cell:
    """A number (of any unit), and how it is written if not with three decimals."""
    known = finite(value)
    return Cell(escape(text)) if known is None else Cell(escape(text or f"{known:.3f}"), known, "n")


def tick(root: Path, run: Path) -> Cell:
    """A box to choose a run by, with its path as a shell takes it in the folder that holds `root`:
    wherever that lies, the page is the same. None where the name cannot be typed."""
    at = str(Path(root.absolute().name) / run.name)
    if printable(at) != at or "\n" in at:
        return Cell()
    at = f"./{at}" if at.startswith("-") else at
    return Cell(f'<input type="checkbox" autocomplete="off" aria-label="choose {escape(run.name)}" '
                f'data-name="{escape(run.name)}" data-path="{escape(shlex.quote(at))}">')


def linked(run: Path) -> str:
    """The name of a run, and the way to its pages as far as there are any."""
    there = (run / layout.REPORT).is_file()
    return link(f"{run.name}/{layout.REPORT}", run.name) if there else escape(shown(run.name))


def mean_of(runs: Sequence[Standing]) -> dict[str, Cell]:
    """The mean over seeds with its t-interval, of what all of them have; {} of less than two."""
    if len(runs) < 2:
        return {}
    found = {"run": Cell(f"mean of {len(runs)} seeds, [over seeds]", kind="name")}
    alike = len({x.read_by for x in runs}) == 1
    columns = {
        "headline": [x.course[-1][0] if x.course and alike else None for x in runs],
        "coherence": [x.coherence for x in runs], "ppl ×": [x.ppl_ratio for x in runs]}
    for name, values in columns.items():
        if all(x is not None for x in values):
            form = "+.2f" if name == "headline" else ".3f"
            mean = over_seeds(values)
            found[name] = number(mean[0], interval(mean, form))
    return found


def links(known: dict[str, list[str]]) -> str:
    """The comparisons that lie here."""
    if not known:
        return ""
    items = "".join(f'<li><a href="{name}">{escape(", ".join(map(shown, runs)))}</a></li>'
                    for name, runs in known.items())
    return (f"<details><summary>{len(known)} comparison{'s' * (len(known) > 1)}</summary>"
            f"<ul>{items}</ul></details>")


def omitted(left: list[str]) -> str:
    """What is no run, or cannot be read."""
    if not left:
        return ""
    items = "".join(f"<li>{escape(x)}</li>" for x in left)
    return f"<details><summary>{len(left)} left out</summary><ul>{items}</ul></details>"
