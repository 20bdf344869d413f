"""One run folder → its tables."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from steerloop import UserError
from steerloop.report.rivals import PPL, Gain, outcomes, shown
from steerloop.report.stats import compare, difference
from steerloop.report.text import interval, markdown
from steerloop.runfolder import layout
from steerloop.runfolder.events import read_events as events
from steerloop.runfolder.files import read_config, read_document, read_summary, read_table

SHOWN = ("coherence", "p_ans_any", "json_is_valid", "ppx_json")


def states(run: Path) -> list[dict[str, Any]]:
    """Every measured state in order: its `evaluate` record and what `compare` says of it."""
    cfg, axis = read_config(run), axis_of(run)
    measured = [e for e in events(run) if e["stage"] == "evaluate"]
    last = last_healed(measured) if measured else 0
    measured = [e for e in measured if not given_up(run, e, last)]
    tables = [read_table(layout.rows(run, e["round"], e["state"])) for e in measured]
    for event, table in zip(measured, tables, strict=True):
        event |= compare(table, tables[0], axis, cfg["seed"], cfg["bootstrap"])
    return measured


def given_up(run: Path, event: dict[str, Any], last: int) -> bool:
    """Whether a state beside a round before the `last` has no table any more: a run that was given
    more rounds measures it of its new last round alone, and never again."""
    beside = event["state"] not in (layout.BASE, layout.STEERED, layout.HEALED)
    path = layout.rows(run, event["round"], event["state"])
    return beside and event["round"] < last and not path.exists()


def scored_elsewhere(run: Path, folders: list[Path]) -> list[dict[str, Any]]:
    """What `steerloop.score` measured of other models on the vignettes of a run, against the base
    of the run, as states of its last round. Raises UserError where that is no comparison."""
    cfg, elsewhere = read_config(run), []
    base, last = read_table(layout.rows(run, 0, "base")), last_healed(states(run))
    for folder in folders:
        known = read_document(folder)
        if "scored" not in known:
            raise UserError(f"{folder} is not a folder of `python -m steerloop.score`")
        event = [e for e in events(folder) if e["stage"] == "evaluate"][-1]
        table = read_table(layout.rows(folder, 0, event["state"]))
        try:
            event |= compare(table, base, axis_of(run), cfg["seed"], cfg["bootstrap"])
        except ValueError as e:
            raise UserError(f"{folder}: {e}; score it anew with --like {run}") from e
        elsewhere.append(event | {"state": f"scored: {Path(known['scored']).name}",
                                  "folder": folder.name, "round": last})
    return elsewhere


def axis_of(run: Path) -> list[str]:
    """The foundations that the run should move: [down, up]."""
    return next(e["axis"] for e in events(run) if "axis" in e)


def last_by_round(run: Path, stage: str) -> dict[int, dict[str, Any]]:
    """Round (from 0) → its record of a stage."""
    return {e["round"]: e for e in events(run) if e["stage"] == stage}


def rows_of(measured: list[dict[str, Any]], axis: list[str]) -> list[dict[str, Any]]:
    """Measured states as the rows of a table; `measured` starts with base."""
    base, rows = measured[0]["measures"], []
    for event in measured:
        now = event["measures"]
        known = {*SHOWN, "ppl_mundane", *(k for k in now if k.endswith("_nats"))}
        rows.append(
            {"round": 0 if event["state"] == "base" else event["round"] + 1}
            | {"state": event["state"], "dose": event["dose"]}
            | {f"Δ{f} (nats)": interval(event["shift"][f]["nats"]) for f in axis}
            | {k: interval(event[k]) for k in ("score", "flips", "leaves")}
            | {k: now[k] for k in SHOWN}
            | {"mundane ppl ×": now["ppl_mundane"] / base["ppl_mundane"]}
            | {k: now[k] for k in now if k not in known}
        )
    return rows


def round_table(run: Path, round: int, measured: list[dict[str, Any]]) -> str:
    """One round (counted from 0) in a few lines that fit a terminal: how it was sampled, healed and
    what it spent, then base → steered → healed."""
    sample, heal, drift = (
        last_by_round(run, x).get(round, {}) for x in ("sample", "heal", "drift"))
    said = [
        ("c* {:.3g}, κ {:.2f}, cos(v, v₀) {:.2f}", sample, ("c_star", "kappa", "cos_first")),
        ("{:.0%} of rows over τ {:.3g}", heal, ("active", "tau")),
        ("KL to base {:.4f} nats, cos(shift, v) {:.2f}", drift, ("kl_base", "cos_teacher")),
    ]
    line = "; ".join(text.format(*(of[k] for k in keys)) for text, of, keys in said if of)
    axis = axis_of(run)
    here = [e for e in measured if e["state"] == "base" or e["round"] == round]
    narrow = {"round", "score", "flips", "leaves", *SHOWN[1:], "top1", "overlap"}
    rows = [{k.replace("mundane ", "").replace("_", " "): v for k, v in row.items()
             if k not in narrow} for row in rows_of(here, axis)]
    return f"{line}\n{markdown(rows)}"


def run_table(run: Path) -> str:
    """Every measured state of a run, in order, the student against its rivals, and of a finished
    run its verdicts."""
    measured = states(run)
    parts = [markdown(rows_of(measured, axis_of(run))), rivals_table(run)]
    if summary := read_summary(run):
        parts += [markdown(summary.get("verdicts", [])), *summary.get("named", [])]
    return "\n\n".join(parts)


def last_healed(measured: list[dict[str, Any]]) -> int:
    """The last round that was healed; of a run that was cut short it need not be the last one."""
    healed = [e["round"] for e in measured if e["state"] == "healed"]
    return max(healed, default=measured[-1]["round"])


def last_round(measured: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The states of that round by name: the student's, and whatever was measured beside it."""
    return {e["state"]: e for e in measured if e["round"] == last_healed(measured)}


def gains(run: Path, measured: list[dict[str, Any]]) -> Gain:
    """What a state of the last round is better by than another, paired by vignette (coherence) or
    by item (perplexity of ordinary text over base's, legality), with its interval."""
    cfg, last = read_config(run), last_healed(measured)
    base = measured[0]["measures"]["ppl_mundane"]

    def values(state: str, name: str) -> np.ndarray:
        if name == "coherence":
            rows = read_table(layout.rows(run, last, state)).sort("vignette")
            terms = rows.select("p_ans_any", "json_is_valid").to_numpy()
            return terms[:, terms.mean(0).argmin()]
        items = read_table(layout.items(run, last, state))
        measure = "mundane_nll" if name == PPL else name
        return items.filter(measure=measure).sort("item")["value"].to_numpy()

    def gain(ours: str, theirs: str, name: str) -> list[float]:
        sign = -1 if name == PPL else 1
        steps = sign * (values(ours, name) - values(theirs, name))
        gained = difference(steps, cfg["seed"], cfg["bootstrap"])
        if name != PPL:
            return gained
        ratio = math.exp(values(ours, name).mean()) / base
        return [ratio * math.expm1(x) for x in gained]

    return gain


def beaten(run: Path, measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The student of the last round against its rivals (see `outcomes`). Plain steering is with the
    vector of the first round: its c*, times the largest multiple that was sampled, is the most
    that is known of it."""
    base, first = measured[0]["measures"], last_by_round(run, "sample").get(0, {"c_star": 0.0})
    reach = first["c_star"] * max(read_config(run)["multiples"])
    return outcomes(last_round(measured), base, axis_of(run)[0], gains(run, measured), reach)


def rivals_table(run: Path) -> str:
    """Student against rivals at the same shift."""
    return markdown(shown(beaten(run, states(run))))
