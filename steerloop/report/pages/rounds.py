"""What each round cost, as pictures: coherence, direction cosines and the KL ledger."""

from pathlib import Path
from typing import Any

from steerloop.report.pages.drawing import Panel, Scale, figure, legend, panels
from steerloop.report.run import events, last_by_round
from steerloop.report.text import interval
from steerloop.runfolder import layout
from steerloop.runfolder.files import read_config

STATES = ((layout.HEALED, "accent", ""), (layout.STEERED, "warm", "hollow"))


def rounds_panels(run: Path, measured: list[dict[str, Any]]) -> str:
    """All three above one another; `measured` are the run's `states`."""
    rounds = max([1, *(e["round"] + 1 for e in measured)])
    return panels([coherence_panel(run, measured, rounds), cosine_panel(run, rounds),
                   ledger_panel(run, rounds)], "stacked")


def across(rounds: int) -> Scale:
    """The axis of rounds; 0 is the base."""
    return Scale([-0.3, rounds + 0.3], whole=True)


def coherence_panel(run: Path, measured: list[dict[str, Any]], rounds: int) -> str:
    """Coherence by round with intervals, of students and of teachers, above the floor. A floor that
    nothing can fall below is not drawn."""
    known = [e for e in measured if e["coherence"] and e["state"] in (
        layout.BASE, layout.STEERED, layout.HEALED)]
    floor = next((e["floor"] for e in events(run) if e["stage"] == "start"), 0.0)
    ends = [max(x, 0.0) for e in known for x in e["coherence"]]
    panel = Panel("coherence, of the base's", across(rounds),
                  Scale([*ends, *[floor] * (floor > 0)]), "round")
    if floor > 0:
        panel.level(floor, f"floor {floor:.3g}")
    for state, colour, more in STATES:
        mine = [e for e in known if e["state"] in (state, *[layout.BASE] * (not more))]
        xs = [0 if e["state"] == layout.BASE else e["round"] + 1 for e in mine]
        ys = [e["coherence"][0] for e in mine]
        near = [x + 0.06 * rounds / 3 * bool(more) for x in xs]  # beside, not behind the others
        lows, highs = ([e["coherence"][i] for e in mine] for i in (1, 2))
        panel.spans(near, lows, highs, colour)
        if not more:
            panel.line(near, ys, colour)
        panel.dots(near, ys, colour, [f"{e['state']}, round {x}: {interval(e['coherence'], '.3f')}"
                                      for e, x in zip(mine, xs, strict=True)], more)
    return figure(panel.svg(), key=legend([("healed, without the vector", "accent", ""),
                                           ("steered (open circles)", "warm", "thin")]))


def cosine_panel(run: Path, rounds: int) -> str:
    """Whether vectors and student keep to the first direction."""
    samples, drifts = (last_by_round(run, x) for x in ("sample", layout.DRIFT))
    lines = [([r + 1 for r in samples], [e["cos_first"] for e in samples.values()], "accent", ""),
             ([r + 1 for r in drifts], [e["cos_teacher"] for e in drifts.values()], "warm",
              "dashed")]
    values = [y for _, ys, *_ in lines for y in ys]
    panel = Panel("direction cosines", across(rounds), Scale([*values, 1.0]), "round")
    for xs, ys, colour, more in lines:
        panel.line(xs, ys, colour, more=more)
        panel.dots(xs, ys, colour, [f"round {x}: {y:.3f}" for x, y in zip(xs, ys, strict=True)])
    return figure(panel.svg(), key=legend([
        ("the round's vector, with the first one", "accent", ""),
        ("the student's shift, with the round's vector", "warm", "dashed")]))


def ledger_panel(run: Path, rounds: int) -> str:
    """What all rounds so far have spent of KL."""
    drifts, budget = last_by_round(run, layout.DRIFT), read_config(run)["kl_budget"]
    spent = [e["kl_base"] for e in drifts.values()]
    before = [0.0, *spent]
    panel = Panel("KL, student to base (nats per token)", across(rounds),
                  Scale([*spent, budget], zero=True), "round")
    panel.bars([(r + 0.7, r + 1.3) for r in drifts], spent, titles=[
        f"after round {r + 1}: {kl:.4f}, of it this round {kl - was:+.4f}"
        for r, kl, was in zip(drifts, spent, before, strict=False)])
    if budget:
        panel.level(budget, f"budget {budget:g}")
    return figure(panel.svg(), "Of all rounds so far, after each.")
