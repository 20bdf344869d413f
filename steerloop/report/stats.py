"""Tables of rows → the numbers that are reported."""

import math
from typing import Any

import numpy as np
import polars as pl

from steerloop.kernels.forced_choice import FOUNDATIONS


def measures(rows: pl.DataFrame, items: pl.DataFrame) -> dict[str, float]:
    """Means over the two frames of `evaluate`. `<foundation>_nats` is the log of a mean p,
    `ppx_json` and `ppl_mundane` are perplexities; coherence is the smaller of p_ans_any and
    json_is_valid."""
    mean = rows.select(pl.col(pl.Float64).mean()).row(0, named=True)
    extra = dict(items.group_by("measure").agg(pl.mean("value")).sort("measure").rows())
    return ({f"{f}_nats": math.log(mean[f"p_{f}"]) for f in FOUNDATIONS}
            | {k: mean[k] for k in ("p_ans_any", "json_is_valid", "top1")}
            | {"coherence": min(mean["p_ans_any"], mean["json_is_valid"]),
               "ppx_json": math.exp(mean["scaffold_nll"]),
               "ppl_mundane": math.exp(extra.pop("mundane_nll"))} | extra)


def survival(table: pl.DataFrame) -> list[dict[str, Any]]:
    """Per dose: completions, the share kept, and the reasons of the rest."""
    reasons = pl.col("drop_reason").drop_nulls().value_counts(sort=True)
    return table.group_by("dose").agg(
        n=pl.len(), kept=pl.col("keep").mean(), reasons=reasons).sort("dose").to_dicts()


def profile(rows: pl.DataFrame) -> np.ndarray:
    """Probabilities (vignettes, foundations)."""
    return rows.select(f"p_{f}" for f in FOUNDATIONS).to_numpy()


def shifts(
    now: pl.DataFrame, base: pl.DataFrame, seed: int, resamples: int
) -> dict[str, dict[str, list[float]]]:
    """Per foundation, {"nats", "clr"} → [estimate, low, high] of the shift against base.

    `nats` is the change of the log of the mean probability; `clr` the same centred over the seven
    foundations (Aitchison's centred log-ratio). Intervals are 95 % percentile bootstraps over
    vignettes, paired and seeded. Raises ValueError when the two states saw other vignettes.
    """
    if now["vignette"].to_list() != base["vignette"].to_list():
        raise ValueError("the two states were measured on different vignettes")
    pair = np.stack([profile(base), profile(now)])
    n = pair.shape[1]
    draws = np.random.default_rng(seed).integers(0, n, (resamples, n))
    means = np.stack([pair.mean(1), *(pair[:, at].mean(1) for at in draws)])
    nats = np.log(means[:, 1]) - np.log(means[:, 0])
    out: dict[str, dict[str, list[float]]] = {f: {} for f in FOUNDATIONS}
    for kind, x in (("nats", nats), ("clr", nats - nats.mean(1, keepdims=True))):
        low, high = np.quantile(x[1:], [0.025, 0.975], axis=0)
        for i, f in enumerate(FOUNDATIONS):
            out[f][kind] = [float(x[0, i]), float(low[i]), float(high[i])]
    return out
