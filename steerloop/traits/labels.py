"""Labelled answers: a blind sheet of what models said, to be filled in by a reader, and what comes
of it with its key.

    SHEET.jsonl       id, prompt, text, trait (null), sensible (null): shuffled, without an origin
    SHEET.key.jsonl   id, model, round, state, said, ppl, drop_reason: every origin of an answer
    labels.jsonl      the two joined, a line for each origin: what a pack keeps

An id is a hash of prompt and answer, so a sheet has its own key or none. `trait` says whether the
answer shows the pole `up`, `sensible` whether it makes sense. What a model wrote is untrusted: it
is nowhere but in JSON, in ASCII.
"""

import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

import polars as pl

from steerloop import UserError
from steerloop.report.coherence import limit_of
from steerloop.report.run import axis_of
from steerloop.runfolder import layout
from steerloop.runfolder.files import read_config, read_table, write_whole
from steerloop.texts.reader import at_line, json_lines, kind, read_text

LABELS = "labels.jsonl"
IMPROBABLE = "improbable"  # what the filter calls an answer beyond its limit of perplexity
ASKED = ("trait", "sensible")
SHEET = {"id": pl.String, "prompt": pl.String, "text": pl.String,
         **dict.fromkeys(ASKED, pl.Boolean)}
KEY = {"id": pl.String, "model": pl.String, "round": pl.Int64, "state": pl.String,
       "said": pl.Float64, "ppl": pl.Float64, "drop_reason": pl.String}
COLUMNS = {"prompt": pl.String, "text": pl.String, "state": pl.String, "said": pl.Float64,
           "drop_reason": pl.String, "ppl": pl.Float64, "model": pl.String,
           **dict.fromkeys(ASKED, pl.Boolean)}
TYPES: dict[Any, tuple[type, ...]] = {pl.String: (str,), pl.Float64: (int, float),
                                      pl.Int64: (int,), pl.Boolean: (bool,)}
MAY_LACK = ("drop_reason", "ppl")  # null: kept, not finite


def id_of(prompt: str, text: str) -> str:
    """Of an answer, by its words alone."""
    return hashlib.sha256(f"{prompt}\0{text}".encode()).hexdigest()[:12]


def answers_of(run: Path) -> pl.DataFrame:
    """Every answer that a run kept, with its origin: KEY, prompt and text. `drop_reason` is what
    the run's filter says in all, its limit of perplexity included. Raises UserError where there
    are none."""
    cfg, base = read_config(run), layout.said(run, 0, layout.BASE)
    own = read_table(base) if base.exists() else pl.DataFrame()
    if own.is_empty():
        raise UserError(f"{run} kept no answers of its base: its trait pack had no held-out "
                        "prompts, or it is no run of steerloop.train")
    limit = limit_of(own, cfg["ppl_factor"])
    beyond = pl.when(pl.col("ppl") > limit).then(pl.lit(IMPROBABLE))
    tables = []
    for round, state, path in layout.answers(run):
        tables.append(read_table(path).select(
            "prompt", "text", round=pl.lit(round, pl.Int64), state=pl.lit(state), ppl="ppl",
            said=pl.mean_horizontal("said_1", "said_2"),
            drop_reason=pl.coalesce("drop_reason", beyond)))
    found = pl.concat(tables)
    ids = pl.Series([id_of(*x) for x in found.select("prompt", "text").iter_rows()],
                    dtype=pl.String)
    return found.with_columns(id=ids, model=pl.lit(Path(cfg["model"]).name))


def sheet(runs: list[Path], seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """SHEET, in an order that hangs on the seed and the words alone, and its KEY. Raises UserError
    where the runs are of two traits."""
    every = pl.concat([answers_of(x) for x in runs])
    axes = {run: axis_of(run) for run in runs}
    if other := [x for x in runs if axes[x] != axes[runs[0]]]:
        raise UserError(f"{runs[0]} moves {' to '.join(axes[runs[0]])}, {other[0]} "
                        f"{' to '.join(axes[other[0]])}: one sheet is about one trait")
    rows = every.select("id", "prompt", "text").unique().sort("id").rows()
    random.Random(seed).shuffle(rows)
    blind = pl.DataFrame(rows, dict(list(SHEET.items())[:3]), orient="row")
    blind = blind.with_columns(pl.lit(None, pl.Boolean).alias(x) for x in ASKED)
    key = every.select(*KEY).unique(["id", "model", "round", "state"], keep="first")
    return blind, key.sort("id", "model", "round", "state")


def key_of(path: Path) -> Path:
    """Where the key of a sheet lies."""
    return path.with_name(f"{path.name.removesuffix('.jsonl')}.key.jsonl")


def absent(path: Path) -> None:
    """Raises UserError where something is there already: labels are somebody's work."""
    if path.exists():
        raise UserError(f"{path} is there already: move it away, or name another --out")


def write_sheet(runs: list[Path], out: Path, seed: int) -> None:
    """The sheet and its key. Raises UserError."""
    for path in (out, key_of(out)):
        absent(path)
    blind, key = sheet(runs, seed)
    write_rows(key_of(out), key)
    write_rows(out, blind)


def write_rows(path: Path, table: pl.DataFrame) -> None:
    """JSON lines; a number that is not finite is null."""
    lines = [json.dumps({k: None if isinstance(x, float) and not math.isfinite(x) else x
                         for k, x in row.items()}) + "\n" for row in table.to_dicts()]
    write_whole(path, lambda part: part.write_text("".join(lines), encoding="utf-8"))


def read_rows(path: Path, schema: dict[str, Any], may_lack: tuple[str, ...]) -> pl.DataFrame:
    """JSON lines with these columns. Raises UserError naming the line and the column."""
    rows = []
    try:
        for number, row in json_lines(read_text(path)):
            with at_line(number):
                rows.append([value(row, x, schema[x], x in may_lack) for x in schema])
    except ValueError as e:
        raise UserError(f"cannot read {path}: {e}") from e
    if not rows:
        raise UserError(f"cannot read {path}: there is nothing in it")
    return pl.DataFrame(rows, schema, orient="row")


def value(row: dict[str, Any], column: str, wanted: Any, may_lack: bool) -> Any:
    """Of a column. Raises ValueError for one of another kind."""
    if column not in row:
        raise ValueError(f"every line needs {column}")
    found = row[column]
    if found is None and may_lack:
        return None
    if type(found) not in TYPES[wanted]:
        raise ValueError(f"{column} is {kind(found)}, not {kind(TYPES[wanted][0]())}")
    return float(found) if wanted == pl.Float64 else found


def joined(path: Path) -> pl.DataFrame:
    """A sheet that was filled in, with its key: COLUMNS. Raises UserError for rows that were not
    filled in, and where the two do not belong together."""
    filled = read_rows(path, SHEET, ASKED)
    key = read_rows(key_of(path), KEY, MAY_LACK)
    empty = filled.filter(pl.any_horizontal(pl.col(x).is_null() for x in ASKED))
    if len(empty):
        raise UserError(f"{path}: {len(empty)} of {len(filled)} answers are not filled in, the "
                        f"first is {empty['id'][0]}: trait and sensible are true or false")
    if changed := [x for x, *words in filled.select("id", "prompt", "text").rows()
                   if x != id_of(*words)]:
        raise UserError(f"{path}: {changed[0]} is not what was said: only trait and sensible are "
                        "filled in")
    if sorted(filled["id"]) != sorted(set(key["id"])):
        raise UserError(f"{path} and {key_of(path)} are not of the same answers, each once")
    both = key.join(filled, on="id", how="left", maintain_order="left")
    return both.select(*COLUMNS).unique(["prompt", "text", "model", "state"], keep="first",
                                       maintain_order=True)


def write_labels(sheets: list[Path], out: Path) -> None:
    """The labels of sheets, as a pack keeps them. Raises UserError."""
    absent(out)
    found = pl.concat([joined(x) for x in sheets])
    agree(found, ", ".join(map(str, sheets)))
    write_rows(out, found.unique(["prompt", "text", "model", "state"], keep="first",
                                 maintain_order=True))


def agree(labels: pl.DataFrame, name: str) -> None:
    """Raises UserError where the same answer is labelled in two ways."""
    ways = labels.select("prompt", "text", *ASKED).unique().group_by("prompt", "text").len()
    if twice := ways.filter(pl.col("len") > 1)["text"].sort().to_list():
        raise UserError(f"{name}: the same answer is labelled in two ways: {twice[0]!r:.80}")


def read_labels(folder: Path) -> pl.DataFrame:
    """The labels of a pack, COLUMNS. Raises UserError where it has none, or they are no labels."""
    path = folder / LABELS
    if not path.is_file():
        raise UserError(f"{folder} has no {LABELS}: `python -m steerloop.traits sheet RUN --out "
                        "SHEET` begins them")
    labels = read_rows(path, COLUMNS, MAY_LACK)
    agree(labels, str(path))
    return labels
