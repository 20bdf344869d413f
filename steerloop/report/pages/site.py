"""What all pages of a run share: its name, what is wrong with it, its state, and the way between
pages."""

import re
import shlex
from html import escape
from pathlib import Path
from typing import Literal

from steerloop.report.coherence import doubts
from steerloop.report.healing import FIRES
from steerloop.report.run import events, frames_of, last_by_round, sight_of, steered_by
from steerloop.report.sight import BLIND, UNSPECIFIC
from steerloop.report.verdicts import NAMES
from steerloop.runfolder import layout
from steerloop.runfolder.files import read_config
from steerloop.texts.printable import printable

WORDS = {  # of the links, in order
    layout.REPORT: "overview", layout.TRAINING: "training", layout.BROWSER: "completions",
    layout.DIARY_PAGE: "same prompts", layout.VERDICTS_PAGE: "verdicts", layout.MAP: "map",
}
STILL = {layout.BROWSER}  # pages in which a reader must not lose the place
SIGHT = {BLIND: "No readout sees the trait, so nothing here is a measure of it",
         UNSPECIFIC: "The vector is unspecific, so nothing here is a measure of the trait"}
INERT = "inert barrier"
NAMED = re.compile(r"^- \*\*(.+?)\*\*: (.+)$")
Fault = tuple[str, str]  # what is wrong, and why
GOING = '<span class="going">'  # what says that a run goes on
LIVE = '<b class="live">live</b>'  # what says that a heal does
Status = Literal["running", "ended", "cut short"]  # of a run


def faults(run: Path, status: Status) -> list[Fault]:
    """What is wrong with a run, worst first: with its instruments, its base, its barrier; what its
    verdicts call by a name; an end that did not come."""
    found, sight, cfg = [], sight_of(run), read_config(run)
    if sight.get("why"):
        found.append((SIGHT.get(sight["verdict"], f"U0 {sight['verdict']}"), sight["why"]))
    if layout.said(run, 0, layout.BASE).exists() and (
            doubt := doubts(frames_of(run, 0, layout.BASE), cfg)):
        found.append(("The base is no measure of coherence", doubt))
    heals = last_by_round(run, layout.HEAL).values()
    if cfg["barrier"].startswith("kl") and heals and max(e["active"] for e in heals) < FIRES:
        shares = ", ".join(f"{e['active']:.1%}" for e in heals)
        found.append(("The barrier is inert", f"rows over τ, by round: {shares}. "
                      + NAMES[INERT].partition(": ")[2]))
    found += [(name[0].upper() + name[1:], said) for name, said in named(run) if name != INERT]
    if status == "cut short":
        found.append(("This run has not come to its end", goes_on(run)))
    return found


def goes_on(run: Path) -> str:
    """How to go on with a run, its path as a shell takes it; one that cannot be typed is left
    out."""
    typed = shlex.quote(str(run)) if printable(str(run)) == str(run) else "with its folder"
    return f"python -m steerloop.train --resume {typed} goes on"


def named(run: Path) -> list[Fault]:
    """What verdicts.md calls by a name; nothing before the first round is through."""
    return [m.groups() for line in verdict_lines(run) if (m := NAMED.match(line))
            and m[1] in NAMES]


def verdict_lines(run: Path) -> list[str]:
    """The lines of verdicts.md; none before the first round is through."""
    path = layout.verdicts(run)
    return path.read_text(encoding="utf-8").split("\n") if path.is_file() else []


def judged(run: Path) -> list[dict[str, str]]:
    """Question and verdict as verdicts.md has them; none before the first round is through."""
    cells = [[x.strip() for x in line.strip("|").split("|")] for line in verdict_lines(run)
             if line.startswith(("| U", "| Dose", "| Tasks:"))]
    return [{"question": x[0], "verdict": x[1]} for x in cells]


def arm(run: Path) -> str:
    """What was run, in a line."""
    cfg = read_config(run)
    kind, weight = cfg["barrier"], f"λ {cfg['lam']:g}"
    taus = [f"{e['tau']:.3g}" for e in last_by_round(run, layout.HEAL).values()]
    tau = f"τ {', '.join(dict.fromkeys(taus)) or 'not set yet'}"
    how = {"nll": ["no barrier"], "spectral": [kind, weight]}.get(
        kind, [f"{kind} to {cfg['ref']}", weight, tau])
    said = [Path(cfg["model"]).name, *how, f"seed {cfg['seed']}", steered_by(run)]
    return " · ".join(x for x in said if x)


def healed(run: Path) -> int:
    """How many rounds are through."""
    return sum(e["stage"] == "evaluate" and e["state"] == layout.HEALED for e in events(run))


def progress(run: Path, status: Status, here: str) -> str:
    """How far a run is, as HTML; `here` is the page that says so."""
    follows = "; reload for newer" if here in STILL else ", this page follows it"
    going = f"{GOING}: running{follows}</span>" if status == "running" else ""
    return f"{healed(run)} of {read_config(run)['rounds']} rounds{going}"


def halted(text: str, run: Path) -> str:
    """A page of a run that was going on, of one that does no more."""
    before, _, rest = text.partition(GOING)
    rest = rest.partition("</span>")[2].replace(LIVE, LIVE.replace("live<", "stopped<"), 1)
    return f"{before}{GOING}: cut short; {escape(goes_on(run))}</span>{rest}"


def masthead(run: Path, here: str, status: Status, lead: str = "") -> str:
    """The top of a page of a run: name, what is wrong, state, where else to look (`here` is this
    page), `lead` and verdicts."""
    wrong = "".join(f"<li><b>{escape(what)}.</b> {escape(why)}</li>"
                    for what, why in faults(run, status))
    banner = f'<ul class="wrong" role="alert">{wrong}</ul>' if wrong else ""
    begun = status != "running" or healed(run) > 0  # before, there is the page of training alone
    links = "".join(link(name, word, name == here) for name, word in WORDS.items()
                    if begun or name == layout.TRAINING)
    chips = "".join(
        f'<a class="chip" href="{layout.VERDICTS_PAGE}#{anchor(x["question"])}">'
        f'{escape(x["question"].split(":")[0])} '
        f'<b class="{escape(x["verdict"])}">{escape(x["verdict"])}</b></a>' for x in judged(run))
    lead = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    return (f"<header><h1>{escape(run.name)}</h1>"
            f'<div class="quiet">{escape(arm(run))} · {progress(run, status, here)}</div>'
            f'{banner}'
            f'<nav><a href="../{layout.INDEX}">all runs</a>{links}</nav>'
            f'{lead}<div class="chips">{chips}</div></header>')


def link(name: str, word: str, here: bool) -> str:
    """A page by its word; the one that is looked at is none to follow."""
    return f'<a aria-current="page">{word}</a>' if here else f'<a href="{name}">{word}</a>'


def anchor(question: str) -> str:
    """The id that a question has on the page of verdicts."""
    return slug(question.split(":")[0])


def slug(text: str) -> str:
    """A text as an id."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())


def sections(parts: dict[str, str]) -> str:
    """Heading → HTML as the sections of a page, below links to them."""
    ids = {name: slug(name.split(",")[0]) for name in parts}
    links = "".join(f'<a href="#{x}">{escape(name)}</a>' for name, x in ids.items())
    return f'<nav class="inner">{links}</nav>' + "".join(
        f'<section id="{ids[k]}"><h2>{escape(k)}</h2>{v}</section>' for k, v in parts.items())
