"""The ledger: one row per finished run, built from the summaries under a runs folder."""

import json
from pathlib import Path
from typing import Any

import polars as pl

from steerloop.report.stats import over_seeds
from steerloop.report.text import inline, interval, markdown
from steerloop.runfolder.files import read_summary, write_whole
from steerloop.runfolder.layout import LEDGER, summaries

LEGAL = ("opening_mass", "sentence_validity")
ARM = (  # what tells runs apart, beside their axis
    "model", "barrier", "agg", "ref", "lam", "lam_pow", "tau", "tau_share", "kl_budget", "lr",
    "epochs", "filter", "multiples", "rounds", "seed", "split",
)  # fmt: skip


def ledger(root: Path) -> pl.DataFrame:
    """One row per finished run under `root`: its settings, the measures of its last healed round,
    its best round, its verdicts. `arm` is all settings but the seed, as text."""
    rows = []
    for path in summaries(root):
        summary = read_summary(path.parent)
        if not summary["ended"]:  # written by `report` of a run that was cut short
            continue
        last = summary["healed"][-1]
        chosen, settings = summary["arm"], {"axis": " → ".join(summary["axis"])}
        settings |= {k: str(chosen[k]) if isinstance(chosen[k], list) else chosen[k]
                     for k in ARM if k in chosen}
        arm = json.dumps({k: v for k, v in settings.items() if k != "seed"})
        row = {"run": summary["run"], **settings, "arm": arm,
               "healed_rounds": len(summary["healed"]), "best_round": summary["best_round"]}
        for name, f in zip(("down", "up"), summary["axis"], strict=True):
            row[name], row[f"{name}_low"], row[f"{name}_high"] = last["shift"][f]["nats"]
        ratio = last["measures"]["ppl_mundane"] / summary["base"]["ppl_mundane"]
        said = {x["question"].split(":")[0]: x["verdict"] for x in summary.get("verdicts", [])}
        rows.append(row | last["measures"] | {"ppl_ratio": ratio} | said)
    return pl.DataFrame(rows, infer_schema_length=None)


def update_ledger(root: Path) -> None:
    """Rewrite the ledger under `root`. Built anew each time from all summaries, so that runs which
    finish together cannot lose each other's row."""
    write_whole(root / LEDGER, ledger(root).write_parquet)


def said(settings: dict[str, Any]) -> str:
    """Settings as text."""
    return inline(", ".join(f"{k} {v}" for k, v in settings.items()))


def table_of(rows: pl.DataFrame) -> str:
    """The runs of one arm by seed, and where several seeds ran, their mean with its interval (of
    each seed the last run)."""
    legal = [k for k in LEGAL if k in rows.columns and rows[k].null_count() == 0]
    plain = ["coherence", "ppl_ratio", *legal]
    shown = [
        {"seed": str(x["seed"]), "rounds": str(x["healed_rounds"]),
         "best": "none" if x["best_round"] is None else str(x["best_round"] + 1)}
        | {f"Δ{k} (nats)": interval([x[k], x[f"{k}_low"], x[f"{k}_high"]]) for k in ("down", "up")}
        | {k.replace("_", " "): f"{x[k]:.3f}" for k in plain}
        | {k: x.get(k) or "" for k in ("U1", "U2", "U3", "Dose")} | {"run": x["run"]}
        for x in rows.iter_rows(named=True)]
    seeds = rows.unique("seed", keep="last", maintain_order=True)
    if len(seeds) > 1:
        means = {f"Δ{k} (nats)": interval(over_seeds(seeds[k].to_list())) for k in ("down", "up")}
        for k in plain:
            means[k.replace("_", " ")] = "{:.3f} [{:.3f}, {:.3f}]".format(
                *over_seeds(seeds[k].to_list()))
        shown.append(dict.fromkeys(shown[0], "") | {"seed": "mean"} | means)
    return markdown(shown)


def ledger_table(root: Path) -> str:
    """The ledger for reading, grouped by arm. A run's brackets are intervals over vignettes, those
    of a mean are over seeds."""
    runs = ledger(root)
    if runs.is_empty():
        return f"no finished run under {root}: start one with `python -m steerloop.train`"
    groups = runs.sort("arm", "seed", "run").partition_by("arm", maintain_order=True)
    arms = [json.loads(g["arm"][0]) for g in groups]
    shared = {k: v for k, v in arms[0].items() if all(a.get(k) == v for a in arms)}
    parts = [f"Runs: {len(runs)} finished, in {len(arms)} arms. All with {said(shared)}"]
    for arm, rows in zip(arms, groups, strict=True):
        own = {k: v for k, v in arm.items() if k not in shared}
        parts += [f"## {said(own) or 'one arm'}", table_of(rows)]
    return "\n\n".join(parts)
