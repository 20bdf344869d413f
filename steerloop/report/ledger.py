"""The ledger: one row per finished run, built from the summaries under a runs folder."""

import json
from pathlib import Path
from typing import Any

import polars as pl
from loguru import logger

from steerloop import UserError
from steerloop.report.stats import over_seeds
from steerloop.report.text import inline, interval, markdown
from steerloop.runfolder.files import read_summary, read_table, write_table
from steerloop.runfolder.layout import LEDGER, SUMMARY, summaries
from steerloop.texts.parts import steering
from steerloop.texts.printable import printable

MOVED = ("down", "up")  # shifts along the axis; of a readout of its own the second alone
LEGAL = ("opening_mass", "sentence_validity")
LIKE = {"ppl_mundane"}  # measures that every run has
ARM = (  # what tells runs apart, beside their axis
    "model", "barrier", "agg", "ref", "lam", "lam_pow", "tau", "tau_share", "kl_budget", "lr",
    "epochs", "filter", "multiples", "rounds", "seed", "split",
)
MIXED = "steered_by"  # and what does, where it is not the vector of one pack


JUDGED = ("U0", "U1", "U2", "U3", "Dose")
ASKED = "Tasks"  # of runs with --tasks alone
ODD = (UserError, ValueError, KeyError, IndexError, TypeError, AttributeError, ZeroDivisionError)
TEXT = {"run", "axis", "arm", "model", MIXED, "barrier", "agg", "ref", "multiples", "filter",
        "split", "read_by", *JUDGED, ASKED}


def arm_of(document: dict[str, Any]) -> dict[str, Any]:
    """Of what config.json says, what tells a run from others."""
    cfg, inputs = document["config"], document.get("inputs", {})
    model = inputs.get("model", {}).get("name") or Path(cfg["model"]).name
    by = steering(cfg)
    return {k: cfg[k] for k in ARM} | {"model": model} | ({MIXED: by} if by else {})


def settings_of(axis: list[str], chosen: dict[str, Any]) -> dict[str, Any]:
    """What tells a run from others, in order."""
    return {"axis": " → ".join(axis)} | {
        k: str(chosen[k]) if isinstance(chosen[k], list) else chosen[k]
        for k in (*ARM, MIXED) if k in chosen}


def row_of(summary: dict[str, Any]) -> dict[str, Any]:
    """A finished run as a row. Raises ValueError or another error of its content where it is no
    summary of a run."""
    last, settings = summary["healed"][-1], settings_of(summary["axis"], summary["arm"])
    arm = json.dumps({k: v for k, v in settings.items() if k != "seed"})
    row = {"run": summary["run"], **settings, "arm": arm,
           "healed_rounds": len(summary["healed"]), "best_round": summary["best_round"]}
    moved = last["moved"] if "moved" in last else {
        f"Δ{f}": last["shift"][f]["nats"] for f in summary["axis"]}  # older ones
    for name, shift in zip(("down", "up") if len(moved) == 2 else ("up",), moved.values(),
                           strict=False):
        row[name], row[f"{name}_low"], row[f"{name}_high"] = shift
    row["read_by"] = summary.get("u0", {}).get("headline", "digits") or summary["u0"]["verdict"]
    ratio = last["measures"]["ppl_mundane"] / summary["base"]["ppl_mundane"]
    row |= last["measures"] | {"ppl_ratio": ratio}
    if "seed" not in settings or LIKE - row.keys():
        raise ValueError("not all of a run's measures")
    said = {x["question"].split(":")[0]: x["verdict"] for x in summary.get("verdicts", [])}
    row |= {k: x for k, x in said.items() if k in (*JUDGED, ASKED)}
    for name, x in row.items():
        kinds = (str, bool) if name in TEXT else (int, float)
        good = isinstance(x, kinds) and (isinstance(x, str) or abs(x) < 2**63)
        if not good and not (x is None and name == "best_round"):
            raise ValueError(f"{name} is {x!r:.40}")
    return row


def row_in(path: Path) -> dict[str, Any] | None:
    """The row of a summary's file. None of a run that has not ended, and, with a line that says
    so, of what others put beside the run folders."""
    try:
        summary = read_summary(path.parent)
        return row_of(summary) if summary.get("ended") else None
    except ODD as e:
        logger.warning(f"left out of the ledger: {one_line(f'{path}: {why(e)}')}")
    return None


def why(error: Exception) -> str:
    """Why what others put beside the run folders is left out."""
    if isinstance(error, UserError):
        return str(error)
    return f"no summary of a run ({type(error).__name__}: {error!s:.80})"


def one_line(text: str) -> str:
    """What others wrote as one line that any terminal takes."""
    return " ".join(printable(text.encode(errors="backslashreplace").decode()).split())


def ledger(root: Path, own: tuple[Path, dict[str, Any]] | None = None) -> pl.DataFrame:
    """One row per finished run under `root`: its settings, the measures of its last healed round,
    its best round, its verdicts. `arm` is all settings but the seed, as text. `own` are path and
    summary of a run that is about to end."""
    path, summary = own or (Path(), {})
    rows = {x: row_in(x) for x in summaries(root) if x != path}
    if summary.get("ended"):
        rows[path] = row_of(summary)
    known = [rows[x] for x in sorted(rows) if rows[x]]
    return pl.DataFrame(known, infer_schema_length=None, strict=False)


def update_ledger(run: Path, summary: dict[str, Any]) -> None:
    """Rewrite the ledger beside a run that ends with `summary`. Built anew each time from all
    summaries, so that runs which finish together cannot lose each other's row."""
    path = run.parent / LEDGER
    if path.exists() and not ours(path):
        logger.warning(f"{path} is no ledger, and left as it is: move it away, then `python -m "
                       f"steerloop.report {run}` writes one")
        return
    write_table(path, ledger(run.parent, (run / SUMMARY, summary)))


def ours(path: Path) -> bool:
    """Whether a file is a ledger."""
    try:
        return path.is_file() and {"run", "arm"} <= set(read_table(path).columns or ["run", "arm"])
    except UserError:
        return False


def said(settings: dict[str, Any]) -> str:
    """Settings as text."""
    return inline(", ".join(f"{k} {v}" for k, v in settings.items()))


def table_of(rows: pl.DataFrame) -> str:
    """The runs of one arm by seed, and where several seeds ran, their mean with its interval (of
    each seed the last run)."""
    known = [k for k in ("coherence", *LEGAL, *MOVED)
             if k in rows.columns and rows[k].null_count() == 0]
    plain = ["ppl_ratio", *(k for k in known if k not in MOVED)]
    moved = [k for k in MOVED if k in known]
    judged = [*JUDGED, *[ASKED] * (ASKED in rows.columns)]
    shown = [
        {"seed": str(x["seed"]), "rounds": str(x["healed_rounds"]),
         "best": "none" if x["best_round"] is None else str(x["best_round"] + 1)}
        | {f"Δ{k} (nats)": interval([x[k], x[f"{k}_low"], x[f"{k}_high"]]) for k in moved}
        | {k.replace("_", " "): f"{x[k]:.3f}" for k in plain}
        | {k: x.get(k) or "" for k in judged} | {"run": x["run"]}
        for x in rows.iter_rows(named=True)]
    seeds = rows.unique("seed", keep="last", maintain_order=True)
    if len(seeds) > 1:
        means = {f"Δ{k} (nats)": interval(over_seeds(seeds[k].to_list())) for k in moved}
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
