"""U3: does the loop hold its course? Over all of its rounds."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from steerloop.report.estimates import information, ratio, share
from steerloop.report.healing import coherence_line
from steerloop.report.rule import Bound, Verdict
from steerloop.report.run import axis_of, events, frames_of, headline_of
from steerloop.report.stats import profile
from steerloop.report.text import markdown
from steerloop.report.trait import DIGITS, shift, weights
from steerloop.texts.foundations import FOUNDATIONS

SLACK = {True: 0.05, False: 0.02}  # a round may lose this much: of digits nats, else per token
INFORMED = 0.5  # least share kept of what the base's answers say about the vignettes


def course_verdict(
    run: Path, cfg: dict[str, Any], measured: list[dict[str, Any]], floor: float, moved: bool
) -> Verdict:
    """U3; without a student that has `moved` there is no course to hold."""
    verdict, axis = Verdict("U3: does the loop hold its course?", moved), axis_of(run)
    headline = headline_of(run)
    healed = [e["round"] for e in measured if e["state"] == "healed"]
    tables = [frames_of(run, 0, "base"), *(frames_of(run, x, "healed") for x in healed)]
    if headline:
        w, slack = weights(headline, tables[0], cfg), SLACK[headline == DIGITS]
        for round, (before, now) in zip(healed, pairwise(tables), strict=True):
            step = shift(headline, now, before, axis, w).within(w)
            verdict.line(f"round {round + 1}: {headline}, against the round before (nats)",
                         step, Bound(-slack, best=0.0),
                         name="undoing" if round else "reversed")
    for round, now in zip(healed, tables[1:], strict=True):
        verdict.line(f"round {round + 1}: coherence against base",
                     coherence_line(now, tables[0], cfg), Bound(floor, best=1.0), name="incoherent")
    if headline == DIGITS:
        collapse_lines(verdict, axis, tables[0][0], tables[-1][0], w)
    samples = [e for e in events(run) if e["stage"] == "sample"]
    spent = [e for e in events(run) if e["stage"] == "drift"]
    for what, cosines in (("cos(v_r, v_0)", [e["cos_first"] for e in samples]),
                          ("cos(shift of the student, vector)", [e["cos_teacher"] for e in spent])):
        verdict.fact(f"{what}, by round", ", ".join(f"{x:.2f}" for x in cosines), "> 0",
                     min(cosines) > 0, "turned")
    budget, most = cfg["kl_budget"], max(e["kl_base"] for e in spent)
    what = "KL to base per token, the most after any round (nats)"
    if budget:
        verdict.fact(what, f"{most:.4f}", f"≤ {budget:g}", most <= budget, "over budget")
    else:
        verdict.add(what, value=f"{most:.4f}", accepted="no budget set")
    verdict.reading = ["KL ledger:\n\n" + markdown([
        {"round": e["round"] + 1, "KL to base (nats per token)": e["kl_base"],
         "of it this round": e["kl_base"] - (spent[i - 1]["kl_base"] if i else 0.0),
         "left of the budget": budget - e["kl_base"] if budget else "no budget",
         "κ": s["kappa"], "c*": s["c_star"]}
        for i, (e, s) in enumerate(zip(spent, samples, strict=False))])]
    return verdict


def collapse_lines(
    verdict: Verdict, axis: list[str], base: pl.DataFrame, now: pl.DataFrame, w: np.ndarray
) -> None:
    """Of digits: do the answers still depend on their vignettes?"""
    base, now = (x.sort("vignette") for x in (base, now))
    told = ratio(information(now, w), information(base, w), w)
    verdict.line("what the answers say about their vignettes, over base's", told,
                 Bound(INFORMED, best=1.0), name="collapsed")
    picks = [profile(t).argmax(-1) for t in (base, now)]
    rest = picks[0] != FOUNDATIONS.index(axis[0])
    verdict.line(f"answers that changed where base did not choose {axis[0]}",
                 share(pl.Series((picks[0] != picks[1])[rest])), Bound(1 - INFORMED, best=0.0),
                 name="collapsed")
