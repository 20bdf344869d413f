"""The tables of a measured state → the numbers that are recorded of it."""

import math

import numpy as np
import polars as pl

from steerloop.report.coherence import coherence
from steerloop.report.stats import profile
from steerloop.report.trait import Frames
from steerloop.texts.foundations import FOUNDATIONS, H

HIDDEN = ("reasons_", "contrast_1", "contrast_2")  # that are read by differences alone


def measures(now: Frames, base: Frames, factor: float) -> dict[str, float]:
    """Means over what `evaluate` returned, of a state and of its base. `<foundation>_nats` is the
    log of a mean p, `ppx_json` and `ppl_mundane` are perplexities, `said` is nats per token;
    coherence is against `base` (see coherence.py; `factor` is --ppl_factor), and left out where
    nothing is known of it. Where people rated the
    vignettes, `overlap` is the mean mass that the answer and their ratings have in common, 1 at
    best."""
    rows, items, said = now
    found = dict(items.group_by("measure").agg(pl.mean("value")).sort("measure").rows())
    known = {k: x for k, x in found.items() if not k.startswith(HIDDEN)}
    known["ppl_mundane"] = math.exp(known.pop("mundane_nll"))
    if len(rows):
        known |= answered(rows)
    if len(said):
        known["said"] = said.select(pl.mean("said_1", "said_2")).to_numpy().mean()
    share = coherence(now, base, factor)
    first = {} if math.isnan(share) else {"coherence": share}
    return first | {k: float(x) for k, x in known.items()}


def answered(rows: pl.DataFrame) -> dict[str, float]:
    """What the table of vignettes says."""
    mean = rows.select(pl.col(pl.Float64).mean()).row(0, named=True)
    known = {f"{f}_nats": math.log(mean[f"p_{f}"]) for f in FOUNDATIONS}
    known |= {k: mean[k] for k in ("p_ans_any", "json_is_valid", "top1")}
    known["ppx_json"] = math.exp(mean["scaffold_nll"])
    if set(H) <= set(rows.columns):
        people = rows.select(H).to_numpy()
        shared = np.minimum(profile(rows), people)[people.sum(1) > 0]
        if len(shared):
            known["overlap"] = float(shared.sum(1).mean())
    return known
