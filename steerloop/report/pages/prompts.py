"""diary.html: the same prompts answered by base and by every round's models; the last answers
first, those before them folded."""

from html import escape
from pathlib import Path
from typing import Any

from steerloop.report.diary import prompts, read_diary, said
from steerloop.report.pages.frame import page
from steerloop.report.pages.site import Status, masthead
from steerloop.report.run import axis_of, headline_of, last_by_round, word_of
from steerloop.report.text import interval
from steerloop.report.trait import unit
from steerloop.runfolder import layout
from steerloop.runfolder.files import write_whole

Row = dict[str, Any]
NOTES = {"ordinary": "ordinary, nothing was trained on it", "loop": "a prompt of the loop"}


def write_prompts(run: Path, measured: list[dict[str, Any]], status: Status) -> None:
    """Write diary.html; `measured` are the run's `states`."""
    down, up = axis_of(run)
    lead = (f"The same prompts, answered by the untouched model (base), under the vector (steered) "
            f"and after the round without it (healed). Wanted: {down} down, {up} up. Decoding is "
            "greedy: answers differ by the model alone; […] marks where the length limit ended "
            "one.")
    body = masthead(run, layout.DIARY_PAGE, status, lead) + answers(run, measured)
    text = page(f"same prompts: {run.name}", body, live=status == "running")
    write_whole(run / layout.DIARY_PAGE, lambda path: path.write_text(text, encoding="utf-8"))


def answers(run: Path, measured: list[dict[str, Any]]) -> str:
    """Every prompt with its answers."""
    diary = read_diary(run)
    if diary.is_empty():
        return '<p class="quiet">No answers were taken in this run yet.</p>'
    healed = {e["round"]: e["moved"] for e in measured if e["state"] == layout.HEALED}
    parts = []
    for number, (prompt, kind, rows) in enumerate(prompts(diary), 1):
        rounds = sorted({r for r, _ in rows}, reverse=True)
        base = next((x for key, x in rows.items() if key[1] == layout.BASE), None)
        first = [HEAD, '<div class="when">base</div>' + answer(base, layout.BASE, " wide"),
                 *of_round(rows, rounds[0])]
        rest = [x for round in rounds[1:] for x in of_round(rows, round)]
        before = f"{len(rounds) - 1} earlier round{'s' * (len(rounds) > 2)}"
        more = (f"<details><summary>{before}</summary>"
                f'<div class="side">{"".join(rest)}</div></details>') if rest else ""
        parts.append(f'<section id="prompt-{number}"><h2 class="prompt">{escape(prompt)}</h2>'
                     f'<div class="quiet">{NOTES[kind]}</div><div class="side">{"".join(first)}'
                     f"</div>{more}{evidence(run, rows, healed)}</section>")
    return "".join(parts)


HEAD = '<div class="head"></div><div class="head">steered</div><div class="head">healed</div>'


def answer(row: Row | None, state: str, more: str = "") -> str:
    """One answer."""
    text = "" if row is None else said(row)
    return f'<div class="answer{more}" data-state="{escape(state)}">{escape(text)}</div>'


def of_round(rows: dict[tuple[int, str], Row], round: int) -> list[str]:
    """What was said under the vector of a round, and after it."""
    return [f'<div class="when">round {round + 1}</div>', *(
        answer(rows.get((round, x)), x) for x in (layout.STEERED, layout.HEALED))]


def evidence(
    run: Path, rows: dict[tuple[int, str], Row], healed: dict[int, dict[str, list[float]]]
) -> str:
    """By round, the dose behind a steered answer, and how far the student had moved; folded."""
    samples, lines, counted = last_by_round(run, "sample"), [], unit(headline_of(run))
    for round in sorted({r for r, _ in rows}):
        steered = rows.get((round, layout.STEERED))
        dose = f"dose {steered['dose']:.2f}" if steered else ""
        kappa = f"κ {samples[round]['kappa']:.2f}" if round in samples else ""
        moved = [f"{k} {interval(x)} {counted}" for k, x in healed.get(round, {}).items()]
        shift = f"healed {', '.join(moved or [word_of(run)])}" if round in healed else ""
        said = "; ".join(x for x in (dose, kappa, shift) if x)
        lines.append(f"<li>round {round + 1}: {escape(said)}</li>")
    return f"<details><summary>doses and shifts</summary><ul>{''.join(lines)}</ul></details>"
