"""The ledger: one row per finished run, built from the summaries under a runs folder."""

import json
from pathlib import Path

import polars as pl

from steerloop.kernels.files import write_whole
from steerloop.report.text import interval, markdown

ARM = ["model", "barrier", "ref", "lam", "tau", "filter", "healed_rounds", "seed"]


def ledger(root: Path) -> pl.DataFrame:
    """One row per finished run under `root`: its arm and the measures of its last healed round."""
    rows = []
    for path in sorted(root.glob("*/summary.json")):
        summary = json.loads(path.read_text())
        last = summary["healed"][-1]
        arm = {k: str(v) if isinstance(v, list) else v for k, v in summary["arm"].items()}
        row = {"run": summary["run"], **arm, "healed_rounds": len(summary["healed"])}
        for name, f in zip(("down", "up"), summary["axis"], strict=True):
            row[name], row[f"{name}_low"], row[f"{name}_high"] = last["shift"][f]["nats"]
        ratio = last["measures"]["ppl_mundane"] / summary["base"]["ppl_mundane"]
        rows.append(row | last["measures"] | {"ppl_ratio": ratio})
    return pl.DataFrame(rows, infer_schema_length=None)


def update_ledger(root: Path) -> None:
    """Rewrite `root`/ledger.parquet. Built anew each time from all summaries, so that runs which
    finish together cannot lose each other's row."""
    write_whole(root / "ledger.parquet", ledger(root).write_parquet)


def ledger_table(root: Path) -> str:
    """The ledger for reading, grouped by arm."""
    found = ledger(root)
    if found.is_empty():
        return f"no finished run under {root}: start one with `python -m steerloop.train`"
    rows = [
        {k: row[k] for k in ARM}
        | {
            f"Δ{x} (nats)": interval([row[x], row[f"{x}_low"], row[f"{x}_high"]])
            for x in ("down", "up")
        }
        | {k: row[k] for k in ("coherence", "ppl_ratio", "run")}
        for row in found.sort(ARM).iter_rows(named=True)
    ]
    return markdown(rows)
