"""Where the KL of a healed student lies: all tokens of the rows that were chosen for its heal by
their KL, and the worst of them where they stand."""

from html import escape
from pathlib import Path

import polars as pl

from steerloop.report.pages.completions import address
from steerloop.report.pages.drawing import Panel, Scale, figure, panels
from steerloop.runfolder import layout
from steerloop.runfolder.files import read_table

FIRST = 40  # worst tokens that are shown at once
TAIL = 0.1  # at most so large a share of the tokens is called the tail
NONE = 1e-6  # nats: a mean below it is rounding
WORDS = {"base": "the base", "prev": "the student before this round"}
BLANK = {"\n": "⏎", "\t": "⇥", " ": "␣"}  # how tokens of nothing else are shown


def spread(run: Path, reference: str, round: int) -> str:
    """The section of a round; '' before its student was compared. `reference` is that of the
    barrier."""
    bins, worst = (run / layout.of_round(round, f"{x}.parquet")
                   for x in (layout.HISTOGRAM, layout.WORST))
    parts = []
    if bins.is_file():
        table = read_table(bins)
        parts += [pictures(part, reference) for (reference,), part in table.partition_by(
            "reference", as_dict=True, maintain_order=True).items()]
    elif worst.is_file():
        parts.append('<p class="quiet">This round has no histogram.parquet: it was made by an '
                     "older version.</p>")
    if worst.is_file():
        parts.append(listed(read_table(worst), round + 1, reference))
    return "".join(parts)


def pictures(bins: pl.DataFrame, reference: str) -> str:
    """Tokens by their KL to a reference, and what share of all KL they hold."""
    tokens, kl = bins["tokens"].sum(), bins["kl"].sum()
    shares = bins.with_columns(
        share=pl.col("tokens") / max(1, tokens),
        held=pl.col("kl").clip(lower_bound=0.0) / max(kl, 1e-12)).rows(named=True)
    while len(shares) > 2 and not shares[-1]["tokens"]:  # up to the largest KL there is
        shares.pop()
    step = shares[1]["high"] / shares[1]["low"]
    edges = [(x["low"] or x["high"] / step, x["high"] or x["low"] * step) for x in shares]
    xs = Scale([v for edge in edges for v in edge], log=True)
    titles = [f"{between(x['low'], x['high'])}: {x['tokens']} tokens, {x['share']:.2%} of them, "
              f"with {x['held']:.2%} of the KL" for x in shares]
    drawn = []
    for name, title in (("share", "share of the tokens"), ("held", "share of all KL")):
        heights = [x[name] for x in shares]
        panel = Panel(title, xs, Scale(heights, zero=True), "KL of the token (nats)")
        panel.bars(edges, heights, "soft" if name == "share" else "warm", titles)
        if kl > 0:
            panel.upright(kl / max(1, tokens), "mean")
        drawn.append(figure(panel.svg()))
    low, few, held = tail(shares)
    mean = kl / max(1, tokens)
    said = "There is next to none." if mean < NONE else (
        f"Mean {mean:.4g} nats. The tail: {few:.1%} of the tokens are at {low:.3g} nats or more, "
        f"and hold {held:.0%} of all KL.")
    words = WORDS.get(reference, reference)
    return (f'{panels(drawn)}<p class="quiet">KL(student ‖ '
            f"{escape(words)}) of all {tokens} completion tokens of the rows that were chosen for "
            "the heal (those held out among them), in bins of equal width in log KL; the first bin "
            f"has all that is smaller. {said}</p>")


def between(low: float | None, high: float | None) -> str:
    """A bin in words."""
    if low is None:
        return f"below {high:.2g} nats"
    return f"{low:.2g} nats or more" if high is None else f"{low:.2g} to {high:.2g} nats"


def tail(shares: list[dict]) -> tuple[float, float, float]:
    """Where the largest bins begin that have at most TAIL of the tokens together (one bin at
    least), in nats; their share of the tokens, and of the KL."""
    few, held, low = 0.0, 0.0, 0.0
    for x in reversed(shares):
        if few and few + x["share"] > TAIL:
            break
        few, held, low = few + x["share"], held + x["held"], x["low"] or 0.0
    return low, few, held


def listed(worst: pl.DataFrame, round: int, reference: str) -> str:
    """The worst tokens of a round (from 1) by their KL to a reference, largest first, each marked
    after what stands before it; rows are links to the page of completions."""
    rows = []
    for x in worst.to_dicts():
        row = escape(str(x["row"]))  # a number, unless a stranger wrote the table
        if isinstance(x["row"], int):
            row = f'<a href="{address(round, x["row"])}">{row}</a>'
        text = f"{escape(lined(x['before']))}<mark>{escape(visible(x['text']))}</mark>"
        rows.append(f'<tr><td class="n">{x["kl"]:.3g}</td><td class="n">{row}</td><td class="n">'
                    f'{escape(str(x["position"]))}</td><td class="text context">{text}</td></tr>')
    more = (f"<details><summary>{len(rows) - FIRST} more</summary>{tabled(rows[FIRST:])}</details>"
            if len(rows) > FIRST else "")
    words = escape(WORDS.get(reference, reference))
    return (f"<h3>The worst tokens</h3><p class=\"quiet\">KL(student ‖ {words}), largest first.</p>"
            f"{tabled(rows[:FIRST])}{more}")


def lined(text: str) -> str:
    """Text in one line: its ends of lines are signs."""
    return text.replace("\n", BLANK["\n"])


def visible(token: str) -> str:
    """The same of a token, which is signs altogether where it is blank."""
    return lined(token) if token.strip() else "".join(BLANK.get(x, x) for x in token) or "∅"


def tabled(rows: list[str]) -> str:
    """Rows of the worst tokens under their heads."""
    return ('<div class="scroll"><table><thead><tr><th class="n">KL (nats)</th><th class="n">row'
            '</th><th class="n">position</th><th>the token, after what stands before it</th></tr>'
            f"</thead><tbody>{''.join(rows)}</tbody></table></div>")
