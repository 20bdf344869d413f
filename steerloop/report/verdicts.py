"""The uncertainties, judged from a run folder: of each a verdict, the numbers behind it with
intervals and bounds, and rows to read. What went wrong is called by its name.

    U0  can the instruments see?            readouts against labels and null vectors
    U1  can the filter separate?            planted faults, hand-labelled completions
    U2  does healing beat plain training?   the trait stays when steering stops, at what cost, and
                                            against plain distillation at the same shift
    U3  does the loop hold its course?      no round undoes another, coherence, direction, KL spent

and beside them dose control: do enough completions survive where they were sampled? That says how
hard the vector was applied, not whether the filter can tell good from bad. With --tasks: can the
student do what the base could? One rule judges all
lines (`report/rule.py`).
"""

from pathlib import Path
from typing import Any

import polars as pl

from steerloop.report.against import LEAST
from steerloop.report.capability import LESS, tasks_verdict
from steerloop.report.course import course_verdict
from steerloop.report.estimates import share
from steerloop.report.healing import PER_TOKEN, healing_verdict
from steerloop.report.rule import EFFECT, Bound, Verdict
from steerloop.report.run import events, sight_of, states
from steerloop.report.sight import BLIND, OFF, PASS, SEES, UNSPECIFIC
from steerloop.report.text import code, inline, interval, markdown
from steerloop.runfolder import layout
from steerloop.runfolder.files import read_config, read_table, write_whole

PLANTED, OWN, LABELLED = 0.9, 0.9, 0.8  # U1: least shares: of each planted kind, base's, labelled
NAMES = {
    "no trait": f"the trait moved by less than counts: {LEAST:g} nats of digits, {PER_TOKEN:g} "
                "nats per token of another readout",
    "reversed": "the trait moved the wrong way",
    "one-sided": "its opposite became less likely, and the trait no more (against a control, "
                 "--multiples 0, compare tells what healing alone does)",
    "unsaid": "the trait is not in what the student says",
    "undone": "the trait is there under steering and gone without it",
    "undoing": "a later round took back what an earlier one had built",
    "alike": "every foundation moved alike: the answers changed, not the trait",
    "collapsed": "the answers no longer depend on the vignettes: noise, not a trait",
    "turned": "the vector, or the student, points away from where the loop set out",
    "incoherent": "coherence fell below the floor",
    "inert barrier": "hardly a row was over τ: this is plain training; lower --tau_share, or --tau",
    "filter off": "the filter was off: only empty completions were dropped",
    LESS: "a task lost more than --tasks_loss",
    "over budget": "the student spent more KL than --kl_budget",
}

GUIDE = """How to read the lines: brackets are 95 % intervals, n is how many rows they come from.

- **quality**, is it good enough: PASS where the estimate meets what is accepted
- **effect**, is it there at all: PASS only where the whole interval meets what is accepted
- both: FAIL only where the whole interval misses it; else OPEN, undecided, which is no pass
- **fact**, counted on this run, nothing to infer: it holds or it is a FAIL, and never a PASS
- a line without a verdict only reports

A verdict is FAIL by any of its lines, OPEN by any that is open or missing, and PASS else."""


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


def verdicts(run: Path, measured: list[dict[str, Any]] | None = None) -> list[Verdict]:
    """U0 to U3 and dose control of a run with at least one healed round; `measured` are its
    `states`, if known."""
    cfg = read_config(run)
    floor = next(e["floor"] for e in events(run) if e["stage"] == "start")
    measured = measured or states(run)
    healing = healing_verdict(run, cfg, measured, floor)
    course = course_verdict(run, cfg, measured, floor, healing.moved)
    judged = [sight_verdict(run), filter_verdict(run, cfg), healing, course, dose_verdict(run, cfg)]
    if cfg.get("tasks"):
        last = [e for e in measured if e["state"] == layout.HEALED][-1]
        judged.append(tasks_verdict(cfg, last, healing.moved))
    return judged


def sight_verdict(run: Path) -> Verdict:
    """U0, as it was said before the first round."""
    sight = sight_of(run)
    verdict = Verdict("U0: can the instruments see, and see the vector?",
                      word=sight.get("verdict", OFF), missing=sight.get("why", ""))
    verdict.lines = sight_lines(sight)
    if sight.get("headline"):
        verdict.reading = [f"The run is read by {sight['headline']}."]
    path = run / f"{layout.of_round(0, layout.BANDS)}.parquet"
    if path.is_file():
        verdict.reading.append("Candidate bands at one KL, by what the steered base says to "
                               "training prompts:\n\n" + markdown(band_lines(read_table(path))))
    return verdict


def band_lines(table: pl.DataFrame) -> list[dict[str, str]]:
    """Candidate bands for reading, best first."""
    return [{"blocks": ", ".join(map(str, x["blocks"])), "dose": f"{x['dose']:.3g}",
             "KL p95 (nats)": f"{x['kl']:.2f}",
             "said (nats a token)": interval([x["response"], x["low"], x["high"]], "+.3f")}
            for x in table.iter_rows(named=True)]


def sight_lines(sight: dict[str, Any]) -> list[dict[str, str]]:
    """A line a readout that U0 looked at."""
    found = Verdict("")
    for x in sight.get("readouts", []):
        value, why = "not asked", x["fault"]
        if x["response"] is not None:
            value = (f"{interval([x['response'], x['low'], x['high']], '+.3f')}; null vectors "
                     f"{x['nulls']:.3f}, p {x['p']:.2f}; the least it can show {x['power']:.3f}")
            why = why or ("" if x["specific"] else "null vectors do as much")
        word = SEES if x["response"] is None else PASS if x["specific"] else UNSPECIFIC
        found.add(f"{x['readout']}: response to the vector at c* (nats)", EFFECT, value,
                  "more than any null vector", BLIND if x["fault"] else word, why)
    return found.lines


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
