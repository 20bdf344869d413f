"""Does the student beat its rivals? Only states that moved the trait alike are compared, and only
within what the run calibrated: far beyond it steering breaks the text, and any student wins.
"""

from collections.abc import Callable
from typing import Any

from steerloop.report.text import interval
from steerloop.report.trait import DIGITS

Gain = Callable[[str, str, str], list[float]]
PPL = "mundane ppl ×"
MARGIN = {"coherence": 0.002, PPL: 0.002}  # smaller differences are ties
WIDER = 0.005  # for whatever the probes measure, shares of 1
PROBED = ("opening_mass", "sentence_validity")
COMPARED = (*MARGIN, *PROBED)
NEAR = 0.05  # share of the shift, and nats of digits: what counts as the same shift
PER_TOKEN = 0.01  # and nats of a readout per token, whose shifts are smaller
SHIFTS = "shift student, rival"
COSTS = "{}: student, rival; gain"


def same(readout: str) -> float:
    """Nats within which two shifts are the same by a readout."""
    return NEAR if readout == DIGITS else PER_TOKEN


def pairs(by_name: dict[str, dict[str, Any]]) -> dict[str, tuple[str, str] | None]:
    """Rival → the names of (student, rival) at the same shift; None where nothing matches.

    `by_name` are the measured states of the last round, as `steerloop.baselines` names them.
    """
    known: dict[str, tuple[str, str] | None] = {"steering": ("healed", "matched")}
    for name in ("nll", "taught"):
        if name in by_name:
            turned = f"{name}_turned" in by_name
            known[name] = ("healed", f"{name}_turned") if turned else (f"healed_as_{name}", name)
    if "prompted" in by_name:
        known["prompt"] = ("healed_as_prompted", "prompted")
    return {k: v if v and set(v) <= by_name.keys() else None for k, v in known.items()}


def sides(event: dict[str, Any], base: dict[str, float]) -> dict[str, float]:
    """What a comparison looks at: coherence, perplexity of ordinary text over base, legality."""
    now = event["measures"]
    shares = {k: now[k] for k in ("coherence", *PROBED) if k in now}
    return {PPL: now["ppl_mundane"] / base["ppl_mundane"]} | shares


def outcomes(
    by_name: dict[str, dict[str, Any]], base: dict[str, float], gain: Gain, reach: float,
    near: float = NEAR,
) -> list[dict[str, Any]]:
    """One row per rival: both shifts, what each costs, and whether the student beats it.

    `near`: nats within which shifts are the same. `gain(student, rival, measure)` is [estimate,
    low, high] of what the student is better by.
    "yes": better somewhere and worse nowhere, by more than a margin and with 0 outside of the
    interval; "no" the other way round; "mixed" or "tie" else. Where nothing is compared there is
    no cost but the reason, `because`: "no match" where student and rival did not reach one shift,
    "OPEN" where one of them did at a dose beyond `reach`, the largest that was calibrated.
    """
    rows = []
    for rival, pair in pairs(by_name).items():
        if pair is None:
            rows.append({"rival": rival, "beaten": "no match",
                         "because": "it was not measured at one shift with the student"})
            continue
        moved = [by_name[x]["headline"] for x in pair]
        if None in moved:
            rows.append({"rival": rival, "beaten": "no match",
                         "because": "no readout sees the trait (U0), so no shift can be matched"})
            continue
        shift = [x[0] for x in moved]
        row = {"rival": rival, "beaten": "no match", SHIFTS: tuple(shift)}
        if why := apart(shift, max(by_name[x]["dose"] for x in pair), reach, near):
            rows.append(row | why)
            continue
        ours, theirs = (sides(by_name[name], base) for name in pair)
        gains = {k: gain(*pair, k) for k in ours}
        better = [k for k, (x, low, _) in gains.items() if x > margin(k) and low > 0]
        worse = [k for k, (x, _, high) in gains.items() if x < -margin(k) and high < 0]
        word = {(True, False): "yes", (False, True): "no", (False, False): "tie"}
        rows.append(row | {"beaten": word.get((bool(better), bool(worse)), "mixed")}
                    | {COSTS.format(k): (ours[k], theirs[k], *gains[k]) for k in ours})
    return rows


def apart(shift: list[float], dose: float, reach: float, near: float) -> dict[str, str]:
    """What a row says of two states that cannot be compared, {} of others: their shifts, nats, and
    the larger of their doses."""
    if dose > reach * (1 + 1e-6):  # as rounding goes
        return {"beaten": "OPEN", "because": f"the match is at dose {dose:.3g}, and {reach:.3g} is "
                                             "the largest that was calibrated (c* × --multiples)"}
    if abs(shift[0] - shift[1]) <= near + NEAR * abs(shift[1]):
        return {}
    end = f" up to dose {reach:.3g}, the largest calibrated" if dose > 0 else ""
    return {"because": f"student and rival did not reach one shift{end}"}


def margin(measure: str) -> float:
    """Smaller gains are ties."""
    return MARGIN.get(measure, WIDER)


def decisive(row: dict[str, Any]) -> tuple[str, list[float]]:
    """The measure that a row of `outcomes` turns on, and the student's gain in it: where it is
    worse in any, the worst of those; else the one that comes nearest to a gain beyond doubt."""
    gains = {k: list(row[COSTS.format(k)][2:]) for k in COMPARED if COSTS.format(k) in row}

    def certainty(name: str) -> tuple[bool, bool, float]:
        value, low, high = (x - margin(name) for x in gains[name])
        return low >= 0, high >= 0, value

    worse = [k for k, (value, _, high) in gains.items() if value < -margin(k) and high < 0]
    name = min(worse, key=certainty) if worse else max(gains, key=certainty)
    return name, gains[name]


def shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`outcomes` for reading: (student, rival) and (student, rival, gain, low, high) as text."""
    def text(value: Any) -> Any:
        if not isinstance(value, tuple):
            return value
        ours, theirs, *gain = value
        return f"{ours:.3f} {theirs:.3f}" + (f"; {interval(gain, '+.3f')}" if gain else "")

    return [{k: text(v) for k, v in row.items()} for row in rows]
