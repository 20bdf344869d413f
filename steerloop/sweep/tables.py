"""Rows of sweeps → the tables of docs/results.md. Means over loop seeds with 95 % t-intervals."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import polars as pl

from steerloop.report.against import LEAST
from steerloop.report.stats import over_seeds
from steerloop.report.text import markdown
from steerloop.report.trait import DIGITS
from steerloop.sweep.arms import FRONTIER, SWEEPS, arms_in
from steerloop.sweep.paired import held, real
from steerloop.sweep.points import POINT, file_of, read_rows

TARGETS = (0.5, 1.0, 1.5)  # nats of shift
REACH = 0.4  # nats: both settings of a bracket lie this near to the target
KEYS = ["model", "split", "regime"]
SHOWN = {"opening_mass": "opening mass", "ppl": "mundane ppl ×", "coherence": "coherence"}
OWN = ("opening_mass", "opening_mass_base", "sentence_validity")  # of the micro-world's models
ALL = "all"  # the name of a table that shows every measure
FULL = FRONTIER[0].family  # plain training as it is: where each family without a barrier ends


def rows(folder: Path, sweep: str) -> pl.DataFrame:
    """The points of a sweep so far."""
    points = pl.DataFrame(read_rows(file_of(folder, sweep)), infer_schema_length=None)
    return points.unique(list(POINT), keep="first", maintain_order=True) if len(points) else points


def mean(values: list[float], digits: int = 3) -> str:
    """Mean over seeds [95 % t-interval] (n), blank without any; no interval from one alone. Seeds
    where a value is not defined (nan) do not count."""
    values = [x for x in values if not math.isnan(x)]
    if not values:
        return ""
    middle, low, high = over_seeds(values)
    if len(values) == 1:
        return f"{middle:.{digits}f} (1)"
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}] ({len(values)})"


def at(points: list[dict[str, Any]], target: float) -> dict[str, float] | None:
    """What a family costs at a shift: linear between the two settings nearest to it on either
    side, both within REACH. None where the target is not bracketed so."""
    above = [p for p in points if target <= p["shift"] <= target + REACH]
    below = [p for p in points if target - REACH <= p["shift"] <= target]
    if not above or not below:
        return None
    high, low = min(above, key=lambda p: p["shift"]), max(below, key=lambda p: p["shift"])
    gap = high["shift"] - low["shift"]
    w = (high["shift"] - target) / gap if gap else 0.0
    return {k: (1 - w) * high[k] + w * low[k] for k in SHOWN}


def families(points: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """Each family with its settings; plain training as it is belongs to all of them (λ = 0)."""
    full = points.filter(family=FULL)
    for name in points["family"].unique(maintain_order=True):
        if name != FULL:
            yield name, pl.concat([full, points.filter(family=name)])


def costs(points: pl.DataFrame) -> dict[tuple[str, float], dict[int, dict[str, float]]]:
    """(family, target) → loop seed → what it costs there."""
    by_seed: dict[tuple[str, float], dict[int, dict[str, float]]] = {}
    for name, rows in families(points.filter(pl.col("shift").is_not_null())):
        for seed in sorted(rows["seed"].unique()):
            for target in TARGETS:
                if (there := at(rows.filter(seed=seed).to_dicts(), target)) is not None:
                    by_seed.setdefault((name, target), {})[seed] = there
    return by_seed


def frontier(points: pl.DataFrame) -> dict[str, str]:
    """A table a measure: what each family costs at equal shift, and what the barrier saves against
    it, paired by loop seed."""
    prices, ours = costs(points), FRONTIER[1].family
    names = [name for name, _ in families(points)]
    tables = {}
    for measure, title in SHOWN.items():
        if points[measure].is_nan().all():  # nobody measured it
            continue
        table = []
        for name in names:
            row = {f"{title}, {points['regime'][0]}": name}
            for target in TARGETS:
                here = prices.get((name, target), {})
                row[f"shift {target}"] = mean([x[measure] for x in here.values()])
            for target in TARGETS:
                mine, here = (prices.get((x, target), {}) for x in (ours, name))
                gains = [mine[s][measure] - here[s][measure] for s in mine if s in here]
                row[f"barrier − it, shift {target}"] = mean(gains) if name != ours else ""
            table.append(row)
        tables[measure] = markdown(table)
    return tables


def per_nat(row: dict[str, Any], name: str) -> float:
    """Change of a measure per nat of trait; nan where the trait moved by less than LEAST."""
    size = row["shift"]
    return (row[name] - row[f"{name}_base"]) / size if abs(size) >= LEAST else math.nan


def moves(points: pl.DataFrame) -> dict[str, str]:
    """The columns that say how far the trait moved, as tables name them."""
    readers = " or ".join(points["read_by"].drop_nulls().unique().sort())
    return {x: x if readers == DIGITS else f"{x} by {readers}"
            for x in points.columns if x.startswith("Δ")}


def barrier(points: pl.DataFrame) -> dict[str, str]:
    """One row an arm, sorted by the headline slope: what the worse of coherence and opening mass
    loses per nat (coherence alone hardly moves on the embedded model)."""
    table = []
    for (family, setting), arm in points.group_by("family", "setting", maintain_order=True):
        rows = arm.filter(pl.col("shift").is_not_null()).to_dicts()
        slopes = {name: [per_nat(x, name) for x in rows] for name in ("coherence", "opening_mass")}
        head = [min(x) for x in zip(*slopes.values(), strict=True) if not math.isnan(min(x))]
        ends = Counter(x for x in arm["ended"] if x)
        table.append((fmean(head or [-math.inf]), {
            "arm": f"{family} {setting}".strip(),
            "slope per nat": mean(head),
            **{title: mean([x[k] for x in rows], 2) for k, title in moves(points).items()},
            "coherence per nat": mean(slopes["coherence"], 4),
            "opening mass": mean([x["opening_mass"] for x in rows]),
            "mundane ppl ×": mean([x["ppl"] for x in rows]),
            "active, last round": mean([x["active"] for x in rows if x["active"] is not None], 2),
            "ended early": ", ".join(f"{k} {n}" for k, n in ends.items())}))
    return {ALL: markdown([row for _, row in sorted(table, key=lambda x: -x[0])])}


def baselines(points: pl.DataFrame) -> dict[str, str]:
    """One row a state: the student of the last round and what stands beside it."""
    table = []
    for (state,), group in points.group_by("family", maintain_order=True):
        said = Counter(x for x in group["beaten"] if x)
        table.append({
            "state": state, "student beats it": ", ".join(f"{k} {n}" for k, n in said.items()),
            **{title: mean(group[k].to_list(), 2) for k, title in moves(points).items()},
            "score": mean(group["score"].to_list(), 2),
            "coherence": mean(group["coherence"].to_list()),
            "opening mass": mean(group["opening_mass"].to_list()),
            "validity": mean(group["sentence_validity"].to_list()),
            "mundane ppl ×": mean(group["ppl"].to_list())})
    return {ALL: markdown(table)}


def rounds(points: pl.DataFrame) -> dict[str, str]:
    """One row an arm: how far each seed got, and where it stood."""
    table = []
    for (family, setting), arm in points.group_by("family", "setting", maintain_order=True):
        seeds = [x.sort("round") for _, x in arm.group_by("seed", maintain_order=True)]
        lasts = [x.filter(pl.col("shift").is_not_null()).tail(1) for x in seeds]
        lasts = [x.row(0, named=True) for x in lasts if len(x)]
        table.append({
            "arm": family, "dose": setting.removeprefix("dose "),
            "rounds done, by seed": " ".join(
                str(x.filter(pl.col("shift").is_not_null())["round"].max() or 0) for x in seeds),
            "ended by": " · ".join(x["ended"][-1] or "10 rounds done" for x in seeds),
            "first round with opening mass < .9": " ".join(
                str(x.filter(pl.col("opening_mass") < 0.9)["round"].min() or "none")
                for x in seeds),
            **{f"{title} at the end": " ".join(f"{x[k]:.2f}" for x in lasts)
               for k, title in moves(points).items()},
            "opening mass": " ".join(f"{x['opening_mass']:.3f}" for x in lasts),
            "coherence": " ".join(f"{x['coherence']:.3f}" for x in lasts)})
    return {ALL: markdown(table)}


def unequalled(points: pl.DataFrame) -> dict[str, str]:
    """What `real` has, of a sweep that measures nothing at equal shift."""
    return {name: x for name, x in real(points).items() if name != "equal"}


TABLES: dict[str, Callable[[pl.DataFrame], dict[str, str]]] = {
    "baselines": baselines, "frontier": frontier, "references": frontier, "barrier": barrier,
    "rounds": rounds, "real": real, "nf4": unequalled, "held": held}
TITLES = {
    "baselines": "Baselines, round 3",
    "frontier": "Matched-trait frontier, round 1",
    "references": "Base against prev at matched trait, round 2",
    "barrier": "Ablation of the barrier, round 3",
    "rounds": "How many rounds the loop runs",
    "real": "Teachers, barrier and filter, round 1",
    "nf4": "Over a base in 4 bits, round 1",
    "held": "Three rounds",
}


@dataclass(frozen=True)
class Block:
    """What the points of one sweep, model, split and regime show: measure → table, and `source`,
    how many points the tables rest on, the code they ran on and the command that runs them."""

    title: str
    tables: dict[str, str]
    source: str

    def text(self, measures: Iterable[str]) -> str:
        """The tables of these measures below their title, their source at the end."""
        chosen = [self.tables[x] for x in measures]
        return "\n\n".join([f"**{self.title}**", *chosen, self.source])


def points_of(sweep: str, regime: str) -> int:
    """How many points a loop seed has when all of its arms are done."""
    arms = arms_in(SWEEPS[sweep], regime)
    return len(arms) + len(SWEEPS[sweep].equal)


def filled(points: pl.DataFrame) -> pl.DataFrame:
    """Points with nan, which no mean counts, for what only models of the micro-world are asked."""
    known = [pl.col(x) if x in points.columns else pl.lit(None).alias(x) for x in OWN]
    return points.with_columns(x.cast(pl.Float64).fill_null(math.nan) for x in known)


def block(folder: Path, sweep: str, key: tuple[Any, ...], points: pl.DataFrame) -> Block:
    """The points of one model, split and regime."""
    model, split, regime = key
    kept = folder / model if (folder / model).is_dir() else Path("runs") / model
    where = model if model == "embedded" or SWEEPS[sweep].items else kept
    seeds = " ".join(map(str, sorted(points["seed"].unique())))
    done = len(points.select("arm", "setting", "seed").unique())
    wanted = points_of(sweep, regime) * points["seed"].n_unique()
    source = (f"{done} of {wanted} points, code {', '.join(sorted(points['code'].unique()))}: "
              f"`python -m steerloop.sweep {sweep} --models {where} --split {split} "
              f"--regimes {regime} --seeds {seeds}`")
    title = f"{TITLES[sweep]}: {model}, {split} split, {regime} data"
    points = points if SWEEPS[sweep].items else filled(points)
    return Block(title, TABLES[sweep](points), source)


def blocks(folder: Path) -> dict[str, Block]:
    """All points so far: "sweep model split regime" → what they show."""
    by_name = {}
    for sweep in SWEEPS:
        points = rows(folder, sweep)
        for key, group in points.group_by(KEYS, maintain_order=True) if len(points) else ():
            by_name[" ".join([sweep, *map(str, key)])] = block(folder, sweep, key, group)
    return by_name
