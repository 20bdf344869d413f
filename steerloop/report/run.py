"""One run folder → its tables and its summary.json."""

import json
from pathlib import Path
from typing import Any

import polars as pl

from steerloop.kernels.files import write_whole
from steerloop.report.ledger import update_ledger
from steerloop.report.stats import shifts
from steerloop.report.text import interval, markdown

SHOWN = ("coherence", "p_ans_any", "json_is_valid", "ppx_json")
ARM = (
    "model", "barrier", "agg", "ref", "lam", "lam_pow", "tau", "lr", "epochs", "filter",
    "multiples", "rounds", "seed", "split",
)  # fmt: skip


def states(run: Path) -> list[dict[str, Any]]:
    """Every measured state in order: its `evaluate` record, with `shift` against base added."""
    cfg = json.loads((run / "config.json").read_text())["config"]
    found = [e for e in events(run) if e["stage"] == "evaluate"]
    tables = [pl.read_parquet(run / f"rounds/{e['round']:02d}/{e['state']}.eval.parquet")
              for e in found]
    for event, table in zip(found, tables, strict=True):
        event["shift"] = shifts(table, tables[0], cfg["seed"], cfg["bootstrap"])
    return found


def events(run: Path) -> list[dict[str, Any]]:
    """The records of a run, in order."""
    return [json.loads(x) for x in (run / "events.jsonl").read_text().splitlines()]


def _table(run: Path, found: list[dict[str, Any]], base: dict[str, float]) -> str:
    axis = next(e["axis"] for e in events(run) if e["stage"] == "start")
    rows = []
    for event in found:
        now = event["measures"]
        known = {*SHOWN, "ppl_mundane", *(k for k in now if k.endswith("_nats"))}
        rows.append(
            {"round": 0 if event["state"] == "base" else event["round"] + 1}
            | {"state": event["state"], "dose": event["dose"]}
            | {f"Δ{f} (nats)": interval(event["shift"][f]["nats"]) for f in axis}
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
    """Every measured state of a run, in order."""
    found = states(run)
    return _table(run, found, found[0]["measures"])


def summarise(run: Path) -> dict[str, Any]:
    """What summary.json says: the arm, base, every healed round, the best one (the largest shift
    down above the coherence floor), and plain steering at the shift of the last round."""
    cfg = json.loads((run / "config.json").read_text())["config"]
    start = next(e for e in events(run) if e["stage"] == "start")
    found = states(run)
    healed = [e for e in found if e["state"] == "healed"]
    coherent = [e for e in healed if e["measures"]["coherence"] >= start["floor"]]
    best = min(coherent, key=lambda e: e["shift"][start["axis"][0]]["nats"][0], default=None)
    return {
        "schema": 1,
        "run": run.name,
        "stopped_early": len(healed) < cfg["rounds"],
        "axis": start["axis"],
        "coherence_floor": start["floor"],
        "arm": {k: cfg[k] for k in ARM},
        "base": found[0]["measures"],
        "healed": healed,
        "best_round": None if best is None else best["round"],
        "matched": next((e for e in found if e["state"] == "matched"), None),
    }


def finish(run: Path) -> None:
    """Write summary.json and bring the ledger beside the run folder up to date."""
    text = json.dumps(summarise(run), indent=1, allow_nan=False)
    write_whole(run / "summary.json", lambda path: path.write_text(text))
    update_ledger(run.parent)
