"""States compared: the table of all that was measured, whose first columns stay and whose groups of
columns fold; and how far everything moved, as dots with intervals."""

from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from steerloop.report.pages.drawing import Colour, Panel, Scale, dot_plot, figure, panels
from steerloop.report.pages.markup import cell
from steerloop.report.run import axis_of, frames_of, headline_of, last_healed, rows_of
from steerloop.report.text import interval
from steerloop.report.trait import DIGITS, measured, moved, values
from steerloop.runfolder import layout
from steerloop.runfolder.files import read_config
from steerloop.texts.foundations import FOUNDATIONS

FIRST = ("round", "state", "dose")  # columns that stay
GROUPS = {  # of the others, by name; what is in none is of the readouts
    "trait": ("trait", "score"),
    "language": ("coherence", "mundane ppl ×", "opening_mass", "sentence_validity"),
    "forced choice": ("flips", "leaves", "p_ans_any", "json_is_valid", "ppx_json", "top1",
                      "overlap"),
}
COLOURS: dict[str, Colour] = {layout.HEALED: "accent", layout.STEERED: "warm"}
WORDS = {"accent": "blue", "warm": "orange"}


def group_of(column: str, tasks: dict[str, Any]) -> str:
    """The group of a column; `tasks` are those that were asked."""
    known = [name for name, columns in GROUPS.items() if column in columns]
    moves = "trait" if column.startswith("Δ") else "readouts"
    return "tasks" if column in tasks else (known or [moves])[0]


def states_table(run: Path, states: list[dict[str, Any]]) -> str:
    """Measured states as rows, base first."""
    rows, tasks = rows_of(run, states), states[0].get("tasks", {})
    columns = list(dict.fromkeys(k for row in rows for k in row))
    groups: dict[str, list[str]] = {x: [] for x in (*GROUPS, "readouts", "tasks")}
    for column in columns:
        if column not in FIRST:
            groups[group_of(column, tasks)].append(column)
    groups = {k: x for k, x in groups.items() if x}

    def line(row: dict[str, Any]) -> str:
        cells = [cell(k, row[k], f' data-stays="{i}"') for i, k in enumerate(FIRST)]
        for name, own in groups.items():
            cells.append(f'<td class="folded" data-folded="{name}">…</td>')
            cells += [cell(k, row.get(k), f' data-group="{name}"') for k in own]
        return f"<tr>{''.join(cells)}</tr>"

    stays = "".join(f'<th data-stays="{i}" rowspan="2">{k}</th>' for i, k in enumerate(FIRST))
    heads = "".join(
        f'<th class="folded" data-folded="{name}"></th><th colspan="{len(own)}" '
        f'data-group="{name}">{opener(name, own)}</th>' for name, own in groups.items())
    names = "".join(
        f'<th class="folded" data-folded="{name}">{opener(name, own)}</th>'
        + "".join(f'<th data-group="{name}">{escape(k)}</th>' for k in own)
        for name, own in groups.items())
    return (f'<div class="scroll"><table class="states"><thead><tr>{stays}{heads}</tr>'
            f"<tr>{names}</tr></thead><tbody>{''.join(map(line, rows))}</tbody></table></div>")


def opener(name: str, columns: list[str]) -> str:
    """The button that folds a group of columns away, or back."""
    return f'<button type="button" data-fold="{name}">{name} ({len(columns)})</button>'


def compared(states: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The states that pictures show: the last student, and its teacher."""
    here = {e["state"]: e for e in states if e["round"] == last_healed(states)}
    return [here[x] for x in COLOURS if x in here]


def moves(run: Path, states: list[dict[str, Any]]) -> str:
    """How far the last student and its teacher moved, by every foundation, by every readout, and by
    every item of the headline."""
    shown = compared(states)
    if not shown:
        return '<p class="quiet">No round has been sampled yet.</p>'
    parts = [foundations_plot(shown), readouts_plot(run, shown), items_plot(run, shown)]
    return panels(parts)


def names_of(shown: list[dict[str, Any]]) -> str:
    """Which colour is which state, in words."""
    return ", ".join(f"{WORDS[COLOURS[e['state']]]}: {e['state']}, round {e['round'] + 1}"
                     for e in shown)


def foundations_plot(shown: list[dict[str, Any]]) -> str:
    """Of a run with vignettes, all foundations."""
    series = [(e["state"], COLOURS[e["state"]], [e["shift"][f]["nats"] for f in FOUNDATIONS])
              for e in shown if e.get("shift")]
    if not series:
        return ""
    svg = dot_plot("every foundation", "change against base (nats)", FOUNDATIONS, series)
    return figure(svg, f"Log of the mean probability, 95 % intervals over vignettes; "
                       f"{names_of(shown)}.")


def readouts_plot(run: Path, shown: list[dict[str, Any]]) -> str:
    """Whether the readouts of nats per token agree."""
    cfg, axis, base = read_config(run), axis_of(run), frames_of(run, 0, layout.BASE)
    names = [x for x in measured(base, axis) if x != DIGITS]
    if not names:
        return ""
    series = []
    for e in shown:
        now = frames_of(run, e["round"], e["state"])
        far = [moved(x, now, base, axis, cfg) for x in names]
        series.append((e["state"], COLOURS[e["state"]], far))
    svg = dot_plot(f"towards {axis[1]}, by readout", "nats per token", names, series)
    return figure(svg, f"Shift against base, 95 % intervals over items; {names_of(shown)}.")


def items_plot(run: Path, shown: list[dict[str, Any]]) -> str:
    """Of a headline that has a value an item, all items, least first."""
    headline, axis = headline_of(run), axis_of(run)
    if headline in ("", DIGITS):
        return ""
    was = values(headline, frames_of(run, 0, layout.BASE), axis)
    steps = [values(headline, frames_of(run, e["round"], e["state"]), axis) - was for e in shown]
    panel = Panel(f"{headline}: every item, least first", Scale([1, len(was)], whole=True),
                  Scale(np.concatenate(steps).tolist(), zero=True), "item by rank")
    for e, ys in zip(shown, steps, strict=True):
        order, colour = np.argsort(ys), COLOURS[e["state"]]
        notes = [f"{e['state']}, item {i}: {ys[i]:+.3f} nats per token" for i in order]
        panel.dots(range(1, len(ys) + 1), ys[order].tolist(), colour, notes)
        panel.level(e["headline"][0], "", colour)
    means = ", ".join(f"{e['state']} {interval(e['headline'], '+.3f')}" for e in shown)
    return figure(panel.svg(), f"Nats per token against base; dashed: the mean ({means}); "
                               f"{names_of(shown)}.")
