"""compare-<hash>.html beside run folders: several runs, or the arms that they are of, side by
side."""

import math
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from steerloop import UserError
from steerloop.report.arms import Pooled
from steerloop.report.compare import NAMES, Against, Compared, compared
from steerloop.report.pages.drawing import dot_plot, legend
from steerloop.report.pages.frame import page
from steerloop.report.pages.markup import Html, table
from steerloop.report.pages.names import HELD, comparison_name, link, shown
from steerloop.report.pages.side import (
    COLOURS,
    Side,
    courses,
    ended,
    figures,
    key,
    looks_of,
    sides_of,
)
from steerloop.report.pages.site import faults, sections
from steerloop.report.rivals import PPL
from steerloop.report.text import interval
from steerloop.report.trait import unit
from steerloop.runfolder import layout
from steerloop.runfolder.files import ending, write_whole

BELOW = "Of every measure the marks stand in this order, one below the other."
BETTER = "Right of the line is more, or better. Intervals are 95 %, paired by item."
BRACKETS = "Upright lines are 95 % intervals; letters stand where the line of a run ends."
CHANCE = ("Every run against the first, whatever arm it is of. Differences of seeds of one arm are "
          "chance of the loop alone: the intervals are over items, and know nothing of it.")
POOLED = "Intervals are 95 %, over loop seeds and items; of a single number there is none."


def write_comparison(runs: Sequence[Path], found: Compared | Pooled) -> Path:
    """Write the page of runs that are finished, or were judged, beside the folder of the first;
    `found` is what they come to against one another."""
    root = runs[0].parent
    names = [os.path.relpath(x, root) for x in runs]
    path = root / comparison_name(names)
    arms = found.runs if isinstance(found, Pooled) else {}
    sides = sides_of(runs, NAMES[:len(runs)], looks_of(runs, list(arms.values())))
    parts = (pooled(found) | each_apart(runs, sides) if isinstance(found, Pooled)
             else paired(found, sides))
    parts |= {"By round": key(sides) + figures(courses(sides), BRACKETS)}
    if where := ended(sides):
        parts |= {"Where they ended": key(sides) + figures(where, BELOW)}
    parts |= {"What they are": members(found, sides, root), "Verdicts": verdicts(sides, root)}
    title = f"{len(runs)} runs, against {shown(runs[0].name)}"
    if arms:
        title = f"{len(runs)} runs of {len(arms)} arm{'s' * (len(arms) > 1)} over loop seeds"
    body = (f"<header><h1>{escape(title)}</h1>{wrong(sides)}"
            f'<nav><a href="{layout.INDEX}">all runs</a></nav>{sentences(found)}</header>'
            + sections(parts))
    text = page(title, body, {HELD: names})
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
    return path


def wrong(sides: Sequence[Side]) -> str:
    """What is wrong with each run."""
    items = "".join(f"<li><b>{x.letter}: {escape(what)}.</b> {escape(why)}</li>"
                    for x in sides
                    for what, why in faults(x.run, "ended" if ending(x.run) else "cut short"))
    return f'<ul class="wrong" role="alert">{items}</ul>' if items else ""


def sentences(found: Compared | Pooled) -> str:
    """What each run is against the first, in words, and what a reader has to know of it; of arms,
    the first less every other."""
    if isinstance(found, Pooled):
        first, label = next(iter(found.own)), next(iter(next(iter(found.own.values()))))
        lines = [f"{first}, less {name}: Δ{label} {interval(moved[label], '+.3f')} {unit(label)}, "
                 f"over loop seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
                 for name, (seeds, moved) in found.less.items()]
    else:
        lines = [x for each in found.against
                 for x in (each.said, *(f"note: {note}" for note in each.notes))]
    items = "".join(f'<li class="{"quiet" * x.startswith("note: ")}">{escape(x)}</li>'
                    for x in lines)
    return f'<ul class="lead">{items}</ul>' if items else ""


def each_apart(runs: Sequence[Path], sides: Sequence[Side]) -> dict[str, str]:
    """Runs of arms that are pooled, every one less the first all the same, as far as that goes."""
    try:
        found = compared(list(runs))
    except UserError as e:
        return {"Paired differences": f'<p class="quiet">{escape(str(e))}</p>'}
    parts = paired(found, sides)
    return {k: f'{x}<p class="quiet">{CHANCE}</p>{sentences(found)}' for k, x in parts.items()}


def paired(found: Compared, sides: Sequence[Side]) -> dict[str, str]:
    """Every run less the first, by measure: pictures, a unit each, and the same as numbers."""
    others = list(zip(found.against, sides[1:], strict=True))
    plots = []
    for title, counted, values in panels(found):
        names = list(dict.fromkeys(k for each in values for k in each))
        if names:
            plots.append(dot_plot(title, counted, names, [
                (f"{x.name} − A", side.colour, [each.get(k) for k in names])
                for (x, side), each in zip(others, values, strict=True)]))
    moved = [deltas(x, found.unit) for x in found.against]
    measures = list(dict.fromkeys(k for x in moved for k in x))
    rows = [{"measure": k} | {f"{x.name} − A": each.get(k, "")
                              for x, each in zip(found.against, moved, strict=True)}
            for k in measures]
    return {"Paired differences": key(sides[1:]) + figures(plots, f"{BELOW} {BETTER}")
            + table(rows)}


def panels(found: Compared) -> list[tuple[str, str, list[dict[str, list[float]]]]]:
    """Title, unit and a run's values by measure, for every unit that there is."""
    shares = [{k: v for k, v in x.gains.items() if k != PPL} for x in found.against]
    factor = [{k: v for k, v in x.gains.items() if k == PPL} for x in found.against]
    known = [("shift, less that of A", found.unit, [x.shifts for x in found.against]),
             ("better than A by", "share", shares),
             ("less perplexed than A by", "× base", factor)]
    kinds = dict.fromkeys(k.rpartition(" ")[2] for x in found.against for k in x.tasks)
    return known + [
        ("tasks, better than A by", kind,
         [{k: v for k, v in x.tasks.items() if k.rpartition(" ")[2] == kind}
          for x in found.against]) for kind in kinds]


def deltas(x: Against, counted: str) -> dict[str, str]:
    """What a run differs from the first by, as text: as `Compared.text` has it, and tasks. Shifts
    are `counted` in that unit."""
    known = {f"{k} ({counted})": interval(v) for k, v in x.shifts.items()}
    return known | {f"{k}, better by": interval(v, "+.3f")
                    for k, v in (x.gains | x.tasks).items()}


def pooled(found: Pooled) -> dict[str, str]:
    """Arms over loop seeds, and the first less every other: pictures, and the same as numbers."""
    labels = list(dict.fromkeys(k for moved in found.own.values() for k in moved))
    first = next(iter(found.own))
    look = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(found.own)}
    own = [(name, look[name], moved) for name, moved in found.own.items()]
    less = [(f"less {name}", look[name], moved) for name, (_, moved) in found.less.items()]
    plots = [dot_plot(title, counted, [f"Δ{k}" for k in labels if unit(k) == counted], [
        (what, colour, [ends(moved.get(k)) for k in labels if unit(k) == counted])
        for what, colour, moved in each])
        for title, each in (("shift of each arm", own), ("first arm less another", less)) if each
        for counted in dict.fromkeys(map(unit, labels))]
    rows = [{"arm": name, "seeds": " ".join(map(str, sorted(found.runs[name])))}
            | {f"Δ{k} ({unit(k)})": interval(x, "+.3f") for k, x in moved.items()}
            | found.costs[name] for name, moved in found.own.items()]
    apart = [{f"{first}, less": name, "seeds": " ".join(map(str, seeds))}
             | {f"Δ{k} ({unit(k)})": interval(x, "+.3f") for k, x in moved.items()}
             for name, (seeds, moved) in found.less.items()]
    arms = legend([(name, colour, "") for name, colour in look.items()])
    tables = "".join(table(filled(x)) for x in (rows, apart) if x)
    return {"Arms over loop seeds": arms + figures(plots, f"{BELOW} {POOLED}") + tables}


def ends(shift: list[float] | None) -> list[float] | None:
    """What can be drawn of a shift, [mean, low, high] in its unit: of an interval without end the
    mean."""
    if shift is None or all(map(math.isfinite, shift)):
        return shift
    return [shift[0]] * 3


def filled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with all columns that any of them has."""
    columns = dict.fromkeys(k for row in rows for k in row)
    return [{k: row.get(k) for k in columns} for row in rows]


def members(found: Compared | Pooled, sides: Sequence[Side], root: Path) -> str:
    """The runs as rows, with the settings that differ and the way to their pages."""
    if isinstance(found, Compared):
        rows = [x | {"run": way(side, root)} for x, side in zip(found.rows, sides, strict=True)]
        return table(filled(rows))
    arm_of = {run: (name, seed) for name, arm in found.runs.items() for seed, run in arm.items()}
    return table([{"": x.letter, "run": way(x, root), "arm": arm_of[x.run][0],
                   "seed": arm_of[x.run][1], "round": len(x.summary["healed"])} for x in sides])


def way(side: Side, root: Path) -> Html:
    """The way to the pages of a run."""
    return Html(link(f"{os.path.relpath(side.run, root)}/{layout.REPORT}", side.run.name))


def verdicts(sides: Sequence[Side], root: Path) -> str:
    """Verdict words side by side."""
    said = {x.letter: {v["question"]: v["verdict"] for v in x.summary["verdicts"]} for x in sides}
    asked = list(dict.fromkeys(q for x in said.values() for q in x))
    return table([{"": x.letter, "run": way(x, root)}
                  | {q.split(":")[0]: said[x.letter].get(q, "") for q in asked} for x in sides])
