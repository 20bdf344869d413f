"""What the harness kept of its samples → a table with a value per item, of which a measure is the
mean, or a ratio of sums."""

import math
from collections.abc import Iterator
from typing import Any

import polars as pl
from loguru import logger

from steerloop import UserError

COLUMNS = {
    "task": pl.String, "measure": pl.String, "part": pl.String, "item": pl.Int64,
    "doc": pl.String, "value": pl.Float64, "weight": pl.Float64, "better": pl.Int64,
}  # fmt: skip
KINDS = {  # how the harness puts items together → what our measure is called, and its unit in its
    "mean": ("{}", 1.0),
    "perplexity": ("log {}", -1.0),
    "weighted_perplexity": ("log {}", -1.0),
    "bits_per_byte": ("{}", -1 / math.log(2)),
}
LARGEST = 1e30  # of a value: squares of it, and sums of many, are numbers still


def table(
    names: dict[str, list[str]], tasks: dict[str, Any], samples: dict[str, list[dict[str, Any]]]
) -> pl.DataFrame:
    """Rows of (task, measure, part, item, doc, value, weight, better), in order: `task` is the name
    that was asked for and `part` one that it stands for, `doc` the hash of the item. A measure is
    Σ value / Σ weight, in the unit of the metric (log perplexities: nats); `better` is 1 where more
    of it is, else −1.

    Metrics that no value per item adds up to (F1, BLEU) are left out, which is said. Raises
    UserError for a task of which nothing is left, and for a value that is no finite number.
    """
    rows, left = [], {}
    for name, parts in names.items():
        for part in parts:
            found = list(rows_of(name, part, tasks[part], samples[part], left))
            if not found:
                raise UserError(f"--tasks {name}: no metric of {part} has a value per item "
                                f"({', '.join(sorted(left.get(part, []))) or 'there is no item'})")
            rows += found
    for part, metrics in left.items():
        logger.warning(f"tasks: {', '.join(sorted(metrics))} of {part} has no value per item, and "
                       "is left out")
    keys = ("task", "measure", "part", "item")
    return pl.DataFrame(rows, COLUMNS, orient="row").sort(keys, maintain_order=True)


def rows_of(
    name: str, part: str, task: Any, samples: list[dict[str, Any]], left: dict[str, set[str]]
) -> Iterator[tuple[Any, ...]]:
    """The rows of one part; what they leave out is noted in `left`."""
    how, better = task.aggregation(), task.higher_is_better()
    several = len({x["filter"] for x in samples}) > 1
    for sample in samples:
        for metric in sample["metrics"]:
            kind = getattr(how.get(metric), "__name__", "mean")  # as the harness does
            pair = weighed(kind, sample[metric])
            if kind not in KINDS or pair is None:
                left.setdefault(part, set()).add(metric)
                continue
            value, weight = pair
            if not (abs(value) <= LARGEST and 0 < weight <= LARGEST):
                raise UserError(f"--tasks {name}: {metric} of {part}, item {sample['doc_id']}, is "
                                f"{value}: its weights, or what was trained on them, give no "
                                "numbers; try --dtype float32 or a lower --lr")
            label, unit = KINDS[kind]
            label = label.format(metric) + (f", {sample['filter']}" if several else "")
            up = bool(better.get(metric, True))
            yield (name, label, part, int(sample["doc_id"]), sample["doc_hash"][:16],
                   unit * value, weight, 1 if up else -1)


def weighed(kind: str, value: Any) -> tuple[float, float] | None:
    """An item's value and weight, as the harness has them; None where it has none."""
    pair = value if isinstance(value, tuple | list) else (value, 1.0)
    if len(pair) != 2 or isinstance(value, tuple | list) != (
            kind in ("weighted_perplexity", "bits_per_byte")):
        return None
    try:
        return float(pair[0]), float(pair[1])
    except (TypeError, ValueError):
        return None
