"""map.html and report.html: where a run went, and what was measured."""

import json
import math
from html import escape
from pathlib import Path
from typing import Any

from steerloop.report.against import LEAST
from steerloop.report.pages.completions import account
from steerloop.report.pages.frame import page
from steerloop.report.pages.map import STEPS, Titles, map_figure, went
from steerloop.report.pages.markup import table
from steerloop.report.pages.rounds import rounds_panels
from steerloop.report.pages.site import Status, masthead, sections
from steerloop.report.pages.states import moves, states_table
from steerloop.report.run import axis_of, headline_of, last_by_round, word_of
from steerloop.report.text import interval
from steerloop.report.trait import DIGITS, unit
from steerloop.runfolder import layout
from steerloop.runfolder.files import read_document, write_whole


def write_overview(
    run: Path, shown: list[dict[str, Any]], plotly: str | None, status: Status
) -> None:
    """Write map.html and report.html; `shown` are measured states, `plotly` is of `page`."""
    shapes, said = {"figures": figures(run, shown)}, told(run, shown)
    for name, body in ((layout.MAP, charts(run, shown)),
                       (layout.REPORT, charts(run, shown) + report(run, shown))):
        whole = masthead(run, name, status, said) + body
        text = page(f"{Path(name).stem}: {run.name}", whole, shapes, ["charts.js"], plotly,
                    status == "running")
        write_whole(run / name, lambda path, text=text: path.write_text(text, encoding="utf-8"))


def figures(run: Path, measured: list[dict[str, Any]]) -> dict[str, Any]:
    """What plotly draws, by the id of its place."""
    samples, heals, drifts = (last_by_round(run, x) for x in ("sample", "heal", "drift"))
    rounds = {r: went(samples[r], heals.get(r, {}), drifts.get(r, {})) for r in samples}
    return {"map": map_figure(*placed(run, measured), rounds)}


def placed(run: Path, measured: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], Titles]:
    """States with their `place` on the map, as far as they have one, and what its axes are: of
    digits both foundations; else KL to base, as far as it is known, and the headline."""
    headline, (down, up) = headline_of(run), axis_of(run)
    if headline == DIGITS:
        there = [e | {"place": [e["moved"][f"Δ{f}"] for f in (down, up)]} for e in measured]
        return there, Titles(f"Δ{down} (nats)", f"Δ{up} (nats)", f"↖ {up} up, {down} down")
    spent = {r: e["kl_base"] for r, e in last_by_round(run, "drift").items()}
    there = []
    for event in measured if headline else []:
        healed = event["state"] == layout.HEALED and event["round"] in spent
        if healed or event["state"] == layout.BASE:
            kl = spent[event["round"]] if healed else 0.0
            there.append(event | {"place": [[kl] * 3, event["headline"]]})
    note = f"↑ {up}" if headline else f"{word_of(run)}: nothing here is a measure of the trait"
    return there, Titles("KL to base (nats per token)", f"Δ{up} ({unit(headline)})", note)


def told(run: Path, measured: list[dict[str, Any]]) -> str:
    """What the run came to so far, as one sentence."""
    healed = [e for e in measured if e["state"] == "healed"]
    if not healed:
        return "No round has been healed yet."
    last, (down, up), headline = healed[-1], axis_of(run), headline_of(run)
    rounds = f"{len(healed)} round{'s' * (len(healed) > 1)}"
    coherence = "Of its coherence nothing is known."
    if last["coherence"]:
        coherence = f"Coherence {interval(last['coherence'], '.3f')} of the base's."
    if not headline:
        return f"After {rounds}: trained, not measured ({word_of(run)}). {coherence}"
    if headline != DIGITS:
        return (f"After {rounds}, {headline} moved towards {up} by {interval(last['headline'])} "
                f"nats per token. {coherence}")
    x, y = (last["moved"][f"Δ{f}"] for f in (down, up))
    if max(map(abs, (*x, *y))) < LEAST:
        return (f"After {rounds}, answers moved by less than {LEAST:g} nats: Δ{down} "
                f"{interval(x)}, Δ{up} {interval(y)}. {coherence}")
    times = math.exp(abs(x[0]))
    word = "rarer" if x[0] < 0 else "more frequent"
    return (f"After {rounds}, answers that call a wrong a matter of {down} are {times:.2f} times "
            f"{word}: Δ{down} {interval(x)}, Δ{up} {interval(y)} nats. {coherence}")


def charts(run: Path, measured: list[dict[str, Any]]) -> str:
    """The map, what it shows in words, and what each round cost."""
    down, up = axis_of(run)
    said = (f"Change of the log of the mean probability of {up} against that of {down}, with 95 % "
            "intervals over vignettes. Filled: the student after each round; open: with the vector "
            "applied, tied to the student that learned from it.")
    if not headline_of(run):
        said = f"Nothing is drawn: no readout is a measure of the trait here ({word_of(run)})."
    elif headline_of(run) != DIGITS:
        said = (f"Shift towards {up} ({headline_of(run)}), with 95 % intervals "
                "over items, against what the student spent of KL to base. Filled: the student "
                "after each round.")
    others = headline_of(run) == DIGITS and any(e["state"] not in STEPS for e in measured)
    said += " Grey: what was measured beside the loop." if others else ""
    return f"""<section class="figures">
<figure><div class="plot" id="map" role="img" aria-label="{escape(up)} against {escape(down)}">
</div><figcaption>{escape(said)}</figcaption></figure>
{rounds_panels(run, measured)}
</section>"""


def report(run: Path, measured: list[dict[str, Any]]) -> str:
    """All of report.html below the figures."""
    return sections({
        "Every measured state": states_table(run, measured),
        "How far each thing moved": moves(run, measured),
        "Kept and dropped": account(run),
        "Settings and versions": settings(run),
    })


def settings(run: Path) -> str:
    """Every knob as resolved, and what ran."""
    known = read_document(run)
    versions = {"code": known.get("code") or "not in a git checkout"} | known.get("packages", {})
    versions |= known.get("hardware", {}) | {"source": known.get("source", "")[:12]}
    versions |= {f"input {k}": x for k, x in layout.contents(known.get("inputs", {})).items()}
    forced = [f"{k}: {x}" for change in known.get("resumed", []) for k, x in change.items()]
    versions |= {"changed when it was resumed": "; ".join(forced)} if forced else {}
    knobs = [{"knob": k, "value": json.dumps(v)} for k, v in known["config"].items()]
    return (table([{"what": k, "version": v} for k, v in versions.items()])
            + f"<details><summary>{len(knobs)} settings</summary>{table(knobs)}</details>")
