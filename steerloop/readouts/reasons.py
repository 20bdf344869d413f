"""Likelihood of reasons: after an act and "why is this wrong?", phrases that name a foundation.

What a phrase costs by itself is no answer: what is read is by how much it is likelier after this
act than after the others. That centring is done where tables are read (report/headline.py), by the
means of the untouched base, so that every state is on one scale.
"""

import torch

from steerloop.config import Config
from steerloop.model import Model
from steerloop.readouts.endings import endings
from steerloop.texts.data import Data


@torch.no_grad()
def reasons(model: Model, data: Data, cfg: Config) -> dict[str, list[float]]:
    """Per vignette `reasons_<wording>_<foundation>`, wordings from 1: the mean log-probability per
    token of that foundation's phrases, nats. Nothing where a trait has no vignettes."""
    columns: dict[str, list[float]] = {}
    texts = data.vignettes["text"].to_list()
    for number, wording in enumerate(data.reasons if texts else [], 1):
        prompts = [model.render(wording.ask.replace("{vignette}", x)) for x in texts]
        phrases = [model.to_ids(x) for found in wording.reasons.values() for x in found]
        logp = endings(model, prompts, [phrases] * len(prompts), cfg.batch_rows, "reasons")
        sizes = [len(x) for x in wording.reasons.values()]
        for foundation, part in zip(wording.reasons, logp.split(sizes, dim=1), strict=True):
            columns[f"reasons_{number}_{foundation}"] = part.mean(1).tolist()
    return columns
