"""Runs side by side: each against the first, in nats and in words.

Runs that answered the same vignettes are paired by vignette. What the base contributes is taken out
of both sides, so that runs on different models can be compared too; a note says where pairing was
not possible and where the bases differ.
"""

import math
from pathlib import Path

import numpy as np
import polars as pl

from steerloop.report.ledger import LEGAL
from steerloop.report.rivals import MARGIN, PPL, WIDER
from steerloop.report.run import axis_of, last_healed, states
from steerloop.report.stats import difference, estimate, profile
from steerloop.report.text import interval, markdown
from steerloop.runfolder import layout
from steerloop.runfolder.files import read_config, read_table
from steerloop.texts.foundations import FOUNDATIONS

NAMES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # of runs, in the order given
Tables = dict[str, pl.DataFrame]
GRADED = (PPL, "opening_mass")  # means of numbers, unlike shares of yes and no


def tables(run: Path) -> Tables:
    """Answers and items of the base and of the student after the last healed round, in the order of
    their vignettes and items."""
    last, frames = last_healed(states(run)), {}
    for name, at in (("base", (0, "base")), ("now", (last, "healed"))):
        rows, items = (read_table(path(run, *at)) for path in (layout.rows, layout.items))
        frames |= {f"{name} eval": rows.sort("vignette"),
                   f"{name} items": items.sort("measure", "item")}
    return frames


def alike(a: pl.DataFrame, b: pl.DataFrame, *keys: str) -> bool:
    """Whether two tables are about the same things."""
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


def moved(p: list[np.ndarray], signs: tuple[int, ...], seed: int, resamples: int) -> list[float]:
    """[estimate, low, high] of Σ sign · log mean p over tables of the same vignettes."""
    n = len(p[0])
    w = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples) / n
    w = np.concatenate([np.full((1, n), 1 / n), w])
    means = [w @ x for x in p]
    value = sum(s * np.log(m) for s, m in zip(signs, means, strict=True))
    pull = sum(s * x / m[:, None] for s, x, m in zip(signs, p, means, strict=True))
    return estimate(w, value, pull)


def gained(ours: Tables, theirs: Tables, seed: int, resamples: int) -> dict[str, list[float]]:
    """Measure → [estimate, low, high] of what ours is better by, for measures that both have of the
    same vignettes or items; each against its own base."""
    def change(t: Tables, name: str) -> np.ndarray:
        if name == "coherence":
            terms = [t[f"{x} eval"].select("p_ans_any", "json_is_valid").to_numpy()
                     for x in ("now", "base")]
            now, was = (x[:, x.mean(0).argmin()] for x in terms)
            return now - was
        measure = "mundane_nll" if name == PPL else name
        now, was = (t[f"{x} items"].filter(measure=measure)["value"].to_numpy()
                    for x in ("now", "base"))
        return now - was

    gains = {}
    if alike(ours["now eval"], theirs["now eval"], "vignette"):
        gains["coherence"] = difference(change(ours, "coherence") - change(theirs, "coherence"),
                                        seed, resamples)
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


def in_words(down: str, shift: list[float], gain: dict[str, list[float]]) -> str:
    """Deltas → words: how far, at what cost, and what that makes of it."""
    size = f"{abs(shift[0]):.2f} nats"
    far = (f"moves {down} further down by {size}" if shift[2] < 0 else
           f"moves {down} less far down by {size}" if shift[1] > 0 else
           f"moves {down} alike, within noise")
    margin = {k: MARGIN.get(k, WIDER) for k in gain}
    better = [k for k, (x, low, _) in gain.items() if x > margin[k] and low > 0]
    worse = [k for k, (x, _, high) in gain.items() if x < -margin[k] and high < 0]
    ahead, behind = shift[2] < 0 or bool(better), shift[1] > 0 or bool(worse)
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
    if not alike(a["now eval"], b["now eval"], "vignette"):
        lines.append("vignettes differ: nothing is paired, intervals are wider, and coherence is "
                     "not compared")
    elif not a["base eval"].equals(b["base eval"]):
        lines.append("bases differ (another model, precision or prompt): each run is against its "
                     "own base")
    if not alike(a["now items"], b["now items"], "measure", "item"):
        lines.append("ordinary texts or probes differ: only what both have is compared")
    return lines


def compare_runs(runs: list[Path]) -> str:
    """Every run as a row, the settings that differ, and each one against the first."""
    first, held = runs[0], [tables(run) for run in runs]
    cfgs = [read_config(run) for run in runs]
    axis, rows, parts = axis_of(first), [], []
    differ = [k for k in cfgs[0] if k != "runs" and any(c.get(k) != cfgs[0][k] for c in cfgs)]
    for name, run, cfg in zip(NAMES, runs, cfgs, strict=False):
        measured = states(run)
        last = next(e for e in reversed(measured) if e["state"] == "healed")
        now, base = last["measures"], measured[0]["measures"]
        rows.append({"": name, "run": run.name} | {k: str(cfg.get(k)) for k in differ}
                    | {"round": last["round"] + 1}
                    | {f"Δ{f} (nats)": interval(last["shift"][f]["nats"]) for f in axis}
                    | {"coherence": now["coherence"], PPL: now["ppl_mundane"] / base["ppl_mundane"]}
                    | {k: now[k] for k in LEGAL if k in now})
    parts.append(markdown(rows))
    seed, resamples = cfgs[0]["seed"], cfgs[0]["bootstrap"]
    for row, run, t in zip(rows[1:], runs[1:], held[1:], strict=True):
        shifts = {f: apart(t, held[0], f, seed, resamples) for f in axis}
        gain = gained(t, held[0], seed, resamples)
        deltas = [{"measure": f"Δ{f} (nats)", f"{row['']} − A": interval(x)}
                  for f, x in shifts.items()]
        deltas += [{"measure": f"{k}, better by",
                    f"{row['']} − A": interval(x, "+.3f")}
                   for k, x in gain.items()]
        said = in_words(axis[0], shifts[axis[0]], gain)
        parts += [f"{row['']} against A is {said}" if said.startswith(("ahead", "behind", "a "))
                  else f"{row['']} against A: {said}", markdown(deltas)]
        parts += [f"note: {x}" for x in notes(run, first, t, held[0])]
    return "\n\n".join(parts)
