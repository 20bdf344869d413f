"""One run folder → its tables and its summary.json."""

import json
from pathlib import Path
from typing import Any

import polars as pl

from steerloop.kernels.files import write_whole
from steerloop.report.ledger import update_ledger
from steerloop.report.stats import compare
from steerloop.report.text import interval, markdown
from steerloop.report.verdicts import verdicts

SHOWN = ("coherence", "p_ans_any", "json_is_valid", "ppx_json")
ARM = (
    "model", "barrier", "agg", "ref", "lam", "lam_pow", "tau", "lr", "epochs", "filter",
    "multiples", "rounds", "seed", "split",
)  # fmt: skip


def states(run: Path) -> list[dict[str, Any]]:
    """Every measured state in order: its `evaluate` record and what `compare` says of it."""
    cfg = json.loads((run / "config.json").read_text())["config"]
    found = [e for e in events(run) if e["stage"] == "evaluate"]
    axis = axis_of(run)
    tables = [pl.read_parquet(run / f"rounds/{e['round']:02d}/{e['state']}.eval.parquet")
              for e in found]
    for event, table in zip(found, tables, strict=True):
        event |= compare(table, tables[0], axis, cfg["seed"], cfg["bootstrap"])
    return found


def axis_of(run: Path) -> list[str]:
    """The foundations that the run should move: [down, up]."""
    return next(e["axis"] for e in events(run) if "axis" in e)


def events(run: Path) -> list[dict[str, Any]]:
    """The records of a run, in order."""
    return [json.loads(x) for x in (run / "events.jsonl").read_text().splitlines()]


def _table(run: Path, found: list[dict[str, Any]], base: dict[str, float]) -> str:
    axis = axis_of(run)
    rows = []
    for event in found:
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
    return markdown(rows)


def round_table(run: Path, round: int) -> str:
    """Base → steered → healed of one round (counted from 0)."""
    found = states(run)
    here = [e for e in found if e["state"] == "base" or e["round"] == round]
    return _table(run, here, found[0]["measures"])


def run_table(run: Path) -> str:
    """Every measured state of a run, in order, and the student against its rivals."""
    found = states(run)
    return f"{_table(run, found, found[0]['measures'])}\n\n{rivals_table(run)}"


def last_round(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The states measured last, by name: the student's, and whatever was measured beside it."""
    return {e["state"]: e for e in found if e["round"] == found[-1]["round"]}


def rivals_table(run: Path) -> str:
    """Student against rivals at the same shift."""
    found, axis = states(run), axis_of(run)
    rows = verdicts(last_round(found), found[0]["measures"], axis[0])
    return markdown([{k: " ".join(f"{x:.3f}" for x in v) if isinstance(v, tuple) else v
                      for k, v in row.items()} for row in rows])


def best_round(healed: list[dict[str, Any]], floor: float, down: str) -> int | None:
    """The round to ship; None when none is above the coherence floor.

    Of the rounds above it, those on the Pareto front are compared: no other has both a larger
    shift down and at least their coherence. The one with the highest score wins, the earlier one
    of two equals.
    """
    def point(event: dict[str, Any]) -> tuple[float, float]:
        return event["shift"][down]["nats"][0], event["measures"]["coherence"]

    sound = [e for e in healed if e["measures"]["coherence"] >= floor]
    front = [e for e in sound
             if not any(point(o)[0] < point(e)[0] and point(o)[1] >= point(e)[1] for o in sound)]
    return max(front, key=lambda e: e["score"][0])["round"] if front else None


def summarise(run: Path) -> dict[str, Any]:
    """What summary.json says: the arm, base, every healed round, the best one (see `best_round`),
    and plain steering at the shift of the last round."""
    cfg = json.loads((run / "config.json").read_text())["config"]
    start = next(e for e in events(run) if e["stage"] == "start")
    found, axis = states(run), axis_of(run)
    healed = [e for e in found if e["state"] == "healed"]
    best = best_round(healed, start["floor"], axis[0])
    return {
        "schema": 1,
        "run": run.name,
        "stopped_early": len(healed) < cfg["rounds"],
        "axis": axis,
        "coherence_floor": start["floor"],
        "arm": {k: cfg[k] for k in ARM},
        "base": found[0]["measures"],
        "healed": healed,
        "best_round": best,
        "best_adapter": None if best is None else f"rounds/{best:02d}/adapter.safetensors",
        "matched": next((e for e in found if e["state"] == "matched"), None),
        "rivals": verdicts(last_round(found), found[0]["measures"], axis[0]),
    }


def finish(run: Path) -> None:
    """Write summary.json and bring the ledger beside the run folder up to date."""
    text = json.dumps(summarise(run), indent=1, allow_nan=False)
    write_whole(run / "summary.json", lambda path: path.write_text(text))
    update_ledger(run.parent)
