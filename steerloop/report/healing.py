"""U2: does healing beat plain training? Of the round that was healed last."""

from pathlib import Path
from typing import Any

import numpy as np

from steerloop.report.against import LEAST
from steerloop.report.coherence import coherent
from steerloop.report.estimates import Estimate, Weighed, mean, ratio, shifts
from steerloop.report.rivals import PPL, decisive, margin, shown
from steerloop.report.rule import EFFECT, Bound, Verdict, judge
from steerloop.report.run import (
    axis_of,
    beaten,
    events,
    frames_of,
    headline_of,
    last_healed,
    last_round,
    word_of,
)
from steerloop.report.text import interval, markdown
from steerloop.report.trait import DIGITS, Frames, shift, sides, weights
from steerloop.report.trait import measured as measured_of
from steerloop.runfolder import layout
from steerloop.runfolder.files import read_table
from steerloop.texts.foundations import FOUNDATIONS

RETAIN = 0.25  # least share of the steered shift that is there without steering
ALIKE = 0.5  # mean shift of the other foundations over the target's: above it, all move alike
PER_TOKEN = 0.001  # nats: of readouts other than digits, what is more than nothing
FIRES = 0.01  # least share of rows over τ, in the round where it is largest


def healing_verdict(
    run: Path, cfg: dict[str, Any], measured: list[dict[str, Any]], floor: float
) -> Verdict:
    """U2, of the round that was healed last."""
    verdict = Verdict("U2: does healing beat plain training?")
    last, headline = last_healed(measured), headline_of(run)
    if headline:
        trait_lines(verdict, run, cfg, headline, last)
    else:
        verdict.moved, verdict.missing = False, f"the trait was not measured ({word_of(run)})"
    now, base = frames_of(run, last, "healed"), frames_of(run, 0, "base")
    verdict.line("coherence against base", coherence_line(now, base, cfg), Bound(floor, best=1.0),
                 name="incoherent")
    verdict.add("coherence per nat of trait", value=cost(last_round(measured)["healed"]))
    heals = [e for e in events(run) if e["stage"] == "heal"]
    if cfg["barrier"] in ("kl_rev", "kl_fwd"):
        verdict.fact("rows over τ while healing, by round",
                     ", ".join(f"{e['active']:.3f} (τ {e['tau']:.3g}, operating KL "
                               f"{e['operating_kl']:.3g})" for e in heals),
                     f"≥ {FIRES:g} in one", max(e["active"] for e in heals) >= FIRES,
                     "inert barrier")
    verdict.add("barrier's gradient / NLL's, by round", value=", ".join(
        "not measured" if e["pull"] is None else f"{e['pull']:.2f}" for e in heals))
    against_nll(verdict, run, cfg, measured)
    return verdict


def trait_lines(
    verdict: Verdict, run: Path, cfg: dict[str, Any], headline: str, last: int
) -> None:
    """Has the trait moved, is it there without steering, is it what the student says; and of
    digits, is it that trait alone."""
    axis = axis_of(run)
    base, healed, steered = (frames_of(run, *x) for x in (
        (0, "base"), (last, "healed"), (last, "steered")))
    w = weights(headline, base, cfg)
    least = LEAST if headline == DIGITS else PER_TOKEN
    moved, under = (shift(headline, x, base, axis, w) for x in (healed, steered))
    here, kept = moved.within(w), ratio(moved, under, w, least)
    gone = judge(EFFECT, kept, Bound(RETAIN, best=1.0))[0] == "FAIL"
    turned = here.value <= -least and here.high < 0
    name = "reversed" if turned else "" if gone else "no trait"
    said = verdict.line(f"{headline}: from {axis[0]} to {axis[1]} without steering (nats)", here,
                        Bound(least), EFFECT, name)
    verdict.moved = said == "PASS"
    spoken_line(verdict, cfg, axis, headline, healed, base)
    side_lines(verdict, cfg, axis, headline, healed, base)
    verdict.line(f"retain: shift healed / shift steered ({under.within(w).brief})", kept,
                 Bound(RETAIN, best=1.0), EFFECT, "" if turned else "undone")
    if headline == DIGITS:
        surgical_lines(verdict, axis, healed, base, w)


def spoken_line(
    verdict: Verdict, cfg: dict[str, Any], axis: list[str], headline: str, healed: Frames,
    base: Frames,
) -> None:
    """No success without this: what the student says shows the trait, too."""
    if "said" not in measured_of(base, axis):
        verdict.missing = "said was not measured: the trait has no held-out prompts"
        return
    if headline == "said":
        return
    w = weights("said", base, cfg)
    spoke = shift("said", healed, base, axis, w).within(w, "+.3f")
    agreed = verdict.line("said: its own answers, read by the base (nats per token)", spoke,
                          Bound(PER_TOKEN), EFFECT, "unsaid")
    verdict.moved = verdict.moved and agreed == "PASS"


def side_lines(
    verdict: Verdict, cfg: dict[str, Any], axis: list[str], headline: str, healed: Frames,
    base: Frames,
) -> None:
    """Of contrasted answers both sides, apart: a difference flatters what makes one improbable."""
    found = {}
    for side, steps in sides(healed, base).items():
        w = weights("contrast", base, cfg)
        means = w @ steps
        found[side] = Weighed(means, steps - means[:, None]).within(w, "+.3f")
        pole = axis[1] if side == "positive" else axis[0]
        verdict.add(f"contrast: {pole} answers alone (nats per token)", value=found[side].text)
    if headline == "contrast" and verdict.moved and found["positive"].high < 0:
        verdict.named.append("one-sided")


def surgical_lines(
    verdict: Verdict, axis: list[str], healed: Frames, base: Frames, w: np.ndarray
) -> None:
    """Of digits: have the other foundations stayed?"""
    moves, down = shifts(healed[0], base[0], w), FOUNDATIONS.index(axis[0])
    others = [i for i, f in enumerate(FOUNDATIONS[:-1]) if f not in axis]
    most = max(others, key=lambda i: abs(moves[i].values[0]))
    size = abs(moves[down]).within(w).value
    verdict.line(f"surgical: {axis[0]} moved further than {FOUNDATIONS[most]} "
                 f"({moves[most].within(w).brief}, the most of the others), by",
                 (abs(moves[down]) - abs(moves[most])).within(w), Bound(0.0, best=size))
    rest = mean([moves[i] for i in others])
    verdict.line("alike: mean shift of the other moral foundations / that of the target",
                 ratio(rest, moves[down], w, LEAST), Bound(ALIKE, best=0.0), name="alike")


def coherence_line(now: Frames, base: Frames, cfg: dict[str, Any]) -> Estimate:
    """Coherence as a number of the verdicts."""
    _, ends, n = coherent(now, base, cfg)
    return Estimate(*ends, n, share=True, form=".3f")


def against_nll(
    verdict: Verdict, run: Path, cfg: dict[str, Any], measured: list[dict[str, Any]]
) -> None:
    """U2's other half: the same data distilled without a barrier, at the same shift."""
    rows = {x["rival"]: x for x in beaten(run, measured)}
    if verdict.missing:
        return
    if cfg["barrier"] == "nll":
        verdict.missing = "this run is plain training: it has nothing to beat"
    elif "nll" not in rows:
        verdict.missing = "plain distillation was not measured: run with --baselines"
    elif why := rows["nll"].get("because"):
        verdict.missing = f"plain distillation: {why}"
    else:
        name, gain = decisive(rows["nll"])
        n = rows_behind(run, cfg, last_healed(measured), name)
        verdict.line(f"plain distillation of the same data, at the same shift, is beaten "
                     f"({rows['nll']['beaten']}): gain in {name}", Estimate(*gain, n, form="+.3f"),
                     Bound(margin(name)), EFFECT)
    if cfg["barrier"] != "nll" and "nll" in rows:
        verdict.add("its coherence per nat of trait", value=cost(last_round(measured)["nll"]))
    verdict.reading = ["Student and rivals at the same shift:\n\n"
                       + markdown(shown(list(rows.values())))]


def rows_behind(run: Path, cfg: dict[str, Any], round: int, name: str) -> int:
    """How many items a measure of the student comes from."""
    if name == "coherence":
        return coherent(frames_of(run, round, "healed"), frames_of(run, 0, "base"), cfg)[2]
    items = read_table(layout.items(run, round, "healed"))
    return len(items.filter(measure="mundane_nll" if name == PPL else name))


def cost(event: dict[str, Any]) -> str:
    """Coherence gained or lost per nat, as text."""
    if event["slope"] is None:
        return f"not defined: the trait is not known to have moved by {LEAST:g} nats"
    return interval(event["slope"], "+.4f")
