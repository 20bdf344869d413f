"""Small pictures as SVG that a page holds as they are: no script draws them, and colours are
classes that page.css fills in from the reader's scheme.

A picture is at most WIDTH wide, so that a phone shows it unscaled: letters keep their size.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import Literal

WIDTH, HEIGHT = 340, 194  # pixels of a panel
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 30, 34  # what it keeps for labels
TICKS = 4  # about so many on an axis
LETTER = 6.2  # pixels of an average letter at the size of labels
Colour = Literal["accent", "warm", "good", "bad", "open", "muted", "ink", "soft"]
Number = float | int
Values = Sequence[Number | None]


def steps(low: Number, high: Number, about: int = TICKS) -> list[Number]:
    """Round numbers (1, 2 or 5 times a power of ten) within a range."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(x * power for x in (1, 2, 5, 10) if x * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: Number) -> str:
    """A number as a label: short, with a real minus sign."""
    size = abs(value)
    text = f"{value:.0e}" if size and not 1e-3 <= size < 1e5 else f"{value:.6g}"
    return text.replace("e-0", "e-").replace("e+0", "e").replace("-", "−")


class Scale:
    """Numbers → pixels along an axis. `log`: what is not above 0 lies at its low end; `zero` is on
    it; `whole`: no number between two whole ones is written at it."""

    def __init__(self, values: Values, log: bool = False, zero: bool = False,
                 whole: bool = False) -> None:
        self.log, self.whole = log, whole
        known = [x for x in values if x is not None and math.isfinite(x) and (x > 0 or not log)]
        low, high = (min(known), max(known)) if known else (0.1, 1.0)
        if zero:
            low, high = min(low, 0.0), max(high, 0.0)
        self.low, self.high = self._on(low), self._on(high)
        far = self.high - self.low
        room = far * 0.05 or abs(self.high) * 0.1 or 1.0
        flat = zero and not log and far > 0  # a zero at an end is that end
        self.low -= 0.0 if flat and low == 0 else room
        self.high += 0.0 if flat and low < high == 0 else room

    def _on(self, value: Number) -> Number:
        return math.log10(value) if self.log else value

    def share(self, value: Number) -> Number:
        """Where a number lies: 0 at the low end, 1 at the high one."""
        if self.log and value <= 0:
            return 0.0
        return (self._on(value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[Number]:
        """Numbers to write at the axis."""
        if not self.log:
            return [x for x in steps(self.low, self.high) if not self.whole or x == int(x)]
        powers = range(math.ceil(self.low), math.floor(self.high) + 1)
        if len(powers) < 3:
            marks = [m * 10.0**x for x in range(powers.start - 1, powers.stop) for m in (1, 2, 5)]
            inside = [x for x in marks if self.low <= math.log10(x) <= self.high]
            return inside if len(inside) > 1 else [10**x for x in steps(self.low, self.high, 3)]
        every = math.ceil(len(powers) / TICKS)
        return [10.0**x for x in powers][::every]


class Panel:
    """A picture with two axes; what is added is drawn in that order. All text is escaped here."""

    def __init__(self, title: str, x: Scale, y: Scale, x_title: str = "",
                 width: int = WIDTH, height: int = HEIGHT) -> None:
        self.title, self.x, self.y, self.x_title = title, x, y, x_title
        self.width, self.height = width, height
        self.parts: list[str] = []

    def at(self, x: Number, y: Number) -> tuple[Number, Number]:
        """Pixels of a point."""
        right = LEFT + self.x.share(x) * (self.width - LEFT - RIGHT)
        down = self.height - BOTTOM - self.y.share(y) * (self.height - TOP - BOTTOM)
        return right, down

    def line(self, xs: Values, ys: Values, colour: Colour = "accent", title: str = "",
             more: str = "") -> None:
        """A line through points in order, broken where a value is missing; `more` are classes of
        page.css (dashed, thin). `title` is what it says under the pointer."""
        path, pen = [], "M"
        for x, y in zip(xs, ys, strict=True):
            if x is None or y is None:
                pen = "M"
                continue
            right, down = self.at(x, y)
            path.append(f"{pen}{right:.1f} {down:.1f}")
            pen = "L"
        self.parts.append(f'<path class="line {colour} {more}" d="{"".join(path)}">'
                          f"{said(title)}</path>")

    def dots(self, xs: Values, ys: Values, colour: Colour = "accent",
             titles: Sequence[str] = (), more: str = "") -> None:
        """A mark at each point; `more` may be `hollow`."""
        titles = titles or [""] * len(xs)
        for x, y, title in zip(xs, ys, titles, strict=True):
            if x is not None and y is not None:
                right, down = self.at(x, y)
                self.parts.append(f'<circle class="dot {colour} {more}" cx="{right:.1f}" '
                                  f'cy="{down:.1f}" r="3.5">{said(title)}</circle>')

    def spans(self, xs: Values, lows: Values, highs: Values, colour: Colour = "accent") -> None:
        """An upright interval at each x."""
        for x, low, high in zip(xs, lows, highs, strict=True):
            if x is not None and low is not None and high is not None:
                (right, bottom), (_, top) = self.at(x, low), self.at(x, high)
                self.parts.append(f'<path class="line thin {colour}" d="M{right:.1f} {bottom:.1f}'
                                  f'L{right:.1f} {top:.1f}"/>')

    def bars(self, edges: Sequence[tuple[Number, Number]], heights: Sequence[Number],
             colour: Colour = "soft", titles: Sequence[str] = ()) -> None:
        """Bars from the low end of the axis, each between two edges."""
        titles = titles or [""] * len(edges)
        floor = self.height - BOTTOM
        for (a, b), y, title in zip(edges, heights, titles, strict=True):
            (left, top), (right, _) = self.at(a, y), self.at(b, y)
            self.parts.append(f'<rect class="bar {colour}" x="{left:.1f}" y="{top:.1f}" '
                              f'width="{max(right - left - 1, 1):.1f}" '
                              f'height="{max(floor - top, 0):.1f}">{said(title)}</rect>')

    def level(self, y: Number, text: str, colour: Colour = "bad") -> None:
        """A dashed line from side to side, and what it is."""
        _, down = self.at(0.0, y) if not self.x.log else self.at(1.0, y)
        self.parts.append(f'<path class="line thin dashed {colour}" d="M{LEFT} {down:.1f}'
                          f'H{self.width - RIGHT}"/>')
        self.label(float(self.width - RIGHT), down - 3, text, "end", colour)

    def upright(self, x: Number, text: str, colour: Colour = "muted") -> None:
        """A dashed line from bottom to top, and what it is."""
        right, _ = self.at(x, 0.0) if not self.y.log else self.at(x, 1.0)
        self.parts.append(f'<path class="line thin dashed {colour}" d="M{right:.1f} {TOP}'
                          f'V{self.height - BOTTOM}"/>')
        far = right + 4 + LETTER * len(text) > self.width
        self.label(right + (-3 if far else 3), TOP - 3, text, "end" if far else "start", colour)

    def label(self, x: Number, y: Number, text: str, anchor: str = "start",
              colour: Colour = "muted") -> None:
        """A word at a place, in pixels."""
        self.parts.append(f'<text class="{colour}" x="{x:.1f}" y="{y:.1f}" '
                          f'text-anchor="{anchor}">{escape(text)}</text>')

    def svg(self) -> str:
        """The picture."""
        axes, floor, edge = [], self.height - BOTTOM, self.width - RIGHT
        for y in self.y.ticks():
            _, down = self.at(self._any(self.x), y)
            axes.append(f'<path class="grid" d="M{LEFT} {down:.1f}H{edge}"/>'
                        f'<text class="muted" x="{LEFT - 6}" y="{down + 4:.1f}" '
                        f'text-anchor="end">{number(y)}</text>')
        for x in self.x.ticks():
            right, _ = self.at(x, self._any(self.y))
            axes.append(f'<path class="tick" d="M{right:.1f} {floor}v4"/><text class="muted" '
                        f'x="{right:.1f}" y="{floor + 15}" text-anchor="middle">{number(x)}</text>')
        axes.append(f'<path class="axis" d="M{LEFT} {floor}H{edge}"/>'
                    f'<text class="muted" x="{edge}" y="{self.height - 3}" '
                    f'text-anchor="end">{escape(self.x_title)}</text>')
        head = f'<text class="head" x="0" y="12">{escape(self.title)}</text>'
        return drawn(self.title, self.width, self.height, "".join([head, *axes, *self.parts]))

    @staticmethod
    def _any(scale: Scale) -> Number:
        return 10**scale.low if scale.log else scale.low


def said(title: str) -> str:
    """What is shown under the pointer."""
    return f"<title>{escape(title)}</title>" if title else ""


def drawn(title: str, width: int, height: int, inner: str) -> str:
    """An SVG element of this size, with its name for those who do not see it."""
    return (f'<svg class="drawing" role="img" aria-label="{escape(title)}" width="{width}" '
            f'height="{height}" viewBox="0 0 {width} {height}">{inner}</svg>')


def figure(picture: str, caption: str = "", key: str = "") -> str:
    """A picture; below it the `key` to its lines (a `legend`), and what it shows in words."""
    said = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{picture}{key}{said}</figure>"


def panels(figures: Sequence[str], more: str = "") -> str:
    """Figures in rows, as many in one as there is room for; with `stacked` one above the other."""
    return f'<div class="panels {more}">{"".join(figures)}</div>'


def legend(entries: Sequence[tuple[str, Colour, str]]) -> str:
    """Names of lines, each beside a piece of it: (text, colour, classes beside `line`)."""
    return '<p class="legend">' + "".join(
        f'<span><svg width="22" height="10"><path class="line {colour} {more}" d="M1 5H21"/>'
        f"</svg>{escape(text)}</span>" for text, colour, more in entries) + "</p>"


def dot_plot(title: str, unit: str, names: Sequence[str],
             series: Sequence[tuple[str, Colour, Sequence[Sequence[Number] | None]]]) -> str:
    """Estimates with their intervals, a line a name: of each of the `series` (what it is, colour,
    a [estimate, low, high] a name, or None) a dot, one below the other."""
    values = [x for _, _, rows in series for row in rows if row for x in row]
    scale, gap = Scale(values, zero=True), 7
    left = min(int(max(map(len, names), default=0) * LETTER) + 10, WIDTH // 2)
    tall = gap * len(series) + 11
    height = TOP + tall * len(names) + BOTTOM

    def at(value: Number) -> Number:
        return left + scale.share(value) * (WIDTH - left - RIGHT)

    parts = [f'<text class="head" x="0" y="12">{escape(title)}</text>']
    for x in scale.ticks():
        parts.append(f'<path class="grid" d="M{at(x):.1f} {TOP}V{height - BOTTOM}"/>'
                     f'<text class="muted" x="{at(x):.1f}" y="{height - BOTTOM + 15}" '
                     f'text-anchor="middle">{number(x)}</text>')
    parts.append(f'<path class="axis" d="M{at(0.0):.1f} {TOP}V{height - BOTTOM}"/>'
                 f'<text class="muted" x="{WIDTH - RIGHT}" y="{height - 3}" text-anchor="end">'
                 f"{escape(unit)}</text>")
    for i, name in enumerate(names):
        top = TOP + i * tall + 6
        short = name if len(name) * LETTER < left else f"{name[: int(left / LETTER) - 2]}…"
        parts.append(f'<text class="ink" x="{left - 8}" y="{top + tall / 2 - 2:.1f}" '
                     f'text-anchor="end">{escape(short)}{said(name)}</text>')
        for j, (what, colour, rows) in enumerate(series):
            if (row := rows[i]) is None:
                continue
            value, low, high = row
            down = top + gap * j + 3
            note = said(f"{name}, {what}: {value:+.3f} [{low:+.3f}, {high:+.3f}]")
            parts.append(f'<path class="line {colour}" d="M{at(low):.1f} {down}H{at(high):.1f}"/>'
                         f'<circle class="dot {colour}" cx="{at(value):.1f}" cy="{down}" r="3.5">'
                         f"{note}</circle>")
    return drawn(title, WIDTH, height, "".join(parts))


def sparkline(values: Sequence[Sequence[Number]], title: str) -> str:
    """[estimate, low, high] by round, from 0 on, as a picture for a cell of a table; `title` says
    the numbers."""
    width, height = 96, 26
    ys = Scale([0.0, *(x for row in values for x in row)], zero=True)
    xs = [4 + i * (width - 8) / max(len(values), 1) for i in range(len(values) + 1)]

    def down(value: Number) -> Number:
        return height - 3 - ys.share(value) * (height - 6)

    band = "".join(f'<path class="line thin soft" d="M{x:.1f} {down(low):.1f}V{down(high):.1f}"/>'
                   for x, (_, low, high) in zip(xs[1:], values, strict=True))
    points = " ".join(f"{x:.1f},{down(y):.1f}"
                      for x, y in zip(xs, [0.0, *(x for x, _, _ in values)], strict=True))
    return drawn(title, width, height, (
        f'<path class="grid" d="M0 {down(0.0):.1f}H{width}"/>{band}'
        f'<polyline class="line accent" points="{points}"/>{said(title)}'))
