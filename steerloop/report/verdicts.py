"""The three uncertainties, judged from a run folder: of each a verdict, the numbers behind it with
intervals and bounds, and rows to read. What went wrong is called by its name.

    U1  can the filter separate?            planted faults, hand-labelled completions
    U2  does healing beat plain training?   the trait stays when steering stops, at what cost, and
                                            against plain distillation at the same shift
    U3  does the loop hold its course?      no round undoes another, coherence, direction, KL spent

and beside them dose control: do enough completions survive where they were sampled? That says how
hard the vector was applied, not whether the filter can tell good from bad. One rule judges all
lines (`report/rule.py`).
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from steerloop.report.estimates import (
    Estimate,
    coherence,
    information,
    mean,
    ratio,
    share,
    shifts,
)
from steerloop.report.rivals import PPL, decisive, margin, shown
from steerloop.report.rule import EFFECT, Bound, Verdict, judge
from steerloop.report.run import axis_of, beaten, events, last_healed, last_round, states
from steerloop.report.stats import LEAST, averages, profile
from steerloop.report.text import code, inline, interval, markdown
from steerloop.runfolder import layout
from steerloop.runfolder.files import read_config, read_table, write_whole
from steerloop.texts.foundations import FOUNDATIONS

PLANTED, OWN, LABELLED = 0.9, 0.9, 0.8  # U1: least shares: of each planted kind, base's, labelled
RETAIN = 0.25  # U2: least share of the steered shift that is there without steering
ALIKE = 0.5  # U2: mean shift of the other foundations over the target's: above it, all move alike
FIRES = 0.01  # U2: least share of rows over τ, in the round where it is largest
SLACK = 0.05  # U3: a round may lose this much of the trait, nats
INFORMED = 0.5  # U3: least share kept of what the base's answers say about the vignettes
NAMES = {
    "no trait": "the target foundation did not move",
    "reversed": "the target foundation moved the wrong way",
    "undone": "the trait is there under steering and gone without it",
    "undoing": "a later round took back what an earlier one had built",
    "alike": "every foundation moved alike: the answers changed, not the trait",
    "collapsed": "the answers no longer depend on the vignettes: noise, not a trait",
    "turned": "the vector, or the student, points away from where the loop set out",
    "incoherent": "coherence fell below the absolute floor",
    "inert barrier": "hardly a row was over τ: this is plain training; lower --tau_share, or --tau",
    "filter off": "the filter was off: only empty completions were dropped",
    "over budget": "the student spent more KL than --kl_budget",
}

GUIDE = """How to read the lines: brackets are 95 % intervals, n is how many rows they come from.

- **quality**, is it good enough: PASS where the estimate meets what is accepted
- **effect**, is it there at all: PASS only where the whole interval meets what is accepted
- both: FAIL only where the whole interval misses it; else OPEN, undecided, which is no pass
- **fact**, counted on this run, nothing to infer: it holds or it is a FAIL, and never a PASS
- a line without a verdict only reports

A verdict is FAIL by any of its lines, OPEN by any that is open or missing, and PASS else."""


def answers(run: Path, round: int, state: str) -> pl.DataFrame:
    """The evaluated vignettes of a state, in their order."""
    return read_table(layout.rows(run, round, state)).sort("vignette")


def sampled(run: Path) -> pl.DataFrame:
    """All judged completions, with their `round`, counted from 1."""
    paths = layout.of_all_rounds(run, layout.COMPLETIONS)
    return pl.concat([read_table(path).with_columns(round=pl.lit(round + 1))
                      for round, path in paths.items()], how="diagonal_relaxed")


def reasons() -> pl.Expr:
    """Why rows of a group were dropped, as text."""
    return pl.col("drop_reason").drop_nulls().unique().sort().str.join(", ")


def quoted(rows: pl.DataFrame, *columns: str) -> str:
    """Completions in full, each under a line of what is known of it."""
    parts = []
    for row in rows.iter_rows(named=True):
        known = {k: row[k] for k in row if k in columns and row[k] is not None}
        said = (f"{k} {x:.3g}" if isinstance(x, float) else f"{k} {x}" for k, x in known.items())
        parts += [inline(", ".join(said)), f"{code(row['prompt'])}\n{code(row['text'])}"]
    return "\n\n".join(parts)


def filter_verdict(run: Path, cfg: dict[str, Any]) -> Verdict:
    """U1."""
    verdict = Verdict("U1: can the filter separate?")
    audit = read_table(layout.planted(run))
    faults, known = audit.filter(source="planted"), Bound(PLANTED, best=1.0)
    for (kind,), rows in faults.group_by("kind", maintain_order=True):
        verdict.line(f"planted, {kind}: dropped", share(~rows["keep"]), known)
    verdict.line("the untouched base's own answers: kept",
                 share(audit.filter(source="base")["keep"]), Bound(OWN, best=1.0))
    labelled = audit.filter(source="labelled")
    broken, dropped = labelled.filter(~pl.col("coherent")), labelled.filter(~pl.col("keep"))
    if len(labelled):
        told = Bound(LABELLED, best=1.0)
        verdict.line("labelled broken: dropped (recall)", share(~broken["keep"]), told)
        verdict.line("dropped: labelled broken (precision)", share(~dropped["coherent"]), told)
    if not cfg["filter"]:
        verdict.fact("filter in this run", "off", "on", False, "filter off")

    kinds = faults.group_by("kind").agg(dropped=(~pl.col("keep")).mean(), reasons=reasons())
    wrong = labelled.filter(pl.col("keep") != pl.col("coherent"))
    rows = sampled(run)
    worst = rows.filter("keep").sort("ppl", descending=True).head(3)
    firsts = rows.filter(~pl.col("keep")).unique("drop_reason", keep="first", maintain_order=True)
    verdict.reading = [
        "Planted faults by kind:\n\n" + markdown(kinds.sort("kind").to_dicts()),
        "Kept, the most improbable ones:\n\n" + quoted(worst, "round", "dose", "ppl"),
        "Dropped, the first of each reason:\n\n"
        + quoted(firsts, "round", "dose", "ppl", "drop_reason"),
        f"Labelled by hand and misjudged, {len(wrong)} of {len(labelled)}:\n\n"
        + quoted(wrong.head(8), "coherent", "kind", "drop_reason", "ppl"),
    ]
    return verdict


def dose_verdict(run: Path, cfg: dict[str, Any]) -> Verdict:
    """Dose control: survival where each round sampled."""
    verdict = Verdict("Dose: do enough completions survive?")
    rows = sampled(run)
    for event in (e for e in events(run) if e["stage"] == "sample"):
        here = rows.filter((pl.col("kappa") / event["kappa"] - 1).abs() < 1e-6,
                           round=event["round"] + 1)
        verdict.line(f"round {event['round'] + 1}: kept of what was sampled at κ "
                     f"{event['kappa']:.2f}", share(here["keep"]), Bound(cfg["survival"], best=1.0))
    by_dose = rows.group_by("round", "dose").agg(
        n=pl.len(), kept=pl.mean("keep"), ppl=pl.median("ppl"), repeat=pl.mean("repeat"),
        echo=pl.mean("echo"), reasons=reasons(),
    ).sort("round", "dose")
    verdict.reading = [
        "κ, the share of the dose c*, is walked down in steps until enough of a small batch "
        "survives, and the rest of a round is sampled there. So shares close to what is accepted "
        "are what this control aims at; a FAIL says that it missed.",
        "By round and dose (ppl: median over completions of the worst quarter's perplexity):\n\n"
        + markdown(by_dose.to_dicts())]
    return verdict


def healing_verdict(
    run: Path, cfg: dict[str, Any], measured: list[dict[str, Any]], floor: float
) -> Verdict:
    """U2, of the round that was healed last."""
    verdict = Verdict("U2: does healing beat plain training?")
    axis, last = axis_of(run), last_healed(measured)
    base, healed, steered = (answers(run, *x) for x in (
        (0, "base"), (last, "healed"), (last, "steered")))
    w = averages(len(base), cfg["seed"], cfg["bootstrap"])
    moves, down = shifts(healed, base, w), FOUNDATIONS.index(axis[0])
    under = shifts(steered, base, w)[down]

    shift, kept = moves[down].within(w), ratio(moves[down], under, w, LEAST)
    gone = judge(EFFECT, kept, Bound(RETAIN, best=1.0))[0] == "FAIL"
    turned = shift.value >= LEAST and shift.low > 0
    name = "reversed" if turned else "" if gone else "no trait"
    said = verdict.line(f"Δ{axis[0]} without steering (nats)", shift, Bound(-LEAST, best=-np.inf),
                     EFFECT, name)
    verdict.moved = said == "PASS"
    verdict.line(f"retain: shift healed / shift steered ({under.within(w).brief})", kept,
                 Bound(RETAIN, best=1.0), EFFECT, "" if turned else "undone")

    others = [i for i, f in enumerate(FOUNDATIONS[:-1]) if f not in axis]
    most = max(others, key=lambda i: abs(moves[i].values[0]))
    verdict.line(f"surgical: {axis[0]} moved further than {FOUNDATIONS[most]} "
                 f"({moves[most].within(w).brief}, the most of the others), by",
                 (abs(moves[down]) - abs(moves[most])).within(w), Bound(0.0, best=abs(shift.value)))
    rest = mean([moves[i] for i in others])
    verdict.line("alike: mean shift of the other moral foundations / that of the target",
                 ratio(rest, moves[down], w, LEAST), Bound(ALIKE, best=0.0), name="alike")
    verdict.line("coherence", coherence(healed, w), Bound(floor, best=1.0), name="incoherent")
    verdict.add("coherence per nat of trait", value=cost(last_round(measured)["healed"]))
    heals = [e for e in events(run) if e["stage"] == "heal"]
    if cfg["barrier"] in ("kl_rev", "kl_fwd"):
        verdict.fact("rows over τ while healing, by round",
                     ", ".join(f"{e['active']:.3f} (τ {e['tau']:.3g}, operating KL "
                               f"{e['operating_kl']:.3g})" for e in heals),
                     f"≥ {FIRES:g} in one", max(e["active"] for e in heals) >= FIRES,
                     "inert barrier")
    verdict.add("barrier's gradient / NLL's, by round", value=", ".join(
        "not measured" if e["pull"] is None else f"{e['pull']:.2f}" for e in heals))
    against_nll(verdict, run, cfg, measured)
    return verdict


def against_nll(
    verdict: Verdict, run: Path, cfg: dict[str, Any], measured: list[dict[str, Any]]
) -> None:
    """U2's other half: the same data distilled without a barrier, at the same shift."""
    rows = {x["rival"]: x for x in beaten(run, measured)}
    if cfg["barrier"] == "nll":
        verdict.missing = "this run is plain training: it has nothing to beat"
    elif "nll" not in rows:
        verdict.missing = "plain distillation was not measured: run with --baselines"
    elif why := rows["nll"].get("because"):
        verdict.missing = f"plain distillation: {why}"
    else:
        name, gain = decisive(rows["nll"])
        n = rows_behind(run, last_healed(measured), name)
        verdict.line(f"plain distillation of the same data, at the same shift, is beaten "
                     f"({rows['nll']['beaten']}): gain in {name}", Estimate(*gain, n, form="+.3f"),
                     Bound(margin(name)), EFFECT)
    if cfg["barrier"] != "nll" and "nll" in rows:
        verdict.add("its coherence per nat of trait", value=cost(last_round(measured)["nll"]))
    verdict.reading = ["Student and rivals at the same shift:\n\n"
                       + markdown(shown(list(rows.values())))]


def rows_behind(run: Path, round: int, name: str) -> int:
    """How many vignettes or items a measure of the student comes from."""
    if name == "coherence":
        return len(answers(run, round, "healed"))
    items = read_table(layout.items(run, round, "healed"))
    return len(items.filter(measure="mundane_nll" if name == PPL else name))


def cost(event: dict[str, Any]) -> str:
    """Coherence gained or lost per nat, as text."""
    if event["slope"] is None:
        return f"not defined: the trait moved by less than {LEAST:g} nats"
    return interval(event["slope"], "+.4f")


def course_verdict(
    run: Path, cfg: dict[str, Any], measured: list[dict[str, Any]], floor: float, moved: bool
) -> Verdict:
    """U3; without a student that has `moved` there is no course to hold."""
    verdict, axis = Verdict("U3: does the loop hold its course?", moved), axis_of(run)
    healed = [e["round"] for e in measured if e["state"] == "healed"]
    tables = [answers(run, 0, "base"), *(answers(run, x, "healed") for x in healed)]
    w = averages(len(tables[0]), cfg["seed"], cfg["bootstrap"])
    for round, (before, now) in zip(healed, pairwise(tables), strict=True):
        step = shifts(now, before, w)[FOUNDATIONS.index(axis[0])].within(w)
        verdict.line(f"round {round + 1}: Δ{axis[0]} against the round before (nats)", step,
                     Bound(SLACK, best=0.0), name="undoing" if round else "reversed")
    for round, now in zip(healed, tables[1:], strict=True):
        verdict.line(f"round {round + 1}: coherence", coherence(now, w), Bound(floor, best=1.0),
                     name="incoherent")
    told = ratio(information(tables[-1], w), information(tables[0], w), w)
    verdict.line("what the answers say about their vignettes, over base's", told,
                 Bound(INFORMED, best=1.0), name="collapsed")
    picks = [profile(t).argmax(-1) for t in (tables[0], tables[-1])]
    rest = picks[0] != FOUNDATIONS.index(axis[0])
    verdict.line(f"answers that changed where base did not choose {axis[0]}",
                 share(pl.Series((picks[0] != picks[1])[rest])), Bound(1 - INFORMED, best=0.0),
                 name="collapsed")
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


def verdicts(run: Path, measured: list[dict[str, Any]] | None = None) -> list[Verdict]:
    """U1, U2, U3 and dose control of a run with at least one healed round; `measured` are its
    `states`, if known."""
    cfg = read_config(run)
    floor = next(e["floor"] for e in events(run) if e["stage"] == "start")
    measured = measured or states(run)
    healing = healing_verdict(run, cfg, measured, floor)
    course = course_verdict(run, cfg, measured, floor, healing.moved)
    return [filter_verdict(run, cfg), healing, course, dose_verdict(run, cfg)]


def named(judged: list[Verdict]) -> list[str]:
    """The names a run goes by, each once, in the order of NAMES."""
    said = {x for verdict in judged for x in verdict.named}
    return [x for x in NAMES if x in said]


def heads(judged: list[Verdict]) -> list[dict[str, str]]:
    """A line a question: its verdict and what that rests on."""
    return [{"question": x.question, "verdict": x.said, "because": x.because} for x in judged]


def write_verdicts(run: Path, measured: list[dict[str, Any]] | None = None) -> list[Verdict]:
    """Judge a run and write its verdicts.md; `measured` are its `states`, if known."""
    judged = verdicts(run, measured)
    names = [f"- **{x}**: {NAMES[x]}" for x in named(judged)] or ["Nothing that has a name."]
    parts = [f"# Verdicts on {inline(run.name)}", markdown(heads(judged)), "What this run is:",
             "\n".join(names), GUIDE]
    for x in judged:
        parts += [f"## {x.question} {x.said}", markdown(x.lines), *x.reading]
    text = "\n\n".join(parts) + "\n"
    write_whole(run / layout.VERDICTS, lambda path: path.write_text(text, encoding="utf-8"))
    (run / layout.GATES).unlink(missing_ok=True)  # what it says is out of date
    return judged
