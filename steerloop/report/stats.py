"""Shifts of foundation profiles with paired bootstrap intervals."""

import numpy as np
import polars as pl


def profile(rows: pl.DataFrame) -> dict[str, np.ndarray]:
    """Foundation → probabilities, one per vignette."""
    return {c[2:]: rows[c].to_numpy() for c in rows.columns if c.startswith("p_") and c[2:] != "ans_any"}


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
    names = list(profile(base))
    pair = np.stack([np.stack(list(profile(x).values()), 1) for x in (base, now)])
    n = pair.shape[1]
    draws = np.random.default_rng(seed).integers(0, n, (resamples, n))
    means = np.stack([pair.mean(1), *(pair[:, at].mean(1) for at in draws)])
    nats = np.log(means[:, 1]) - np.log(means[:, 0])
    out: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for kind, x in (("nats", nats), ("clr", nats - nats.mean(1, keepdims=True))):
        low, high = np.quantile(x[1:], [0.025, 0.975], axis=0)
        for i, name in enumerate(names):
            out[name][kind] = [float(x[0, i]), float(low[i]), float(high[i])]
    return out
