"""Long rollouts: the KL of each token along each text, at every dose and of the student."""

import math
from pathlib import Path
from typing import Any

import polars as pl

from steerloop.report.pages.drawing import Panel, Scale, figure, legend, panels
from steerloop.report.pages.markup import table
from steerloop.runfolder import layout
from steerloop.runfolder.files import read_table

LEAST = 1e-4  # nats: what is smaller is drawn there
OPENING = 90  # letters of a text that a line says under the pointer
WINDOW = 8  # tokens that a strong line is the mean of
TALL = 230  # pixels of a panel


def rolled(run: Path, target: float, round: int) -> str:
    """The section of a round; '' before it was healed."""
    path = run / layout.of_round(round, f"{layout.ROLLOUTS}.parquet")
    if not path.is_file():
        older = (run / layout.of_round(round, f"{layout.DRIFT}.json")).is_file()
        return ('<p class="quiet">This round has no rollouts.parquet: it was made by an older '
                "version.</p>" if older else "")
    rows = read_table(path)
    kls = rows["kl"].explode().drop_nulls().clip(lower_bound=LEAST).to_list()
    ys = Scale([*kls, target], log=True)
    xs = Scale([1, rows["kl"].list.len().max() or 1], whole=True)
    figures = [picture(part, xs, ys, target) for part in rows.partition_by(
        "state", "times", maintain_order=True)]
    lines = [("alive", "accent", ""), ("loops or repeats", "bad", "dashed")]
    texts = [{"text of": named(x), "prompt": x["prompt"], "": word(x), "tokens": len(x["kl"]),
              "mean KL (nats)": mean(x["kl"]), "text": x["text"]} for x in rows.to_dicts()]
    return (f'{panels(figures)}{legend(lines)}<p class="quiet">A line '
            f"is a rollout: faint the KL of each token, strong its mean over the last {WINDOW}. A "
            "full mark at its end says that the text is alive, a hollow one that it loops or "
            "repeats. Steered: KL(steered ‖ unsteered) of the student "
            "as it was before this round. The student: KL(student ‖ base) along what it says "
            f"unsteered. What is below {LEAST:g} nats is drawn there; all axes are the same. The "
            "dashed level is what the 95th percentile of tokens is brought to at c*.</p>"
            f"<details><summary>{len(texts)} texts</summary>{table(texts)}</details>")


def picture(rows: pl.DataFrame, xs: Scale, ys: Scale, target: float) -> str:
    """A panel of the rollouts at one dose, and what they come to."""
    first = rows.row(0, named=True)
    panel = Panel(named(first), xs, ys, "token", height=TALL)
    for x in rows.to_dicts():
        at = range(1, len(x["kl"]) + 1)
        runs = [shown(mean(x["kl"][max(0, i - WINDOW) : i])) for i in at]
        colour, dash, end = (("accent", "", "") if x["alive"] else ("bad", "dashed", "hollow"))
        panel.line(at, [shown(y) for y in x["kl"]], colour, more="thin faint")
        panel.line(at, runs, colour, told(x), f"rollout {dash}")
        panel.dots(at[-1:], runs[-1:], colour, [told(x)], end)
    panel.level(target, f"target {target:g}", "ink")
    tokens = rows["kl"].explode().drop_nulls()
    p95 = tokens.quantile(0.95, "linear") or 0.0
    said = (f"{rows['alive'].sum()} of {len(rows)} alive; KL of a token: 95th percentile "
            f"{p95:.3g}, mean {tokens.mean() or 0.0:.3g} nats")
    return figure(panel.svg(), said)


def shown(kl: float) -> float | None:
    """Where a KL is drawn; nowhere where it is no number."""
    return max(LEAST, kl) if math.isfinite(kl) else None


def named(row: dict[str, Any]) -> str:
    """Whose text it is."""
    if row["state"] == layout.HEALED:
        return "the student, unsteered"
    return f"steered at {row['times']:g} c* (dose {row['dose']:.3g})"


def word(row: dict[str, Any]) -> str:
    """What became of a text."""
    end = "cut at the limit" if row["cut"] else "ended by itself"
    return f"{'alive' if row['alive'] else 'loops or repeats'}, {end}"


def mean(kls: list[float]) -> float:
    """Of the tokens of a text."""
    return sum(kls) / max(1, len(kls))


def told(row: dict[str, Any]) -> str:
    """What a line says under the pointer."""
    text = row["text"] if len(row["text"]) <= OPENING else row["text"][:OPENING] + "…"
    return (f"{row['prompt']}\n{text}\n{word(row)}; {len(row['kl'])} tokens, mean "
            f"{mean(row['kl']):.3g} nats")
