"""Pictures of several runs side by side: what each came to round by round, and where it ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerloop.report.pages.drawing import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    Colour,
    Panel,
    Scale,
    dot_plot,
    figure,
    legend,
    panels,
)
from steerloop.report.pages.names import shown
from steerloop.report.pages.standing import headline, sound
from steerloop.report.run import last_by_round
from steerloop.report.text import interval
from steerloop.report.trait import unit
from steerloop.runfolder import layout
from steerloop.runfolder.files import read_summary

COLOURS: tuple[Colour, ...] = ("accent", "warm", "good", "bad", "muted", "open")
DASHES = ("", "dashed", "dotted", "long",  # of runs that share a colour
          "thin", "thin dashed", "thin dotted", "thin long")
Look = tuple[int, int]  # which of the colours, which of the dashes
APART = 11  # pixels between two letters at the ends of lines
Point = tuple[float, list[float]]  # round, counted from 1, 0 is base; [estimate, low, high]
START: Point = (0.0, [0.0] * 3)  # of what is measured against base


@dataclass(frozen=True)
class Side:
    """A run as one of several: its letter, folder and summary, and how it is drawn."""

    letter: str
    run: Path
    summary: dict[str, Any]
    colour: Colour
    more: str  # classes of its line

    @property
    def name(self) -> str:
        """What a legend says."""
        return f"{self.letter} {shown(self.run.name)}"

    @property
    def read_by(self) -> str:
        """Readout and pole of its headline, '' without one."""
        by = self.summary["u0"]["headline"]
        return f"headline by {by}, towards {self.summary['axis'][1]}" if by else ""

    @property
    def unit(self) -> str:
        """What its headline is in."""
        return unit(self.summary["u0"]["headline"])


def looks_of(runs: Sequence[Path], arms: Sequence[dict[int, Path]]) -> list[Look]:
    """How runs are drawn: those of an arm in its colour, each by a dash of its own; without `arms`
    in a colour each, as far as there are any."""
    alike = [list(x.values()) for x in arms] or [[x] for x in runs]
    most = max(map(len, alike))
    look = {run: (i % len(COLOURS), i // len(COLOURS) * most + j)
            for i, arm in enumerate(alike) for j, run in enumerate(arm)}
    return [look[x] for x in runs]


def sides_of(runs: Sequence[Path], names: Sequence[str], looks: Sequence[Look]) -> list[Side]:
    """Runs by their letters."""
    return [Side(name, run, read_summary(run), COLOURS[colour], DASHES[dash % len(DASHES)])
            for name, run, (colour, dash) in zip(names, runs, looks, strict=True)]


def key(sides: Sequence[Side]) -> str:
    """The legend of all pictures."""
    return legend([(x.name, x.colour, x.more) for x in sides])


def courses(sides: Sequence[Side]) -> list[str]:
    """Headline, coherence and KL to base by round, as panels. Headlines of different readouts, or
    towards different poles, are different measures: a panel each."""
    pictures = []
    for what in dict.fromkeys(x.read_by for x in sides if x.read_by):
        alike = [x for x in sides if x.read_by == what]
        lines = {x.letter: [START, *by_round(x, [
            headline(e, x.summary["axis"]) for e in x.summary["healed"]])] for x in alike}
        pictures.append(course(f"{what}, {alike[0].unit}", alike, lines, {}))
    lines = {x.letter: by_round(x, [e.get("coherence") for e in x.summary["healed"]])
             for x in sides}
    floors = {x.summary["coherence_floor"] for x in sides if x.summary["coherence_floor"] > 0}
    if any(lines.values()):
        pictures.append(course("coherence, share of base", sides, lines,
                               {x: f"floor {x:.3g}" for x in sorted(floors)}))
    spent = {x.letter: [START, *((r + 1.0, [e["kl_base"]] * 3) for r, e in last_by_round(
        x.run, layout.DRIFT).items())] for x in sides}
    return [*pictures, course("KL to base, nats per token", sides, spent, {})]


def by_round(side: Side, values: list[Any]) -> list[Point]:
    """The values of healed rounds that are known, beside their rounds."""
    healed = zip(side.summary["healed"], values, strict=True)
    return [(e["round"] + 1.0, [float(y) for y in x]) for e, x in healed if sound(x)]


def course(
    title: str, sides: Sequence[Side], lines: dict[str, list[Point]], levels: dict[float, str]
) -> str:
    """One measure by round: by letter the points, side by side where runs have the same round, and
    `levels` with their names."""
    points = [x for line in lines.values() for x in line]
    longest = max((x for x, _ in points), default=1.0)
    y = Scale([*levels, *(x for _, ends in points for x in ends)])
    drawn = [x for x in sides if lines.get(x.letter)]
    tall = max(HEIGHT, TOP + BOTTOM + APART * len(drawn))
    panel = Panel(title, Scale([0.0, longest], whole=True), y, "round", height=tall)
    for level, text in levels.items():
        panel.level(level, "")
        panel.label(LEFT + 3.0, panel.at(0.0, level)[1] - 3, text, colour="bad")
    heights = []
    for i, side in enumerate(drawn):
        line = lines[side.letter]
        step = 0.04 * (i - (len(drawn) - 1) / 2) / max(1, len(drawn) / 6) * max(longest / 3, 1)
        xs = [x + step * (x > 0) for x, _ in line]
        values, lows, highs = zip(*(x for _, x in line), strict=True)
        panel.line(xs, values, side.colour, side.name, side.more)
        panel.spans(xs, lows, highs, side.colour)
        panel.dots(xs, values, side.colour, [
            f"{side.name}, round {x:.0f}: {interval(ends, '+.3f')}" for x, ends in line])
        heights.append(panel.at(xs[-1], values[-1])[1] + 4)
    for side, down in zip(drawn, spread(heights, panel.height - BOTTOM), strict=True):
        panel.label(panel.width - RIGHT + 2.0, down, side.letter, "start", side.colour)
    return panel.svg()


def spread(heights: Sequence[float | int], floor: int) -> list[float | int]:
    """Heights of labels, pixels from the top, moved apart where they would cover each other, above
    `floor` as far as that goes."""
    step = min(float(APART), (floor - TOP) / max(1, len(heights)))
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed, last = list(heights), -APART
    for i in order:
        placed[i] = last = max(heights[i], last + step)
    last = floor + step
    for i in reversed(order):
        placed[i] = last = min(placed[i], last - step)
    return placed


def ended(sides: Sequence[Side]) -> list[str]:
    """Where the last students are: all foundations as far as there are vignettes, the headlines of
    runs without."""
    plots, known = [], [x for x in sides if x.summary["healed"][-1].get("shift")]
    names = list(dict.fromkeys(f for x in known for f in x.summary["healed"][-1]["shift"]))
    if known:
        plots.append(dot_plot("foundations against base", "nats", names, [
            (x.name, x.colour, [of_shift(x, f) for f in names]) for x in known]))
    for what in dict.fromkeys(x.read_by for x in sides if x not in known and x.read_by):
        rest = [x for x in sides if x not in known and x.read_by == what]
        plots.append(dot_plot(what, rest[0].unit, [x.name for x in rest], [
            ("last round", "accent", [x.summary["healed"][-1]["headline"] for x in rest])]))
    return plots


def of_shift(side: Side, foundation: str) -> list[float] | None:
    """How far a foundation moved, nats as [estimate, low, high]; None where it was not asked."""
    moved = side.summary["healed"][-1]["shift"].get(foundation)
    return moved and moved["nats"]


def figures(pictures: Sequence[str], caption: str) -> str:
    """Pictures, and what they show."""
    return f'{panels([figure(x) for x in pictures])}<p class="quiet">{caption}</p>'
