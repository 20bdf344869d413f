"""Likelihood of reasons: after an act and "why is this wrong?", phrases that name a foundation.

What a phrase costs by itself is no answer: what is read is by how much it is likelier after this
act than after the others. A shift is a difference of two states on the same acts, so what phrases
cost by themselves drops out; against labels it is taken out by the means of the untouched base
(report/sight.py).
"""

from statistics import fmean

import torch

from steerloop.config import Config
from steerloop.model import Model
from steerloop.readouts.endings import endings
from steerloop.texts.data import Data


@torch.no_grad()
def reasons(model: Model, data: Data, cfg: Config, turn: int = 0) -> dict[str, list[float]]:
    """Per vignette `reasons_<foundation>`: the mean log-probability per token of that foundation's
    phrases, nats. The wordings take turns over the vignettes, and another `turn` gives each the
    next one. Nothing where a trait has no vignettes."""
    texts = data.vignettes["text"].to_list()
    found: dict[str, list[float]] = {}
    if not texts or not data.reasons:
        return found
    names = list(data.reasons[0].reasons)
    found = {f"reasons_{f}": [0.0] * len(texts) for f in names}
    for number, wording in enumerate(data.reasons):
        mine = range((number - turn) % len(data.reasons), len(texts), len(data.reasons))
        prompts = [model.render(wording.ask.replace("{vignette}", texts[i])) for i in mine]
        phrases = [model.to_ids(x) for f in names for x in wording.reasons[f]]
        if not prompts:
            continue
        logp = endings(model, prompts, [phrases] * len(prompts), cfg.batch_rows, "reasons")
        sizes = [len(wording.reasons[f]) for f in names]
        for f, part in zip(names, logp.split(sizes, dim=1), strict=True):
            for i, row in zip(mine, part.tolist(), strict=True):
                found[f"reasons_{f}"][i] = fmean(row)
    return found
