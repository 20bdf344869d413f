"""Gate U0: can the instruments see, and is what they see the vector?

    sees       a readout knows what it is about: it is right about labels, or persona texts make
               answers that show the trait likelier than their opposites; and its two wordings agree
    specific   it answers to the vector as to no null vector of the same extraction at the same KL
    power      the smallest shift that its items can show

The 5 % of `specific` hold over the whole decision: responses are standardised by their spread over
the vector and its nulls, the largest over readouts is ranked among the largest of every null, and
single readouts are held against those maxima (Westfall & Young 1993).
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from steerloop.report.stats import Z, difference, wilson
from steerloop.report.text import interval
from steerloop.texts.foundations import FOUNDATIONS

READOUTS = ("digits", "reasons", "said", "contrast")  # the first valid one is the headline
PROMPTED, VECTOR, NULL = "prompt", "vector", "null"  # directions
CHANCE = 1.5  # times chance: the least accuracy against labels
AGREE = 0.3  # least rank correlation of two wordings
ALPHA = 0.05
FEWEST, SHOWN = 8, 0.5  # items under every direction: the least, and what they can show (`enough`)
SEED, RESAMPLES = 0, 1000  # of the intervals here
PASS, SEES, BLIND, UNSPECIFIC, OFF = "PASS", "sees", "blind", "unspecific", "off"


@dataclass
class Seen:
    """One readout, judged. Numbers are nats towards `up`, None where they were not measured."""

    readout: str
    fault: str = ""  # why it does not see
    response: float | None = None  # half of its change from -c* to +c*
    low: float | None = None
    high: float | None = None
    nulls: float | None = None  # root mean square of the same under null vectors
    p: float | None = None  # of a response so large, over all readouts
    power: float | None = None  # smallest shift that its items can show at 95 %
    specific: bool = False


def axis_values(readout: str, frame: Any, axis: list[str]) -> list[float]:
    """A readout's table → a value per item, nats towards the second of `axis` (down, up)."""
    down, up = axis
    if readout == "digits":
        return (-frame[f"p_{down}"].log()).to_list()
    if readout == "contrast":
        return (np.array(frame["contrast_positive"]) - frame["contrast_negative"]).tolist()
    return (np.array(frame[f"reasons_{up}"]) - frame[f"reasons_{down}"]).tolist()


def columns(items: pl.DataFrame, start: str) -> dict[str, list[float]]:
    """The measures that begin so, as lists over items."""
    parts = items.filter(pl.col("measure").str.starts_with(start)).sort("item").partition_by(
        "measure", as_dict=True)
    return {str(name): part["value"].to_list() for (name,), part in parts.items()}


def sees(
    base: list[pl.DataFrame], prompted: pl.DataFrame, axis: list[str]
) -> dict[str, str]:
    """Readout → why it does not see, '' where it does; only those that were measured and have the
    axis. `base` are the frames of the untouched base, `prompted` the rows under persona texts."""
    rows, items, said = base
    found = {}
    if set(axis) <= set(FOUNDATIONS) and len(rows):
        found["digits"] = accurate(rows["top1"].to_numpy(), len(FOUNDATIONS)) or agreeing(
            *(np.log(rows[f"{x}_{axis[0]}"].to_numpy()) for x in ("forward", "reverse")))
        if columns(items, "reasons_"):
            turns = [of_turn(prompted, x) for x in (0, 1)]
            found["reasons"] = reasoned(turns, rows, axis)
    if len(said):
        found["said"] = told_apart("said", prompted)
    if columns(items, "contrast_"):
        found["contrast"] = told_apart("contrast", prompted)
    return {x: found[x] for x in READOUTS if x in found}


def accurate(hits: np.ndarray, options: int) -> str:
    """Why answers are not better than chance against labels; '' if they are."""
    share, low, high = wilson(hits)
    wanted = CHANCE / options
    if low >= wanted:
        return ""
    return (f"right {interval([share, low, high], '.2f')} of the time, and {wanted:.2f} is wanted "
            f"(chance {1 / options:.2f})")


def of_turn(prompted: pl.DataFrame, turn: int) -> dict[str, list[float]]:
    """Reasons of all foundations, the wordings dealt to the vignettes from this `turn` on."""
    mine = prompted.filter(pl.col("readout").str.starts_with("reasons_"), sign=turn).sort("item")
    parts = mine.partition_by("readout", as_dict=True, maintain_order=True)
    return {str(name): part["value"].to_list() for (name,), part in parts.items()}


def reasoned(turns: list[dict[str, list[float]]], rows: pl.DataFrame, axis: list[str]) -> str:
    """Why the likelihood of reasons does not see; '' if it does. The two wordings take turns over
    the vignettes in order of their texts, so each has one half of either of `turns`; `rows` are
    what digits say of the same vignettes."""
    if not all(turns):
        return "there is one wording alone, and nothing to hold it against"
    foundations = [x.removeprefix("reasons_") for x in turns[0]]
    one, two = (np.array([x[f"reasons_{f}"] for f in foundations]) for x in turns)
    labels, place = rows["foundation"].to_list(), rows["vignette"].rank("ordinal").to_numpy()
    even = place % 2 == 1  # ranks begin with 1
    of_these = np.isin(labels, foundations)
    sides = []
    for number, logp in enumerate((np.where(even, one, two), np.where(even, two, one)), 1):
        centred = logp - logp.mean(1, keepdims=True)
        picks = np.array(foundations)[centred.argmax(0)]
        hits = (picks == np.array(labels))[of_these].astype(float)
        if fault := accurate(hits, len(foundations)):
            return f"wording {number}: {fault}"
        down, up = (centred[foundations.index(f)] for f in axis)
        sides.append(up - down)
    return agreeing(*sides)


def told_apart(readout: str, prompted: pl.DataFrame) -> str:
    """Why a readout does not know what shows the trait from its opposite; '' if it does: over
    items, the poles of persona texts make either more likely, and its two wordings say so alike."""
    halves = by_wording(readout, prompted)
    found = difference(np.mean(halves, 0), SEED, RESAMPLES)
    if found[1] <= 0:
        return ("answers that show the trait over their opposites, by what persona texts make of "
                f"them: {interval(found, '+.3f')}")
    if np.array_equal(*halves):
        return "there is one wording alone, and nothing to hold it against"
    return agreeing(*(np.concatenate([x, -x]) for x in halves), len(halves[0]))  # zero counts


def by_wording(readout: str, prompted: pl.DataFrame) -> list[np.ndarray]:
    """What persona texts make of answers that show the trait against their opposites: an item's
    value by either wording of a readout."""
    return [prompted.filter(readout=f"{readout}_{x}").sort("item")["value"].to_numpy()
            for x in (1, 2)]


def enough(readouts: list[str], prompted: pl.DataFrame, most: int) -> int:
    """How many items to ask under every direction: so many that they can show SHOWN times what
    persona texts make of the answers, by the readout that needs the most; from FEWEST to `most`."""
    needed = [float(FEWEST)]
    for readout in readouts:
        halves = by_wording(readout, prompted)
        if len(halves[0]) > 1:
            made = np.mean(halves, 0)
            needed.append((Z * made.std(ddof=1) / (SHOWN * made.mean())) ** 2)
    return math.ceil(min(max(needed), most))


def agreeing(a: np.ndarray, b: np.ndarray, n: int = 0) -> str:
    """Why two wordings do not agree over items (n of them, if not all are); '' if they do."""
    r, low, high = spearman(a, b, n)
    if r >= AGREE and low > 0:
        return ""
    return f"its two wordings agree {interval([r, low, high], '.2f')} over items, {AGREE} is wanted"


def ranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 0; equals share their mean."""
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return (ends - (counts + 1) / 2)[place]


def spearman(a: np.ndarray, b: np.ndarray, n: int = 0) -> tuple[float, float, float]:
    """Rank correlation with its 95 % interval (Fisher's z, with the variance of Fieller, Hartley &
    Pearson 1957), from n independent pairs if not all are. Of constants it is 0."""
    x, y = (ranks(v) - (len(v) - 1) / 2 for v in (a, b))
    scale = np.sqrt((x @ x) * (y @ y))
    r = float(x @ y / scale) if scale else 0.0
    half = Z * np.sqrt(1.06 / max((n or len(a)) - 3, 1))
    middle = np.arctanh(np.clip(r, -0.999999, 0.999999))
    return r, float(np.tanh(middle - half)), float(np.tanh(middle + half))


def odd(table: pl.DataFrame) -> dict[tuple[str, str], np.ndarray]:
    """(direction, readout) → per item half of the change from -c* to +c*. That of digits is of the
    log of a mean (see trait.py): an item counts by its pull on it."""
    both = table.filter(sign=1).join(
        table.filter(sign=-1), on=["direction", "readout", "item"], suffix="_less").sort("item")
    found = {}
    for (d, r), part in both.partition_by("direction", "readout", as_dict=True).items():
        more, less = part["value"].to_numpy(), part["value_less"].to_numpy()
        if r == "digits":
            p, q = np.exp(-more), np.exp(-less)
            change = np.log(q.mean() / p.mean()) + q / q.mean() - p / p.mean()
        else:
            change = more - less
        found[str(d), str(r)] = change / 2
    return found


def specific(means: dict[str, np.ndarray]) -> dict[str, tuple[float, bool]]:
    """Readout → chance of a response so large, and whether it is specific. `means` are, by readout,
    the mean responses (1 + k): that to the vector, then those to k null vectors."""
    if not means:
        return {}
    scaled = np.array([x / max(np.sqrt((x**2).mean()), 1e-12) for x in means.values()])
    most = np.abs(scaled[:, 1:]).max(0)  # of each null, over readouts
    p = {x: (1 + (most >= z).sum()) / (1 + len(most))
         for x, z in zip(means, scaled[:, 0], strict=True)}
    return {x: (float(chance), bool(chance <= ALPHA)) for x, chance in p.items()}


def judged(
    base: list[pl.DataFrame], responses: pl.DataFrame, axis: list[str]
) -> list[Seen]:
    """Every readout that was measured; `responses` are those of `steerloop.sight`."""
    prompted = responses.filter(direction=PROMPTED)
    steps = odd(responses.filter(pl.col("direction") != PROMPTED))
    found, means = [], {}
    for readout, fault in sees(base, prompted, axis).items():
        seen = Seen(readout, fault)
        found.append(seen)
        if (VECTOR, readout) not in steps:
            continue
        mine = steps[VECTOR, readout]
        seen.response, seen.low, seen.high = difference(mine, SEED, RESAMPLES)
        nulls = [x.mean() for (d, r), x in steps.items() if r == readout and d.startswith(NULL)]
        seen.nulls = float(np.sqrt(np.mean(np.square(nulls))))
        seen.power = float(Z * mine.std(ddof=1) / len(mine) ** 0.5)
        means[readout] = np.array([mine.mean(), *nulls])
    chances = specific(means)
    for seen in found:
        if seen.readout in chances:
            seen.p, seen.specific = chances[seen.readout]
    return found


def verdict(found: list[Seen], asked: bool = True) -> dict[str, Any]:
    """What U0 comes to: `verdict`, `headline` (the readout that all of the run is read by, '' where
    nothing is measured), `why`, and the readouts. Where nobody `asked` for a vector, seeing is
    enough."""
    able = [x for x in found if not x.fault]
    valid = [x for x in able if x.specific or not asked]
    if valid:
        said, why = (PASS if asked else SEES), ""
    elif able:
        near = max(able, key=lambda x: (x.response or 0) / (x.nulls or 1))
        said = UNSPECIFIC
        why = (f"{near.readout} answers {near.response:+.3f} nats to the vector, and null vectors "
               f"of the same extraction at the same KL do {near.nulls:.3f} (root mean square; p "
               f"{near.p:.2f} over all readouts)")
    else:
        said = BLIND
        why = "; ".join(f"{x.readout}: {x.fault}" for x in found) or "there is nothing to read"
    return {"verdict": said, "headline": valid[0].readout if valid else "", "why": why,
            "readouts": [asdict(x) for x in found]}
