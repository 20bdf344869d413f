"""diary.md: the same prompts answered by base, steered and healed models, round by round, for
people who would rather read than look."""

from pathlib import Path
from typing import Any

import polars as pl

from steerloop.report.run import axis_of, headline_of, last_by_round, word_of
from steerloop.report.text import code, inline, interval
from steerloop.report.trait import unit
from steerloop.runfolder import layout
from steerloop.runfolder.files import read_table, write_whole

WIDTH = 96  # columns of an answer
CUT = " […]"  # an answer that the length limit ended


def read_diary(run: Path) -> pl.DataFrame:
    """Every answer so far: the columns of `steerloop.evidence.diary`, `round` counted from 0. Empty
    for a run without any."""
    tables = [read_table(path).with_columns(round=pl.lit(round))
              for round, path in layout.of_all_rounds(run, layout.ANSWERS).items()]
    return pl.concat(tables) if tables else pl.DataFrame(schema={"prompt_id": pl.Int64})


def said(row: dict[str, Any]) -> str:
    """An answer for reading: marked where it was cut."""
    return (row["text"].strip() or "(nothing)") + CUT * row["cut"]


def prompts(table: pl.DataFrame) -> list[tuple[str, str, dict[tuple[int, str], dict[str, Any]]]]:
    """(prompt, kind, (round, state) → row) of every prompt, in order."""
    return [(rows["prompt"][0], rows["kind"][0],
             {(x["round"], x["state"]): x for x in rows.iter_rows(named=True)})
            for rows in table.partition_by("prompt_id", maintain_order=True)]


def write_diary(run: Path, measured: list[dict[str, Any]]) -> None:
    """Write diary.md from the answers in the folder; `measured` are its `states`."""
    down, up = axis_of(run)
    healed = {e["round"]: e["moved"] for e in measured if e["state"] == "healed"}
    samples, counted = last_by_round(run, "sample"), unit(headline_of(run))
    parts = [f"# Diary of {inline(run.name)}",
             f"The same prompts, answered by the untouched model (base), by the student of the "
             f"round before with the vector applied (steered) and by the student after the round "
             f"(healed). Wanted: {down} down, {up} up. Decoding is greedy: answers differ by the "
             f"model alone; {CUT.strip()} marks where the length limit ended one."]
    table = read_diary(run)
    if table.is_empty():
        parts.append("No answers were taken in this run.")
    for n, (prompt, kind, rows) in enumerate(prompts(table), 1):
        note = " (ordinary, nothing was trained on it)" if kind == "ordinary" else ""
        parts += [f"## Prompt {n}{note}", code(prompt, WIDTH), "**base**"]
        parts += [code(said(x), WIDTH) for key, x in rows.items() if key[1] == "base"]
        for round in sorted({r for r, _ in rows}):
            shift = ""
            if round in healed:
                moved = [f"{k} {interval(x)} {counted}" for k, x in healed[round].items()]
                shift = ": healed " + ", ".join(moved or [word_of(run)])
            parts.append(f"### Round {round + 1}{shift}")
            for state in ("steered", "healed"):
                if row := rows.get((round, state)):
                    kappa = f", κ {samples[round]['kappa']:.2f}" if round in samples else ""
                    dose = f" (dose {row['dose']:.2f}{kappa})" if state == "steered" else ""
                    parts += [f"**{state}**{dose}", code(said(row), WIDTH)]
    text = "\n\n".join(parts) + "\n"
    write_whole(run / layout.DIARY, lambda path: path.write_text(text, encoding="utf-8"))
