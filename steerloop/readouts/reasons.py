"""Likelihood of reasons: after an act and "why is this wrong?", phrases that name a foundation.

What a phrase costs by itself is no answer: what is read is by how much it is likelier after this
act than after the others. A shift is a difference of two states on the same acts, so what phrases
cost by themselves drops out, and the two foundations of an axis are enough; against labels all are
read, on the untouched base, and their means taken out (report/sight.py).
"""

from statistics import fmean

import torch

from steerloop.config import Config
from steerloop.model import Model
from steerloop.readouts.endings import endings
from steerloop.texts.data import Data


@torch.no_grad()
def reasons(
    model: Model, data: Data, cfg: Config, named: list[str], turn: int = 0
) -> dict[str, list[float]]:
    """Per vignette `reasons_<foundation>`, of the foundations `named`: the mean log-probability per
    token of its phrases, nats. The wordings take turns over the vignettes in order of their texts,
    so that the order of a file plays no part; another `turn` gives each the next one. Nothing where
    a trait has no vignettes, or no phrases for one of those named."""
    texts, wordings = data.vignettes["text"].to_list(), data.reasons
    found: dict[str, list[float]] = {}
    if not texts or not wordings or not set(named) <= wordings[0].reasons.keys():
        return found
    found = {f"reasons_{f}": [0.0] * len(texts) for f in named}
    order = sorted(range(len(texts)), key=texts.__getitem__)
    for number, wording in enumerate(wordings):
        mine = order[(number - turn) % len(wordings) :: len(wordings)]
        prompts = [model.render(wording.ask.replace("{vignette}", texts[i])) for i in mine]
        phrases = [model.to_ids(x) for f in named for x in wording.reasons[f]]
        if not prompts:
            continue
        logp = endings(model, prompts, [phrases] * len(prompts), cfg.batch_rows, "reasons")
        sizes = [len(wording.reasons[f]) for f in named]
        for f, part in zip(named, logp.split(sizes, dim=1), strict=True):
            for i, row in zip(mine, part.tolist(), strict=True):
                found[f"reasons_{f}"][i] = fmean(row)
    return found
