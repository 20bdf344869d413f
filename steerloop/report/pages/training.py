"""training.html: what is to be seen of training itself, newest round first, also while a heal goes
on: its steps, where the KL lies, how the dose was found, and what long texts come to."""

from collections.abc import Callable
from functools import partial
from html import escape
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from steerloop.report.pages.doses import doses
from steerloop.report.pages.drawing import Colour, Panel, Scale, figure, legend, panels
from steerloop.report.pages.frame import page
from steerloop.report.pages.rolled import rolled
from steerloop.report.pages.site import LIVE, Status, masthead, sections
from steerloop.report.pages.spread import spread
from steerloop.report.run import last_by_round
from steerloop.runfolder import layout
from steerloop.runfolder.files import kept_so_far, read_config, read_table, write_whole

SHOWN = 12  # rounds on the page, the newest ones
MARKS = 10  # epochs that are marked, at most
MADE = (layout.CURVE, layout.COMPLETIONS, layout.STEPS, layout.HISTOGRAM, layout.WORST,
        layout.ROLLOUTS)  # tables of a round that the page shows
Drawn = Callable[[int], str]  # what a section says of a round, from 0


class Heal(NamedTuple):
    """The steps of a heal, and whether it is over."""

    steps: pl.DataFrame
    over: bool


def write_training(run: Path, status: Status) -> None:
    """Write training.html of a run, whatever it has come to so far."""
    cfg, rounds, samples = read_config(run), rounds_of(run), last_by_round(run, "sample")
    drawn = {
        "The heal, step by step": (heals(run, cfg, status), "No heal has begun yet."),
        "KL by token, and the worst tokens": (
            partial(spread, run, cfg["ref"]), "No student has been compared with its base yet."),
        "Dose, and what survived it": (
            lambda round: doses(run, cfg, samples.get(round, {}), round),
            "No dose has been looked for yet."),
        "Long rollouts, token by token": (
            partial(rolled, run, cfg["target_kl"]), "Nothing was rolled out yet."),
    }
    parts = {name: by_round(rounds, *how, name) for name, how in drawn.items()}
    said = masthead(run, layout.TRAINING, status, lead(run, cfg, rounds))
    body = said + sections(parts)
    text = page(f"training: {run.name}", body, scripts=["folds.js"], live=status == "running")
    path = run / layout.TRAINING
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def rounds_of(run: Path) -> list[int]:
    """The rounds (from 0) that have something to show, newest first."""
    there = {round for name in MADE for round in layout.of_all_rounds(run, name)}
    return sorted(there | layout.under_way(run).keys(), reverse=True)


def lead(run: Path, cfg: dict[str, Any], begun: list[int]) -> str:
    """Where the run is, in a sentence; `begun` are rounds, newest first."""
    rounds = cfg["rounds"]
    if not begun:
        return "The first round has not come to its dose yet."
    healing = layout.under_way(run).keys() - layout.of_all_rounds(run, layout.STEPS).keys()
    if not healing:
        return f"Round {begun[0] + 1} of {rounds} is the newest one here."
    (now, *_), total = sorted(healing), steps_of(cfg)
    so_far = kept_so_far(layout.under_way(run)[now])
    taken = 0 if so_far is None else so_far.height
    return f"The heal of round {now + 1} of {rounds} has come to step {taken} of {total}."


def by_round(rounds: list[int], drawn: Drawn, nothing: str, heading: str) -> str:
    """A section: each round in a fold, newest first, that one open. One of which '' is drawn is
    left out; `nothing` is said where that is all of them."""
    parts = []
    for round in rounds[:SHOWN]:
        if not (said := drawn(round)):
            continue
        name = f"{heading.split()[0].lower().strip(',')}-round-{round + 1}"
        parts.append(f'<details class="round" id="{name}"{" open" * (not parts)}><summary>round '
                     f"{round + 1}</summary>{said}</details>")
    if len(rounds) > SHOWN:
        parts.append(f'<p class="quiet">Rounds before the last {SHOWN} are in their tables.</p>')
    return "".join(parts) or f'<p class="quiet">{escape(nothing)}</p>'


def steps_of(cfg: dict[str, Any]) -> int:
    """How many optimiser steps a heal has, by the settings."""
    rows = cfg["n_keep"] - int(cfg["val_share"] * cfg["n_keep"])
    return cfg["epochs"] * ceil(rows / cfg["step_rows"])


def heals(run: Path, cfg: dict[str, Any], status: Status) -> Drawn:
    """What there is to say of the heal of a round, beside the one before it."""
    over = layout.of_all_rounds(run, layout.STEPS)
    live = {r: kept_so_far(x) for r, x in layout.under_way(run).items()}
    known = {r: Heal(x, over=False) for r, x in live.items() if x is not None}
    known |= {r: Heal(read_table(x), over=True) for r, x in over.items()}
    records, total = last_by_round(run, layout.HEAL), steps_of(cfg)
    scales = scaled([x.steps for x in known.values()])

    def heal(round: int) -> str:
        if round not in known:
            return "" if round not in records else missing(layout.STEPS)
        now, before = known[round], known.get(round - 1)
        if now.over:
            said = ended(records.get(round, {}), now.steps)
        else:
            word = LIVE if status == "running" else LIVE.replace("live<", "stopped<")
            at = now.steps["epoch"][-1] + 1
            said = (f'{word}: step {now.steps.height} of {total}, '
                    f"epoch {at} of {cfg['epochs']}")
        pictures = course(cfg, now, before and before.steps, scales, round)
        return f"<p>{said}</p>{pictures}"

    return heal


def missing(name: str) -> str:
    """That a round has no table of a name."""
    return (f'<p class="quiet">This round has no {escape(name)}.parquet: it was made by an older '
            "version.</p>")


def ended(record: dict[str, Any], steps: pl.DataFrame) -> str:
    """A heal that is over, in words."""
    epochs = steps["epoch"][-1] + 1
    said = [f"{steps.height} steps in {epochs} epoch{'s' * (epochs > 1)}"]
    if "nll_first" in record:
        said.append(f"NLL {record['nll_first']:.3f} at the first step, {record['nll']:.3f} over the"
                    f" last epoch, {record['val_nll']:.3f} on rows held out (nats per token)")
    if steps["tau"][0] is not None and "active" in record:
        said.append(f"{record['active']:.1%} of all rows over τ = {record['tau']:.3g} nats")
    return escape("; ".join(said))


MEASURES: dict[str, tuple[str, Colour]] = {
    "nll": ("NLL (nats per token)", "accent"), "a_row": ("A_row, mean (nats)", "accent"),
    "active": ("share of rows over τ", "accent"),
    "grad_norm": ("gradient norm, before clipping", "accent"), "lr": ("learning rate", "accent"),
}  # of a step: what it is called


def scaled(tables: list[pl.DataFrame]) -> dict[str, Scale]:
    """The upright axis of each measure, the same for all rounds, so that they can be compared."""
    found = {}
    for name in MEASURES:
        values = [x for table in tables for x in table[name].to_list()]
        values += [x for table in tables for x in table["tau"].to_list() if name == "a_row"]
        found[name] = Scale([*values, 1.0] if name == "active" else values, zero=name != "nll")
    return found


def course(
    cfg: dict[str, Any], now: Heal, before: pl.DataFrame | None, scales: dict[str, Scale],
    round: int,
) -> str:
    """A picture a measure, over the steps; of `before`, the round before, behind it."""
    pictures = []
    last = max(steps_of(cfg), now.steps.height, 0 if before is None else before.height)
    xs = Scale([1, last], whole=True)
    starts = now.steps.filter(pl.col("epoch") > pl.col("epoch").shift(1))
    marked = starts.gather_every(ceil(max(1, starts.height) / MARKS))
    for name, (title, colour) in MEASURES.items():
        values = now.steps[name].to_list()
        if not any(x is not None for x in values):
            continue
        if name == "a_row" and cfg["barrier"] == "spectral":
            title = "spectral norms of Δ, mean"
        panel = Panel(title, xs, scales[name], "step")
        for step, epoch in marked.select("step", "epoch").rows():
            panel.upright(step + 0.5, f"{epoch + 1}")
        if before is not None:
            panel.line([x + 1 for x in before["step"]], before[name].to_list(), "muted",
                       f"round {round}", "thin")
        panel.line([x + 1 for x in now.steps["step"]], values, colour,
                   f"round {round + 1}: {values[-1]:.4g} at step {len(values)}")
        if name == "a_row" and (tau := now.steps["tau"][0]) is not None:
            panel.level(tau, f"τ {tau:.3g}")
        if name == "grad_norm" and max(values) > cfg["clip"]:
            panel.level(cfg["clip"], f"clipped to {cfg['clip']:g}")
        if not now.over:
            panel.dots([len(values)], [values[-1]], colour, [f"now: {values[-1]:.4g}"])
        pictures.append(figure(panel.svg()))
    lines = [(f"round {round + 1}", "accent", "")]
    lines += [(f"round {round}, before it", "muted", "thin")] if before is not None else []
    pulls = {"nll": "without a barrier there is no A_row",
             "spectral": "the barrier pulls at the norms of Δ"}.get(
        cfg["barrier"], "A_row is the aggregate of a row's KLs to the reference, and the barrier "
        "pulls at rows over τ")
    return (f'{panels(pictures)}{legend(lines)}<p class="quiet">Each '
            f"point is an optimiser step; {pulls}. Dashed uprights: an epoch begins, by its number."
            " Axes are the same in all rounds.</p>")
