"""One run folder → its tables."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from steerloop import UserError
from steerloop.report.against import against
from steerloop.report.capability import asked, beside, cells, changes, of_states
from steerloop.report.coherence import side_by_side
from steerloop.report.rivals import COSTS, PPL, SHIFTS, Gain, outcomes, pairs, same, shown
from steerloop.report.sight import OFF
from steerloop.report.stats import difference
from steerloop.report.text import inline, interval, markdown
from steerloop.report.trait import DIGITS, Frames, unit
from steerloop.runfolder import layout
from steerloop.runfolder.events import read_events as events
from steerloop.runfolder.files import read_config, read_document, read_summary, read_table
from steerloop.texts.parts import steering

SHOWN = ("coherence", "p_ans_any", "json_is_valid", "ppx_json")


def states(run: Path) -> list[dict[str, Any]]:
    """Every measured state in order: its `evaluate` record and what `compare` says of it."""
    cfg, axis, headline = read_config(run), axis_of(run), headline_of(run)
    measured = [e for e in events(run) if e["stage"] == "evaluate"]
    last = last_healed(measured) if measured else 0
    measured = [e for e in measured if not given_up(run, e, last)]
    tables = [frames_of(run, e["round"], e["state"]) for e in measured]
    for event, frames in zip(measured, tables, strict=True):
        event |= against(frames, tables[0], axis, headline, cfg)
    of_states(run, measured, cfg)
    return measured


def frames_of(run: Path, round: int, state: str) -> Frames:
    """The tables of a measured state; a run of an older version has no answers."""
    said = layout.said(run, round, state)
    return [read_table(layout.rows(run, round, state)), read_table(layout.items(run, round, state)),
            read_table(said) if said.exists() else pl.DataFrame()]


def sight_of(run: Path) -> dict[str, Any]:
    """What gate U0 said (see sight.py), {} before it did. Older versions had the digits alone, and
    did not ask."""
    known = [e for e in events(run) if e["stage"] in (layout.U0, "evaluate")]
    asked = [e for e in known if e["stage"] == layout.U0]
    if asked or not known:
        return asked[-1] if asked else {}
    older = not layout.said(run, 0, layout.BASE).exists()
    return {"verdict": OFF, "headline": DIGITS, "why": "", "readouts": []} if older else {}


def headline_of(run: Path) -> str:
    """The readout that a run is read by, '' where nothing is measured."""
    return str(sight_of(run).get("headline", ""))


def word_of(run: Path) -> str:
    """What stands in the place of a number where there is no headline."""
    return str(sight_of(run).get("verdict", "not known yet"))


def steered_by(run: Path) -> str:
    """What steers a run, in words, where it is not the vector of its own pack alone; else ''."""
    said = steering(read_config(run))
    return f"steered by {said}" if said else ""


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
    base, last = frames_of(run, 0, "base"), last_healed(states(run))
    for folder in folders:
        known = read_document(folder)
        if "scored" not in known:
            raise UserError(f"{folder} is not a folder of `python -m steerloop.score`")
        event = [e for e in events(folder) if e["stage"] == "evaluate"][-1]
        frames = frames_of(folder, 0, event["state"])
        came = asked(folder, 0, event["state"])
        try:
            event |= against(frames, base, axis_of(run), headline_of(run), cfg)
            if came is not None and (was := asked(run, 0, layout.BASE)) is not None:
                event["tasks"] = changes(came, was, cfg)
        except ValueError as e:
            raise UserError(f"{folder}: {e}; score it anew with --like {run}") from e
        elsewhere.append(event | {"state": f"scored: {Path(known['scored']).name}",
                                  "folder": folder.name, "round": last})
    return elsewhere


def axis_of(run: Path) -> list[str]:
    """The poles that the run should move: [down, up]."""
    return next(e["axis"] for e in events(run) if "axis" in e)


def last_by_round(run: Path, stage: str) -> dict[int, dict[str, Any]]:
    """Round (from 0) → its record of a stage."""
    return {e["round"]: e for e in events(run) if e["stage"] == stage}


def rows_of(run: Path, measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Measured states of a run as the rows of a table; `measured` starts with base. What U0 said
    stands where there is no headline."""
    base, rows = measured[0]["measures"], []
    counted, word = unit(headline_of(run)), word_of(run)
    for event in measured:
        now = event["measures"]
        known = {*SHOWN, "ppl_mundane", *(k for k in now if k.endswith("_nats"))}
        moved = {f"{k} ({counted})": interval(x) for k, x in event["moved"].items()}
        rows.append(
            {"round": 0 if event["state"] == "base" else event["round"] + 1}
            | {"state": event["state"], "dose": event["dose"]}
            | (moved or {"trait": word})
            | {k: interval(event[k]) for k in ("score", "flips", "leaves") if event.get(k)}
            | {k: now[k] for k in SHOWN if k in now}
            | {"mundane ppl ×": now["ppl_mundane"] / base["ppl_mundane"]}
            | {k: now[k] for k in now if k not in known}
            | cells(measured, event)
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
    line = "; ".join(x for x in (line, steered_by(run)) if x)
    here = [e for e in measured if e["state"] == "base" or e["round"] == round]
    narrow = {"round", "score", "flips", "leaves", *SHOWN[1:], "top1", "overlap"}
    rows = [{k.replace("mundane ", "").replace("_", " "): v for k, v in row.items()
             if k not in narrow} for row in rows_of(run, here)]
    return f"{line}\n{markdown(rows)}"


def run_table(run: Path) -> str:
    """Every measured state of a run, in order, the student against its rivals, and of a finished
    run its verdicts."""
    measured = states(run)
    parts = [markdown(rows_of(run, measured)), rivals_table(run)]
    if why := sight_of(run).get("why"):
        parts.insert(0, f"{word_of(run)}: {inline(why)}")
    if said := steered_by(run):
        parts.insert(0, inline(said))
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
    own = frames_of(run, 0, layout.BASE)

    def values(state: str, name: str) -> np.ndarray:
        items = read_table(layout.items(run, last, state))
        measure = "mundane_nll" if name == PPL else name
        return items.filter(measure=measure).sort("item")["value"].to_numpy()

    def gain(ours: str, theirs: str, name: str) -> list[float]:
        if name == "coherence":
            pairs = [(frames_of(run, last, x), own) for x in (ours, theirs)]
            (mine, was), (other, _) = side_by_side(pairs, cfg["ppl_factor"])
            return difference((mine - other) / was.mean(), cfg["seed"], cfg["bootstrap"])
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
    near = same(headline_of(run))
    by_name = last_round(measured)
    rows = outcomes(by_name, base, gains(run, measured), reach, near)
    for row in rows:  # of many tasks one differs by chance: they are shown, and decide nothing
        if row.keys() > {SHIFTS, COSTS.format(PPL)}:
            found = beside(run, last_healed(measured), pairs(by_name)[row["rival"]],
                                      read_config(run))
            row |= {COSTS.format(k): x for k, x in found.items()}
    return rows


def rivals_table(run: Path) -> str:
    """Student against rivals at the same shift."""
    return markdown(shown(beaten(run, states(run))))
