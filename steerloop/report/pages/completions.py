"""Every completion of a run as one table, and the short account of it on its overview."""

from html import escape
from pathlib import Path
from urllib.parse import quote

import polars as pl

from steerloop.report.pages.markup import table
from steerloop.report.run import last_by_round
from steerloop.runfolder import layout
from steerloop.runfolder.files import read_table
from steerloop.texts.printable import printable

OWN = "loop"  # what the run itself sampled
SOURCES = {  # source → its tables' name, and what it is in words
    OWN: (layout.COMPLETIONS, "the run's own loop"),
    "taught": (f"taught.{layout.COMPLETIONS}", "prompt distillation, the rival"),
}
UNSTEERED = "0"  # as a level
EXAMPLES = ("dose", "ppl", "repeat", "echo", "loop", "zip")  # scores that stand with them


def completions(run: Path) -> pl.DataFrame:
    """All judged rows of a run and of its rival's loop, in order: source, round (from 1), row (from
    0, as in the round's table), prompt, text, level, keep, reason (null where kept), train; and
    whatever else is a number with a fraction: dose, kappa, perplexity, the filter's scores.

    `level` is α of dose = α·κ·c*, as text, and "" where a round has no record of c* yet.
    """
    sampled = last_by_round(run, "sample")
    tables = [one(path, source, round, sampled.get(round, {}).get("c_star"))
              for source, (name, _) in SOURCES.items()
              for round, path in layout.of_all_rounds(run, name).items()]
    return pl.concat(tables, how="diagonal_relaxed") if tables else pl.DataFrame()


def one(path: Path, source: str, round: int, c_star: float | None) -> pl.DataFrame:
    """The rows of a round (from 0) with the columns of `completions`; `c_star` in units of the
    vector. Tables of older versions lack some: their `train` is null."""
    rows = read_table(path)
    scores = [name for name, kind in rows.schema.items() if kind.is_float()]
    kappa = pl.col("kappa") if "kappa" in scores else pl.lit(1.0)
    alpha = (pl.col("dose") / kappa / (c_star or float("nan"))).round_sig_figs(3)
    unknown = alpha.is_nan() | alpha.is_null()
    level = (pl.when(pl.col("dose") == 0).then(pl.lit(UNSTEERED)).when(unknown).then(pl.lit(""))
             .otherwise(alpha.cast(pl.String).str.strip_suffix(".0")))
    trained = pl.col("train") if "train" in rows.columns else pl.lit(None, pl.Boolean)
    return rows.select(
        pl.lit(source).alias("source"), pl.lit(round + 1).alias("round"),
        pl.int_range(pl.len()).alias("row"), pl.col("prompt", "text").fill_null(""),
        level.alias("level"), "keep", pl.col("drop_reason").alias("reason"),
        trained.alias("train"), *scores)


def named(level: str) -> str:
    """A level in words."""
    return "unsteered" if level == UNSTEERED else f"α {level}" if level else "not known yet"


def address(round: int, row: int | None = None, **chosen: str) -> str:
    """The page of completions at a round (from 1), or at a row of it, filtered: see browser.py."""
    where = f"#round-{round}" + (f"-row-{row}" if row is not None else "")
    said = {k: quote(printable(x), "") for k, x in chosen.items()}  # as the page has them
    return layout.BROWSER + where + "".join(f"&{k}={x}" for k, x in said.items())


def account(run: Path) -> str:
    """How many completions of the run's own loop were kept, by round, dose and reason, each number
    a link to them; and a few of the last round."""
    rows = completions(run)
    rows = rows.filter(source=OWN) if len(rows) else rows
    if rows.is_empty():
        return '<p class="quiet">none yet</p>'
    reasons = sorted(rows["reason"].drop_nulls().unique())
    by_dose = counts(rows, ["round", "level"], reasons)
    return (f'<p>dose = α·κ·c*. Numbers lead to the <a href="{layout.BROWSER}">completions</a> '
            f'themselves.</p>{counts(rows, ["round"], reasons)}'
            f"<details><summary>by dose</summary>{by_dose}</details>{examples(rows)}")


def counts(rows: pl.DataFrame, by: list[str], reasons: list[str]) -> str:
    """Numbers of rows as an HTML table, a line for each value of `by`."""
    col = pl.col
    kinds = {"sampled": ({}, pl.len()), "kept": ({"kept": "kept"}, col("keep").sum())}
    if rows["train"].any():
        kinds["chosen to train on"] = {"kept": "chosen"}, col("train").sum()
    kinds |= {f"dropped: {x}": ({"reason": x}, (col("reason") == x).sum()) for x in reasons}
    tests = [n.alias(str(i)) for i, (_, n) in enumerate(kinds.values())]
    order = ["round"] + [col("level").cast(pl.Float64, strict=False)] * (len(by) > 1)
    lines = []
    for line in rows.group_by(by).agg(tests).sort(order).iter_rows(named=True):
        at = {"dose": line["level"]} if line.get("level") else {}
        cells = [f"<td>{line['round']}</td>"]
        cells += [f"<td>{escape(named(line['level']))}</td>"] if "level" in by else []
        for i, (chosen, _) in enumerate(kinds.values()):
            n, where = line[str(i)], escape(address(line["round"], **at, **chosen))
            cells.append(f'<td class="n"><a href="{where}">{n:,}</a></td>' if n else
                         '<td class="n">0</td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f"<th>{'dose' if x == 'level' else x}</th>" for x in by)
    head += "".join(f'<th class="n">{escape(x)}</th>' for x in kinds)
    return (f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(lines)}</tbody></table></div>")


def examples(rows: pl.DataFrame) -> str:
    """Of the last round the first completion that was kept, and the first that was dropped for each
    reason."""
    last = rows.filter(round=rows["round"].max())
    dropped = last.filter(~pl.col("keep")).group_by("reason", maintain_order=True)
    firsts = pl.concat([last.filter("keep").head(1), dropped.head(1).select(last.columns)])
    columns = [x for x in EXAMPLES if x in firsts.columns]
    why = pl.when("keep").then(pl.lit("kept")).otherwise(pl.col("reason").fill_null("dropped"))
    shown = firsts.select(why.alias("filter"), *columns, "prompt", "text").to_dicts()
    return f'<h3>The first of each, round {last["round"][0]}</h3>{table(shown)}'
