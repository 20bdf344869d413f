"""The one rule of verdicts.md: what is said of a number, given its interval, a bound and its kind.

    quality   is it good enough?    PASS where the estimate meets the bound
    effect    is it there at all?   PASS where the whole interval meets the bound
    both                            FAIL where the whole interval misses the bound, else OPEN
    fact      counted on this run, with nothing to infer: it holds or FAILs, and passes nothing

OPEN is no pass. It is said within noise; where rows are so few that even a flawless result could be
chance; and of all that an untouched model could claim as well, while the trait is not known to have
moved.
"""

import math
from dataclasses import dataclass, field

from steerloop.report.estimates import Estimate

QUALITY, EFFECT, FACT = "quality", "effect", "fact"
CHANCE = 0.025  # what lies beyond either end of a 95 % interval by chance
NOISE = "within noise"
FEW = "too few rows: even a flawless result could be chance"
NOTHING = "nothing to judge"
UNMOVED = "the trait is not known to have moved enough: an untouched model would pass, too"
MANY = 3  # lines that the reason of a verdict names; of more it says how many


@dataclass(frozen=True)
class Bound:
    """What is asked for: `at` and whatever lies on the side of it where `best` is, a flawless
    result."""

    at: float
    best: float = math.inf

    @property
    def side(self) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if self.best > self.at else -1

    @property
    def text(self) -> str:
        """For reading."""
        return f"{'≥' if self.side > 0 else '≤'} {self.at:g}".replace("-", "−")

    def luck(self, share: bool) -> float:
        """Chance that a row lies on the right side where the bound is just met: of a share the
        bound itself, of a difference one half."""
        if not share:
            return 0.5
        return min(max(self.at if self.side > 0 else 1 - self.at, 0.0), 1.0)


def too_few(n: int, chance: float) -> bool:
    """Whether n rows may well come out all alike, each with this chance: then they exclude
    nothing. 6 rows are enough for a coin, 17 for a share of .8, 36 for one of .9."""
    return chance**n > CHANCE


def judge(kind: str, estimate: Estimate, bound: Bound) -> tuple[str, str]:
    """PASS, FAIL or OPEN, and why it is OPEN.

    A number that is no share has to be measured finer, too, than what a flawless result would have
    to spare; unless its whole interval meets the bound.
    """
    if not estimate.n:
        return "OPEN", NOTHING
    value, at, best = (bound.side * x for x in (estimate.value, bound.at, bound.best))
    low, high = sorted((bound.side * estimate.low, bound.side * estimate.high))
    luck = bound.luck(estimate.share)
    if high < at and not too_few(estimate.n, 1 - luck):
        return "FAIL", ""
    blunt = not estimate.share and best - (value - low) < at
    if too_few(estimate.n, luck) or (blunt and low < at):
        return "OPEN", FEW
    met = low if kind == EFFECT else value
    return ("PASS", "") if met >= at else ("OPEN", NOISE)


@dataclass
class Verdict:
    """A question, its lines of evidence, and what in the run has a name of its own."""

    question: str
    moved: bool = True  # the trait is known to have; without that, nothing here is a pass
    lines: list[dict[str, str]] = field(default_factory=list)
    named: list[str] = field(default_factory=list)
    reading: list[str] = field(default_factory=list)
    missing: str = ""  # what would have to be run for a verdict
    word: str = ""  # in the place of PASS, FAIL and OPEN

    def line(
        self, what: str, estimate: Estimate, bound: Bound, kind: str = QUALITY, name: str = ""
    ) -> str:
        """Judge one number; where it fails, the run goes by `name`. Returns what is said of it."""
        said, why = judge(kind, estimate, bound)
        if said == "PASS" and not self.moved:
            said, why = "OPEN", UNMOVED
        self.add(what, kind, estimate.text, bound.text, said, why)
        self.named += [name] if said == "FAIL" and name else []
        return said

    def fact(self, what: str, value: str, accepted: str, holds: bool, name: str) -> None:
        """What was counted on this run; it either holds or gives the run its `name`."""
        self.add(what, FACT, value, accepted, "holds" if holds else "FAIL")
        self.named += [] if holds else [name]

    def add(self, what: str, kind: str = "", value: str = "", accepted: str = "", said: str = "",
            why: str = "") -> None:
        """A row of the table; without a verdict it only reports."""
        self.lines.append({"number": what, "kind": kind, "value": value, "accepted": accepted,
                           "verdict": said, "because": why})

    @property
    def said(self) -> str:
        """FAIL when a line fails; OPEN when one is, when evidence is missing or nothing passes; or
        a word of its own."""
        if self.word:
            return self.word
        lines = {x["verdict"] for x in self.lines}
        if "FAIL" in lines:
            return "FAIL"
        return "OPEN" if "OPEN" in lines or self.missing or "PASS" not in lines else "PASS"

    @property
    def because(self) -> str:
        """What the verdict rests on: the lines that fail, else those left open by their reason; and
        what is missing."""
        said, left = [x["number"] for x in self.lines if x["verdict"] == "FAIL"], {}
        for x in self.lines if not said else []:
            if x["verdict"] == "OPEN":
                left.setdefault(x["because"], []).append(x["number"])
        for why, lines in left.items():
            said.append(f"{why} ({'; '.join(lines) if len(lines) <= MANY else len(lines)}"
                        f"{' lines' * (len(lines) > MANY)})")
        return "; ".join([*said, *[self.missing] * bool(self.missing)])
