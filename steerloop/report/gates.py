"""The three uncertainty gates, judged from a run folder: each a verdict, the numbers behind it with
intervals and bounds, and rows to read. What went wrong is called by its name.

    U1  can the filter separate?            planted faults, hand-labelled completions, survival
    U2  does healing beat plain training?   the trait stays when steering stops, at what cost, and
                                            against plain distillation at the same shift
    U3  does the loop hold its course?      no round undoes another, coherence, direction, KL spent
"""

import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from steerloop.report.run import axis_of, beaten, events, last_round, states
from steerloop.report.stats import LEAST, compare, profile, wilson
from steerloop.report.text import interval, markdown
from steerloop.report.verdicts import shown
from steerloop.runfolder.files import write_whole
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
    "incoherent": "coherence fell below the absolute floor",
    "inert barrier": "the barrier was hardly ever active: this is plain training; lower --tau",
    "filter off": "the filter was off: only empty completions were dropped",
    "over budget": "the student spent more KL than --kl_budget",
}


@dataclass
class Gate:
    """A question, its lines of evidence, and what in the run has a name of its own."""

    title: str
    lines: list[dict[str, str]] = field(default_factory=list)
    named: list[str] = field(default_factory=list)
    reading: list[str] = field(default_factory=list)
    missing: str = ""  # what would have to be run for a verdict

    def line(self, what: str, value: str, bound: str, ok: bool | None, name: str = "") -> None:
        """One number; `ok` None only reports, and a failed one gives the run its `name`."""
        said = "" if ok is None else "PASS" if ok else "FAIL"
        self.lines.append({"number": what, "value": value, "accepted": bound, "": said})
        if ok is False and name:
            self.named.append(name)

    @property
    def verdict(self) -> str:
        """FAIL when a line fails, OPEN when evidence is missing, PASS else."""
        if any(x[""] == "FAIL" for x in self.lines):
            return "FAIL"
        return "OPEN" if self.missing else "PASS"


def share(hits: pl.Series, bound: float) -> tuple[str, str, bool | None]:
    """A share with its Wilson interval, its bound, and whether it is met; of nothing, nothing."""
    if not len(hits):
        return "of none", f"≥ {bound:g}", None
    found = wilson(hits.cast(pl.Float64).to_numpy())
    text = "{:.2f} [{:.2f}, {:.2f}]".format(*found) + f", n {len(hits)}"
    return text, f"≥ {bound:g}", found[0] >= bound


def quoted(rows: pl.DataFrame, *columns: str) -> str:
    """Completions in full, as indented code: nothing in them is markup to any renderer."""
    return "\n\n".join(
        ", ".join(f"{k} {x:.3g}" if isinstance(x, float) else f"{k} {x}"
                  for k, x in row.items() if k in columns and x is not None)
        + "\n\n" + "\n".join(f"    {x}" for k in ("prompt", "text")
                             for x in (row[k].splitlines() or ["(nothing)"]))
        for row in rows.iter_rows(named=True))


def filter_gate(run: Path, cfg: dict[str, Any]) -> Gate:
    """U1."""
    gate = Gate("U1: can the filter separate?")
    audit = pl.read_parquet(run / "planted.parquet")
    faults = audit.filter(source="planted")
    for (kind,), rows in faults.group_by("kind", maintain_order=True):
        gate.line(f"planted, {kind}: dropped", *share(~rows["keep"], PLANTED))
    gate.line("the untouched base's own answers: kept",
              *share(audit.filter(source="base")["keep"], OWN))
    labelled = audit.filter(source="labelled")
    broken, dropped = labelled.filter(~pl.col("coherent")), labelled.filter(~pl.col("keep"))
    if len(labelled):
        gate.line("labelled broken: dropped (recall)", *share(~broken["keep"], LABELLED))
        gate.line("dropped: labelled broken (precision)", *share(~dropped["coherent"], LABELLED))
    tables = {path.parent.name: pl.read_parquet(path)
              for path in sorted(run.glob("rounds/*/completions.parquet"))}
    for event in (e for e in events(run) if e["stage"] == "sample"):
        rows = tables[f"{event['round']:02d}"].filter((pl.col("kappa") / event["kappa"] - 1).abs()
                                                      < 1e-6)
        gate.line(f"round {event['round'] + 1}: survival at the doses sampled, κ "
                  f"{event['kappa']:.2f}", *share(rows["keep"], cfg["survival"]))
    if not cfg["filter"]:
        gate.line("filter in this run", "off", "on", False, "filter off")

    kinds = faults.group_by("kind").agg(
        dropped=(~pl.col("keep")).mean(),
        reasons=pl.col("drop_reason").drop_nulls().unique().sort().str.join(", "))
    doses = pl.concat([t.with_columns(round=pl.lit(int(k) + 1)) for k, t in tables.items()],
                      how="diagonal_relaxed")
    by_dose = doses.group_by("round", "dose").agg(
        n=pl.len(), kept=pl.mean("keep"), ppl=pl.median("ppl"), repeat=pl.mean("repeat"),
        echo=pl.mean("echo"),
        reasons=pl.col("drop_reason").drop_nulls().unique().sort().str.join(", "),
    ).sort("round", "dose")
    wrong = labelled.filter(pl.col("keep") != pl.col("coherent"))
    worst = doses.filter("keep").sort("ppl", descending=True).head(3)
    firsts = doses.filter(~pl.col("keep")).unique("drop_reason", keep="first", maintain_order=True)
    gate.reading = [
        "Planted faults by kind:\n\n" + markdown(kinds.sort("kind").to_dicts()),
        "By round and dose (ppl: median over completions of the worst quarter's perplexity):\n\n"
        + markdown(by_dose.to_dicts()),
        "Kept, the most improbable ones:\n\n" + quoted(worst, "round", "dose", "ppl"),
        "Dropped, the first of each reason:\n\n"
        + quoted(firsts, "round", "dose", "ppl", "drop_reason"),
        f"Labelled by hand and misjudged, {len(wrong)} of {len(labelled)}:\n\n"
        + quoted(wrong.head(8), "coherent", "kind", "drop_reason", "ppl"),
    ]
    return gate


def heal_gate(run: Path, cfg: dict[str, Any], found: list[dict[str, Any]], floor: float) -> Gate:
    """U2, of the round that was healed last."""
    gate, (down, _), last = Gate("U2: does healing beat plain training?"), axis_of(run), (
        last_round(found))
    healed, steered = last["healed"], last["steered"]
    shift = healed["shift"][down]["nats"]
    under = steered["shift"][down]["nats"]
    gone = under[0] <= -LEAST and shift[0] / under[0] < RETAIN
    gate.line(f"Δ{down} without steering (nats)", interval(shift), f"≤ −{LEAST:g}",
              shift[0] <= -LEAST, "reversed" if shift[0] >= LEAST else "" if gone else "no trait")
    if under[0] <= -LEAST:
        gate.line("retain: shift healed / shift steered", f"{shift[0] / under[0]:.2f}, "
                  f"steered {interval(under)}", f"≥ {RETAIN:g}", not gone,
                  "undone" if shift[0] < LEAST else "")
    others = [f for f in FOUNDATIONS[:-1] if f not in axis_of(run)]
    moves = {f: healed["shift"][f]["nats"] for f in others}
    most = max(others, key=lambda f: abs(moves[f][0]))
    gate.line(f"surgical: no other moral foundation moved as far; {most} most",
              interval(moves[most]), f"size < {abs(shift[0]):.2f}",
              abs(moves[most][0]) < abs(shift[0]))
    if abs(shift[0]) >= LEAST:
        alike = float(np.mean([x[0] for x in moves.values()])) / shift[0]
        gate.line("mean shift of the other moral foundations / that of the target", f"{alike:.2f}",
                  f"< {ALIKE:g}", alike < ALIKE, "alike")
    coherence = healed["measures"]["coherence"]
    gate.line("coherence", f"{coherence:.3f}", f"≥ {floor:.3f}", coherence >= floor, "incoherent")
    gate.line("coherence per nat of trait", cost(healed), "", None)
    heals = [e for e in events(run) if e["stage"] == "heal"]
    if cfg["barrier"] in ("kl_rev", "kl_fwd"):
        active = [e["active"] for e in heals]
        gate.line("rows over τ while healing, by round",
                  ", ".join(f"{e['active']:.3f} (τ {e['tau']:.3g}, operating KL "
                            f"{e['operating_kl']:.3g})" for e in heals),
                  f"≥ {FIRES:g} in one", max(active) >= FIRES,
                  "inert barrier")
    gate.line("barrier's gradient / NLL's, by round", ", ".join(
        "not measured" if e["pull"] is None else f"{e['pull']:.2f}" for e in heals), "", None)
    rows = {x["rival"]: x for x in beaten(run, found)}
    if cfg["barrier"] == "nll":
        gate.missing = "this run is plain training: it has nothing to beat"
    elif "nll" not in rows:
        gate.missing = "plain distillation was not measured: run with --baselines"
    else:
        said = rows["nll"]["beaten"]
        gate.line("plain distillation of the same data, at the same shift, is beaten", said, "yes",
                  None if said == "no match" else said == "yes")
        gate.line("its coherence per nat of trait", cost(last["nll"]), "", None)
        if said == "no match":
            gate.missing = "student and plain distillation did not reach one shift"
    gate.reading = ["Student and rivals at the same shift:\n\n"
                    + markdown(shown(list(rows.values())))]
    return gate


def cost(event: dict[str, Any]) -> str:
    """Coherence gained or lost per nat, as text."""
    if event["slope"] is None:
        return f"not defined: the trait moved by less than {LEAST:g} nats"
    return "{:+.4f} [{:+.4f}, {:+.4f}]".format(*event["slope"])


def information(rows: pl.DataFrame) -> float:
    """What an answer says about its vignette: mutual information of the two, nats."""
    def entropy(p: np.ndarray) -> np.ndarray:
        return -(p * np.log(np.maximum(p, 1e-30))).sum(-1)

    p = profile(rows)
    return float((entropy(p.mean(0, keepdims=True)) - entropy(p)).mean())


def course_gate(run: Path, cfg: dict[str, Any], found: list[dict[str, Any]], floor: float) -> Gate:
    """U3."""
    gate, axis = Gate("U3: does the loop hold its course?"), axis_of(run)
    healed = [e for e in found if e["state"] == "healed"]
    tables = [pl.read_parquet(run / "rounds/00/base.eval.parquet").sort("vignette")]
    tables += [pl.read_parquet(run / f"rounds/{e['round']:02d}/healed.eval.parquet").sort(
        "vignette") for e in healed]
    for event, (before, now) in zip(healed, pairwise(tables), strict=True):
        step = compare(now, before, axis, cfg["seed"], cfg["bootstrap"])["shift"][axis[0]]["nats"]
        undone = step[0] > SLACK and step[1] > 0
        gate.line(f"round {event['round'] + 1}: Δ{axis[0]} against the round before (nats)",
                  interval(step), f"not above {SLACK:g}", not undone,
                  "undoing" if event["round"] else "reversed")
    worst = min(e["measures"]["coherence"] for e in healed)
    gate.line("least coherence of any round", f"{worst:.3f}", f"≥ {floor:.3f}", worst >= floor,
              "incoherent")
    told = information(tables[-1]) / max(information(tables[0]), 1e-9)
    picks = [profile(t).argmax(-1) for t in (tables[0], tables[-1])]
    rest = picks[0] != FOUNDATIONS.index(axis[0])
    strayed = float((picks[0] != picks[1])[rest].mean()) if rest.any() else 0.0
    gate.line("what the answers say about their vignettes, over base's", f"{told:.2f}",
              f"≥ {INFORMED:g}", told >= INFORMED, "collapsed")
    gate.line(f"answers that changed where base did not choose {axis[0]}", f"{strayed:.2f}",
              f"≤ {1 - INFORMED:g}", strayed <= 1 - INFORMED, "collapsed")
    samples = [e for e in events(run) if e["stage"] == "sample"]
    spent = [e for e in events(run) if e["stage"] == "drift"]
    gate.line("cos(v_r, v_0), by round", ", ".join(f"{e['cos_first']:.2f}" for e in samples),
              "> 0", min(e["cos_first"] for e in samples) > 0)
    gate.line("cos(shift of the student, vector), by round",
              ", ".join(f"{e['cos_teacher']:.2f}" for e in spent), "> 0",
              min(e["cos_teacher"] for e in spent) > 0)
    budget = cfg["kl_budget"]
    most = max(e["kl_base"] for e in spent)
    gate.line("KL to base per token, the most after any round (nats)", f"{most:.4f}",
              f"≤ {budget:g}" if budget else "no budget set", most <= budget if budget else None,
              "over budget")
    gate.reading = ["KL ledger:\n\n" + markdown([
        {"round": e["round"] + 1, "KL to base (nats per token)": e["kl_base"],
         "of it this round": e["kl_base"] - (spent[i - 1]["kl_base"] if i else 0.0),
         "left of the budget": budget - e["kl_base"] if budget else "no budget",
         "κ": s["kappa"], "c*": s["c_star"]}
        for i, (e, s) in enumerate(zip(spent, samples, strict=False))])]
    return gate


def gates(run: Path, found: list[dict[str, Any]] | None = None) -> list[Gate]:
    """U1, U2, U3 of a run with at least one healed round; `found` are its `states`, if known."""
    cfg = json.loads((run / "config.json").read_text())["config"]
    floor = next(e["floor"] for e in events(run) if e["stage"] == "start")
    found = found or states(run)
    return [filter_gate(run, cfg), heal_gate(run, cfg, found, floor),
            course_gate(run, cfg, found, floor)]


def named(found: list[Gate]) -> list[str]:
    """The names a run goes by, each once, in the order of NAMES."""
    said = {x for gate in found for x in gate.named}
    return [x for x in NAMES if x in said]


def heads(found: list[Gate]) -> list[dict[str, str]]:
    """One line a gate: its verdict and what it rests on."""
    return [{"gate": g.title, "verdict": g.verdict, "because": "; ".join(
        [x["number"] for x in g.lines if x[""] == "FAIL"] + [g.missing] * bool(g.missing))}
        for g in found]


def write_gates(run: Path, measured: list[dict[str, Any]] | None = None) -> list[Gate]:
    """Judge a run and write its gates.md; `measured` are its `states`, if known."""
    found = gates(run, measured)
    names = [f"- **{x}**: {NAMES[x]}" for x in named(found)] or ["Nothing that has a name."]
    parts = [f"# Gates of {run.name}", markdown(heads(found)), "What this run is:",
             "\n".join(names)]
    for gate in found:
        parts += [f"## {gate.title} {gate.verdict}", markdown(gate.lines), *gate.reading]
    text = "\n\n".join(parts) + "\n"
    write_whole(run / "gates.md", lambda path: path.write_text(text))
    return found
