"""completions.html: all completions of a run to filter, search and sort, and the answers of base,
steered and healed to the same prompts, with the words that differ marked.

What is shown stands in the address behind "#", so a link shows the same. Its parts are joined by
"&", in any order, percent-encoded as in a query, and all of them may be left out:

    round-2                  completions of round 2 (from 1)
    round-2-row-17           the same, at row 17 (from 0, as in rounds/01/completions.parquet)
    source=taught            those of the rival's loop, not the run's own (loop)
    dose=0.5                 sampled at α = 0.5 (of dose = α·κ·c*); dose=0: unsteered
    kept=chosen              or kept, spare (kept, not chosen to train on), dropped
    reason=loops             dropped for that reason
    find=text                that have this text in prompt or answer, whatever the case
    sort=ppl, sort=-ppl      smallest first, largest first; rows without a number come last
    from=51                  the page that begins with the 51st of them
    the-same-prompt          at the second half of the page
    prompt=held-3            the third held-out prompt there; diary-1: the first of the diary
    at=2                     steered and healed in round 2
    marks=base               healed against base; marks=none: no marks; else against steered

e.g. `completions.html#round-2&reason=loops` or `completions.html#the-same-prompt&prompt=diary-1`.
Numbers are rounded to four digits. Only a page of the rows is ever in the document.
"""

from html import escape
from pathlib import Path
from typing import Any

import polars as pl

from steerloop.report.diary import prompts, read_diary
from steerloop.report.pages.completions import OWN, SOURCES, completions, named
from steerloop.report.pages.frame import page
from steerloop.report.pages.site import Status, masthead, sections
from steerloop.runfolder import layout
from steerloop.runfolder.files import read_config, read_table, write_whole
from steerloop.texts.printable import printable

DIGITS = 4  # of a score
KEPT = {"kept": "kept", "chosen": "kept, chosen to train on", "spare": "kept, not chosen",
        "dropped": "dropped"}
MARKS = {"": "steered against base, healed against steered", "base": "healed against base",
         "none": "none"}
STATES = (layout.BASE, layout.STEERED, layout.HEALED)
Options = dict[str, str]  # value → what it is called


def write_browser(run: Path, status: Status) -> None:
    """Write completions.html. It does not look for a newer version of itself while a run goes on:
    a reader must not lose the place."""
    rows, asked = completions(run), answers(run)
    none = '<p class="quiet">none yet</p>'
    parts = {"All completions": rows_part(rows) if len(rows) else none,
             "The same prompt, three states": same_part(run, asked) if asked else none}
    body = masthead(run, layout.BROWSER, status, so_far(rows, status)) + sections(parts)
    data = {"completions": packed(rows) if len(rows) else None, "answers": asked}
    text = page(f"completions: {run.name}", body, data, ["words.js", "browser.js", "same.js"])
    write_whole(run / layout.BROWSER, lambda path: path.write_text(text, encoding="utf-8"))


def so_far(rows: pl.DataFrame, status: Status) -> str:
    """How many rounds there are on the page, where that may change."""
    rounds = rows["round"].n_unique() if len(rows) else 0
    return f"Rounds so far: {rounds}; reload for newer." if status == "running" else ""


def packed(rows: pl.DataFrame) -> dict[str, Any]:
    """The table of `completions` by columns, as the page reads it: what comes often stands in a
    list once, and its place there in the column (-1: none)."""
    names = [k for k, kind in rows.schema.items() if kind.is_float()]
    known: dict[str, Any] = {"texts": rows["text"].to_list(), "scores": {}}
    for name in ("source", "prompt", "level", "reason"):
        values = rows[name].drop_nulls().unique(maintain_order=True)
        places = rows[name].replace_strict(values, range(len(values)), default=-1,
                                           return_dtype=pl.Int64)
        known[name] = {"values": values.to_list(), "of": places.to_list()}
    for name in ("round", "row"):
        known[name] = rows[name].to_list()
    known["keep"] = rows["keep"].cast(pl.Int8).to_list()
    known["train"] = rows["train"].fill_null(False).cast(pl.Int8).to_list()
    for name in names:
        number = pl.col(name).round_sig_figs(DIGITS)
        finite = rows.select(pl.when(number.is_finite()).then(number)).to_series()
        known["scores"][name] = finite.to_list()
    return known


def answers(run: Path) -> list[dict[str, Any]]:
    """The prompts that base, steered and healed all answered, those of the diary first: key (see
    above), prompt, kind, and what was `said`: [round (from 1), state, text, dose, cut] each."""
    found = [{"key": f"diary-{n}", "prompt": prompt, "kind": kind, "said": [
        [round + 1, state, x["text"], x["dose"], x["cut"]] for (round, state), x in rows.items()]}
        for n, (prompt, kind, rows) in enumerate(prompts(read_diary(run)), 1)]
    held: dict[str, dict[str, Any]] = {}
    for round, state, path in layout.answers(run):
        if state in STATES:
            table = read_table(path).select("prompt", "text", "dose")
            for prompt, text, dose in table.iter_rows():
                new = {"key": f"held-{len(held) + 1}", "prompt": prompt, "kind": "held", "said": []}
                one = held.setdefault(prompt, new)
                one["said"].append([round + 1, state, text, dose, False])
    return found + list(held.values())


def choice(label: str, name: str, options: Options) -> str:
    """A labelled list to choose from."""
    shown = {escape(printable(k)): escape(printable(v)) for k, v in options.items()}
    inside = "".join(f'<option value="{k}">{v}</option>' for k, v in shown.items())
    return f'<label>{escape(label)} <select name="{name}">{inside}</select></label>'


def rows_part(rows: pl.DataFrame) -> str:
    """The filters, and the places for what they leave."""
    sources = [x for x in SOURCES if x in rows["source"].unique()]
    levels = sorted(rows["level"].unique(), key=lambda x: float(x or -1))
    reasons = sorted(rows["reason"].drop_nulls().unique())
    scores = [k for k, kind in rows.schema.items() if kind.is_float()]
    parts = [
        choice("sampled by", "source", {x: SOURCES[x][1] for x in sources})
        if sources != [OWN] else "",
        choice("round", "round", {"": "all"} | {str(x): str(x) for x in rows["round"].unique()
                                                .sort()}),
        choice("dose", "dose", {"": "all"} | {x: named(x) for x in levels if x}),
        choice("filter", "kept", {"": "all"} | {k: v for k, v in KEPT.items() if k not in (
            "chosen", "spare") or rows["train"].any()}),
        choice("reason", "reason", {"": "all"} | {x: x for x in reasons}),
        '<label class="grow">text contains <input type="search" name="find" spellcheck="false" '
        'autocomplete="off"></label>',
        choice("sort by", "by", {"": "order sampled"} | {x: x for x in scores}),
        '<label class="tick"><input type="checkbox" name="down"> largest first</label>',
        '<button type="button" id="clear">clear</button>',
    ]
    pager = ('<div class="pager"><button type="button" class="back">previous</button> '
             '<span class="quiet"></span> <button type="button" class="on">next</button></div>')
    return (f'<p class="quiet">dose = α·κ·c*: α is one of the multiples, κ ≤ 1 what the round had '
            f'to take back. ppl: perplexity under the base of the worst quarter.</p>'
            f'<div class="filters" role="search" id="filters">{"".join(parts)}</div>'
            f'<p><output id="count" tabindex="-1"></output></p>{pager}'
            f'<div id="list"></div>{pager}'
            "<noscript>The rows are drawn by a script of this page.</noscript>")


def same_part(run: Path, asked: list[dict[str, Any]]) -> str:
    """What chooses a prompt and a round, and the places for the three answers."""
    rounds = sorted({x[0] for one in asked for x in one["said"]})
    heat = read_config(run)["temperature"]
    drawn = "greedy" if heat == 0 else f"sampled at temperature {heat:g}"
    notes = {
        "loop": "A prompt of the loop. Greedy: the answers differ by the model alone.",
        "ordinary": "An ordinary prompt, nothing was trained on it. Greedy: the answers differ by "
                    "the model alone.",
        "held": f"A held-out prompt, {drawn}, with the same draws in every state: from the first "
                "word that differs on, the draws fall on other words too."}
    kinds = "".join(f'<span data-kind="{k}" hidden>{escape(v)}</span>' for k, v in notes.items())
    columns = "".join(f'<div data-state="{x}"><h3>{x} <span class="quiet"></span></h3>'
                      '<div class="said"></div></div>' for x in STATES)
    return (f'<div class="filters" id="same"><label class="grow">prompt <select name="prompt">'
            f"</select></label>{choice('round', 'at', {str(x): str(x) for x in rounds})}"
            f"{choice('marked words', 'marks', MARKS)}"
            '<button type="button" class="back">previous prompt</button>'
            '<button type="button" class="on">next prompt</button></div>'
            f'<p class="said" id="asked"></p><p class="quiet" id="kinds">{kinds}</p>'
            f'<div class="three">{columns}</div>'
            '<p class="quiet">Marked by words: <ins>underlined</ins> was added, <del>struck through'
            "</del> was left out.</p>")
