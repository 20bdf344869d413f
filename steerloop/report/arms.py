"""Runs of several arms and loop seeds: what the seeds of an arm have in common, and the first arm
less every other one, paired by seed and by item.

    mean ± t √(S²_seeds / s + S²_items / n)

S²_seeds is the variance of the means of seeds, S²_items that of the means of items. Both hold some
of the noise that is left, so the interval is rather too wide. Degrees of freedom: Satterthwaite
(1946).

Letters: s loop seeds, n items.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from jaxtyping import Float

from steerloop import UserError
from steerloop.report.run import axis_of, events, frames_of, headline_of, last_healed, states
from steerloop.report.stats import t95
from steerloop.report.text import interval, markdown
from steerloop.report.trait import DIGITS, Frames, level, need, sides, values
from steerloop.runfolder.files import read_config

APART = ("seed", "runs", "resume", "force", "threads", "track")  # knobs that make no arm
Arms = dict[str, dict[int, Path]]
Steps = Float[np.ndarray, "s n"]


def arms_of(runs: list[Path]) -> Arms:
    """Arm → loop seed → run, in the order given; an arm goes by what tells it from others. Raises
    UserError for two runs of one arm and seed."""
    cfgs = [read_config(x) for x in runs]
    differ = [k for k in cfgs[0] if k not in APART
              and any(x.get(k) != cfgs[0][k] for x in cfgs)]
    found: Arms = {}
    for run, cfg in zip(runs, cfgs, strict=True):
        name = ", ".join(f"{k} {cfg.get(k)}" for k in differ if cfg.get(k) != "") or "one arm"
        if cfg["seed"] in found.setdefault(name, {}):
            raise UserError(f"{run} and {found[name][cfg['seed']]} are the same arm and loop seed: "
                            "give one of them")
        found[name][cfg["seed"]] = run
    return found


def repeated(runs: list[Path]) -> bool:
    """Whether an arm has several loop seeds."""
    return any(len(x) > 1 for x in arms_of(runs).values())


def read_by(runs: list[Path]) -> tuple[str, list[str]]:
    """The readout by which the first of them is read, and the axis of all. Raises UserError for
    runs of other axes, or where nothing reads the first."""
    readout, axis = headline_of(runs[0]), axis_of(runs[0])
    if not readout or any(axis_of(x) != axis for x in runs):
        raise UserError("runs of one axis, read by something, can be held against one another")
    return readout, axis


def pooled(steps: Steps) -> list[float]:
    """[mean, low, high] over seeds and items, as above; without end of a single number."""
    parts = [(x.var(ddof=1) / len(x), len(x) - 1.0)
             for x in (steps.mean(1), steps.mean(0)) if len(x) > 1]
    mean, variance = float(steps.mean()), sum(x for x, _ in parts)
    if not parts:
        return [mean, -math.inf, math.inf]
    spent = sum(x**2 / n for x, n in parts)
    half = t95(variance**2 / spent if spent else parts[0][1]) * variance**0.5
    return [mean, mean - half, mean + half]


def steps_of(run: Path, readout: str, axis: list[str]) -> dict[str, np.ndarray]:
    """By label, how far the last student moved, nats an item: by the readout towards the trait, and
    either side of the contrasted answers alone. Of digits, which are read as a log of a mean, one
    number."""
    base, now = (frames_of(run, *x) for x in ((0, "base"), (last_healed(states(run)), "healed")))
    return steps_between(readout, now, base, axis)


def steps_between(
    readout: str, now: Frames, base: Frames, axis: list[str]
) -> dict[str, np.ndarray]:
    """The same of two measured states."""
    found = {readout: went(readout, now, base, axis)}
    for name, pole in (("positive", axis[1]), ("negative", axis[0])):
        if name in (alone := sides(now, base)):
            found[f"{pole} answers alone"] = alone[name]
    return found


def costs(now: Frames, base: Frames) -> dict[str, np.ndarray]:
    """By item, how much less likely the base finds a state's answers, and the state ordinary text,
    than it was: nats per token."""
    logs = [np.log(x[2].sort("prompt_id")["ppl"].to_numpy()) for x in (now, base)]
    plain = [x[1].filter(measure="mundane_nll").sort("item")["value"].to_numpy()
             for x in (now, base)]
    return {"log ppl of its answers": logs[0] - logs[1], "log mundane ppl": plain[0] - plain[1]}


def went(readout: str, now: Frames, base: Frames, axis: list[str]) -> np.ndarray:
    """A readout's steps by item."""
    if readout == DIGITS:
        return np.array([level(readout, now, axis) - level(readout, base, axis)])
    return values(readout, now, axis) - values(readout, base, axis)


def stacked(steps: list[dict[str, np.ndarray]], label: str) -> Steps:
    """One measure of several runs. Raises UserError where they saw other items."""
    rows = [x[label] for x in steps]
    if len({len(x) for x in rows}) > 1:
        raise UserError(f"{label}: the runs were read on {' and '.join(str(len(x)) for x in rows)} "
                        "items: nothing can be pooled")
    return np.stack(rows)


def cost(run: Path) -> dict[str, float]:
    """KL to base per token, nats, and perplexity of ordinary text over the base's, of the last
    student."""
    measured = states(run)
    last = [e for e in measured if e["state"] == "healed"][-1]["measures"]
    (kl,) = [e["kl_base"] for e in events(run) if e["stage"] == "drift"][-1:]
    return {"KL to base": kl, "mundane ppl ×":
            last["ppl_mundane"] / measured[0]["measures"]["ppl_mundane"]}


@dataclass(frozen=True)
class Pooled:
    """Arms, of which some have several loop seeds. By arm: its seeds, by label how far they moved
    (`own`) and how much further the first arm did (`less`; seeds that both have) as [mean, low,
    high] in nats, and the mean `costs` (see `cost`)."""

    runs: Arms
    own: dict[str, dict[str, list[float]]]
    costs: dict[str, dict[str, float]]
    less: dict[str, tuple[list[int], dict[str, list[float]]]]

    @property
    def text(self) -> str:
        """The two tables, as Markdown."""
        first = next(iter(self.own))
        own = [{"arm": name, "seeds": numbers(self.runs[name])}
               | {f"Δ{k}": interval(x, "+.3f") for k, x in moved.items()}
               | {k: f"{x:.3f}" for k, x in self.costs[name].items()}
               for name, moved in self.own.items()]
        less = [{f"{first}, less": name, "seeds": numbers(seeds)}
                | {f"Δ{k}": interval(x, "+.3f") for k, x in moved.items()}
                for name, (seeds, moved) in self.less.items()]
        return "\n\n".join([markdown(own), *([markdown(less)] if less else [])])


def numbers(seeds: Iterable[int]) -> str:
    """Seeds in order, as text."""
    return " ".join(map(str, sorted(seeds)))


def pooled_arms(runs: list[Path]) -> Pooled:
    """Every arm, and the first less every other. Where the runs ended after other rounds, each is
    taken at its last. Raises UserError for runs of other axes, where nothing reads the first, or
    what reads it did not measure another."""
    arms, (readout, axis) = arms_of(runs), read_by(runs)
    for run in runs:
        need(readout, run, frames_of(run, 0, "base"), runs[0], axis)
    steps = {name: {seed: steps_of(run, readout, axis) for seed, run in arm.items()}
             for name, arm in arms.items()}
    own, mean_costs, less = {}, {}, {}
    first, *others = steps
    for name, mine in steps.items():
        each = [cost(x) for x in arms[name].values()]
        labels = next(iter(mine.values()))
        own[name] = {x: pooled(stacked(list(mine.values()), x)) for x in labels}
        mean_costs[name] = {k: fmean(x[k] for x in each) for k in each[0]}
    for name in others:
        seeds = sorted(steps[first].keys() & steps[name].keys())
        if not seeds:
            continue
        ours, theirs = ([steps[x][seed] for seed in seeds] for x in (first, name))
        less[name] = seeds, {x: pooled(stacked(ours, x) - stacked(theirs, x)) for x in ours[0]}
    return Pooled(arms, own, mean_costs, less)


def across_seeds(runs: list[Path]) -> str:
    """The same as text."""
    return pooled_arms(runs).text
