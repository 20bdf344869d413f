"""Runs side by side: each against the first, in nats and in words.

Runs that answered the same vignettes are paired by vignette. What the base contributes is taken out
of both sides, so that runs on different models can be compared too; a note says where pairing was
not possible and where the bases differ.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from steerloop import UserError
from steerloop.report.capability import KEYS, asked, changes, gain
from steerloop.report.coherence import side_by_side
from steerloop.report.ledger import LEGAL
from steerloop.report.rivals import MARGIN, PPL, WIDER
from steerloop.report.run import (
    axis_of,
    events,
    frames_of,
    headline_of,
    last_healed,
    states,
    word_of,
)
from steerloop.report.stats import difference, estimate, profile
from steerloop.report.text import interval, markdown
from steerloop.report.trait import DIGITS, Frames, need, sides, unit, values
from steerloop.runfolder import layout
from steerloop.runfolder.files import read_config
from steerloop.texts.foundations import FOUNDATIONS

NAMES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # of runs, in the order given
Tables = dict[str, pl.DataFrame]
GRADED = (PPL, "opening_mass")  # means of numbers, unlike shares of yes and no


def tables(run: Path) -> Tables:
    """Answers and items of the base and of the student after the last healed round, in the order of
    their vignettes and items."""
    frames = {}
    for name, at in (("base", (0, "base")), ("now", (last_of(run), "healed"))):
        rows, items, said = frames_of(run, *at)
        frames |= {f"{name} eval": rows.sort("vignette") if len(rows) else rows,
                   f"{name} items": items.sort("measure", "item"), f"{name} said": said}
    return frames


def last_of(run: Path) -> int:
    """The last round that was healed."""
    return last_healed([e for e in events(run) if e["stage"] == "evaluate"])


def of_state(t: Tables, name: str) -> Frames:
    """The tables of a state as `evaluate` returned them."""
    return [t[f"{name} {x}"] for x in ("eval", "items", "said")]


def same_items(a: Tables, b: Tables) -> bool:
    """Whether two runs were measured on the same vignettes and prompts."""
    return (alike(a["now eval"], b["now eval"], "vignette")
            and alike(a["now said"], b["now said"], "prompt"))


def alike(a: pl.DataFrame, b: pl.DataFrame, *keys: str) -> bool:
    """Whether two tables are about the same things; one without columns is about nothing."""
    if not a.width or not b.width:
        return a.width == b.width
    return a.select(keys).equals(b.select(keys))


def apart(ours: Tables, theirs: Tables, f: str, seed: int, resamples: int) -> list[float]:
    """[estimate, low, high] of how much further one run moved a foundation than another, nats:
    (log mean p now − base) of ours less that of theirs.

    Paired by vignette where both have the same ones; else the two variances add up.
    """
    i = FOUNDATIONS.index(f)
    p = [[profile(t[f"{x} eval"])[:, i] for x in ("now", "base")] for t in (ours, theirs)]
    if alike(ours["now eval"], theirs["now eval"], "vignette"):
        return moved([*p[0], *p[1]], (1, -1, -1, 1), seed, resamples)
    a, b = (moved(x, (1, -1), seed, resamples) for x in p)
    below = math.hypot(a[0] - a[1], b[2] - b[0])
    above = math.hypot(a[2] - a[0], b[0] - b[1])
    return [a[0] - b[0], a[0] - b[0] - below, a[0] - b[0] + above]


def apart_by(
    readout: str, ours: Tables, theirs: Tables, axis: list[str], seed: int, resamples: int
) -> list[float]:
    """The same by a readout of one value per item, paired by item: both runs are taken to have
    been read on the same ones. Raises UserError where they were not."""
    steps = [values(readout, of_state(t, "now"), axis) - values(readout, of_state(t, "base"), axis)
             for t in (ours, theirs)]
    if len(steps[0]) != len(steps[1]):
        raise UserError(f"the runs were read by {readout} on {len(steps[0])} and {len(steps[1])} "
                        "items: nothing can be compared")
    return difference(steps[0] - steps[1], seed, resamples)


def shifts_apart(
    readout: str, ours: Tables, theirs: Tables, axis: list[str], cfg: dict[str, Any]
) -> dict[str, list[float]]:
    """What is compared, by its label: of digits both foundations, else the headline."""
    seed, resamples = cfg["seed"], cfg["bootstrap"]
    if readout == DIGITS:
        return {f"Δ{f}": apart(ours, theirs, f, seed, resamples) for f in axis}
    if not readout:
        return {}
    found = {f"Δ{axis[1]}": apart_by(readout, ours, theirs, axis, seed, resamples)}
    each = [sides(of_state(t, "now"), of_state(t, "base")) for t in (ours, theirs)]
    for side, pole in (("positive", axis[1]), ("negative", axis[0])):
        if all(side in x and len(x[side]) == len(each[0][side]) for x in each):
            found[f"{pole} answers alone"] = difference(each[0][side] - each[1][side], seed,
                                                        resamples)
    return found


def moved(p: list[np.ndarray], signs: tuple[int, ...], seed: int, resamples: int) -> list[float]:
    """[estimate, low, high] of Σ sign · log mean p over tables of the same vignettes."""
    n = len(p[0])
    w = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples) / n
    w = np.concatenate([np.full((1, n), 1 / n), w])
    means = [w @ x for x in p]
    value = sum(s * np.log(m) for s, m in zip(signs, means, strict=True))
    pull = sum(s * x / m[:, None] for s, x, m in zip(signs, p, means, strict=True))
    return estimate(w, value, pull)


def gained(ours: Tables, theirs: Tables, cfg: dict[str, Any]) -> dict[str, list[float]]:
    """Measure → [estimate, low, high] of what ours is better by, for measures that both have of the
    same vignettes or items; each against its own base."""
    seed, resamples, factor = cfg["seed"], cfg["bootstrap"], cfg["ppl_factor"]

    def change(t: Tables, name: str) -> np.ndarray:
        measure = "mundane_nll" if name == PPL else name
        now, was = (t[f"{x} items"].filter(measure=measure)["value"].to_numpy()
                    for x in ("now", "base"))
        return now - was

    gains = {}
    pairs = [(of_state(t, "now"), of_state(t, "base")) for t in (ours, theirs)]
    if same_items(ours, theirs) and (found := side_by_side(pairs, factor)):
        steps = [(now - was) / was.mean() for now, was in found]
        gains["coherence"] = difference(steps[0] - steps[1], seed, resamples)
    for name in (PPL, *LEGAL):
        measure = "mundane_nll" if name == PPL else name
        items = [t["now items"].filter(measure=measure) for t in (ours, theirs)]
        if len(items[0]) and alike(*items, "measure", "item"):
            mine, other = change(ours, name), change(theirs, name)
            steps = other - mine if name == PPL else mine - other
            same = name in GRADED and not steps.any()
            gains[name] = [0.0] * 3 if same else difference(steps, seed, resamples)
            if name == PPL:  # a step of nll is one of the ratio, on the scale of ours
                gains[name] = [math.exp(mine.mean()) * math.expm1(x) for x in gains[name]]
    return gains


def in_words(
    shift: list[float] | None, gain: dict[str, list[float]], counted: str
) -> str:
    """Deltas → words: how far, at what cost, and what that makes of it. `shift` is towards the
    trait, `counted` in that unit; None where no readout sees it."""
    shift, unknown = shift or [0.0, 0.0, 0.0], shift is None
    size = f"{abs(shift[0]):.2f} {counted}"
    far = ("no readout sees the trait" if unknown else
           f"moves the trait further by {size}" if shift[1] > 0 else
           f"moves the trait less far by {size}" if shift[2] < 0 else
           "moves the trait alike, within noise")
    margin = {k: MARGIN.get(k, WIDER) for k in gain}
    better = [k for k, (x, low, _) in gain.items() if x > margin[k] and low > 0]
    worse = [k for k, (x, _, high) in gain.items() if x < -margin[k] and high < 0]
    ahead, behind = shift[1] > 0 or bool(better), shift[2] < 0 or bool(worse)
    sides = [f"better in {', '.join(better)}"] * bool(better) + [
        f"worse in {', '.join(worse)}"] * bool(worse)
    said = {(True, False): "ahead", (False, True): "behind", (True, True): "a trade",
            (False, False): "no difference beyond noise"}[ahead, behind]
    return f"{said}: " + ", ".join([far, *(sides or ["same quality, within noise"])])


def notes(ours: Path, theirs: Path, a: Tables, b: Tables) -> list[str]:
    """What a reader of the deltas has to know."""
    lines = []
    if axis_of(ours) != axis_of(theirs):
        lines.append(f"axes differ: {' → '.join(axis_of(ours))} and {' → '.join(axis_of(theirs))}; "
                     "deltas are along that of the first run")
    if headline_of(ours) != headline_of(theirs):
        said = [headline_of(x) or word_of(x) for x in (ours, theirs)]
        lines.append(f"read by {said[0]} and {said[1]}; deltas are by what the first run is read "
                     "by")
    if not same_items(a, b):
        lines.append("vignettes differ: nothing is paired, intervals are wider, and coherence is "
                     "not compared")
    elif not a["base eval"].equals(b["base eval"]):
        lines.append("bases differ (another model, precision or prompt): each run is against its "
                     "own base")
    if not alike(a["now items"], b["now items"], "measure", "item"):
        lines.append("ordinary texts or probes differ: only what both have is compared")
    return lines


@dataclass(frozen=True)
class Against:
    """A run against the first one, by label as [estimate, low, high]: how much further it moved
    (`shifts`), what it is better by (`gains`; `tasks`, where both were asked the same and
    so were their bases), what that makes of it in words, and what a reader has to know."""

    name: str
    said: str
    shifts: dict[str, list[float]]
    gains: dict[str, list[float]]
    tasks: dict[str, list[float]]
    notes: list[str]


@dataclass(frozen=True)
class Compared:
    """Runs side by side: a row each, and every one against the first; shifts are in `unit`."""

    rows: list[dict[str, Any]]
    against: list[Against]
    unit: str

    @property
    def text(self) -> str:
        """Every run as a row, the settings that differ, and each one against the first."""
        parts = [markdown(self.rows)]
        for x in self.against:
            deltas = [{"measure": f"{f} ({self.unit})", f"{x.name} − A": interval(shift)}
                      for f, shift in x.shifts.items()]
            deltas += [{"measure": f"{k}, better by", f"{x.name} − A": interval(gain, "+.3f")}
                       for k, gain in x.gains.items()]
            parts += [x.said, markdown(deltas), *(f"note: {note}" for note in x.notes)]
        return "\n\n".join(parts)


def rows_of(runs: list[Path]) -> list[dict[str, Any]]:
    """A row each: its name, the settings that differ, and what its last student came to."""
    cfgs, rows = [read_config(run) for run in runs], []
    differ = [k for k in cfgs[0] if k not in ("runs", "track")
              and any(c.get(k) != cfgs[0][k] for c in cfgs)]
    for name, run, cfg in zip(NAMES, runs, cfgs, strict=False):
        measured = states(run)
        last = next(e for e in reversed(measured) if e["state"] == "healed")
        now, base = last["measures"], measured[0]["measures"]
        by = unit(headline_of(run))
        rows.append({"": name, "run": run.name} | {k: str(cfg.get(k)) for k in differ}
                    | {"round": last["round"] + 1}
                    | ({f"{k} ({by})": interval(x) for k, x in last["moved"].items()}
                       or {"trait": word_of(run)})
                    | {PPL: now["ppl_mundane"] / base["ppl_mundane"]}
                    | {k: now[k] for k in ("coherence", *LEGAL) if k in now})
    return rows


def tasks_apart(ours: Path, theirs: Path, cfg: dict[str, Any]) -> dict[str, list[float]]:
    """By how much the last student is better at each task, by label; {} where that is no pair: its
    base came to something else, or one of them was asked nothing, or other items."""
    (was, now), (its_base, its) = ([asked(x, 0, layout.BASE), asked(x, last_of(x), layout.HEALED)]
                                   for x in (ours, theirs))
    if any(x is None for x in (was, now, its_base, its)):
        return {}
    if not was.sort(KEYS).equals(its_base.sort(KEYS)):
        return {}
    return {k: gain(x) for k, x in changes(now, its, cfg).items()}


def compared(runs: list[Path]) -> Compared:
    """Every run against the first. Raises UserError where one was not measured by what the first
    is read by, or on another number of items."""
    first, held = runs[0], [tables(run) for run in runs]
    axis, headline, cfg = axis_of(first), headline_of(first), read_config(first)
    against = []
    for name, run, t in zip(NAMES[1:], runs[1:], held[1:], strict=False):
        need(headline, run, of_state(t, "base"), first, axis)
        shifts = shifts_apart(headline, t, held[0], axis, cfg)
        gains = gained(t, held[0], cfg)
        towards = next(iter(shifts.values()), None)
        if headline == DIGITS and towards:  # that of `down`
            value, low, high = towards
            towards = [-value, -high, -low]
        said = in_words(towards, gains, unit(headline))
        is_so = " is" if said.startswith(("ahead", "behind", "a ")) else ":"
        against.append(Against(name, f"{name} against A{is_so} {said}", shifts, gains,
                               tasks_apart(run, first, cfg), notes(run, first, t, held[0])))
    return Compared(rows_of(runs), against, unit(headline))


def compare_runs(runs: list[Path]) -> str:
    """The same as text."""
    return compared(runs).text
