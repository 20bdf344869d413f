"""Contrasted answers: how probable the model finds what shows the trait, and its opposite.

The two sides are kept apart: a difference flatters whatever makes the other side improbable.
"""

from statistics import fmean

import torch

from steerloop.config import Config
from steerloop.model import Model
from steerloop.readouts.endings import endings
from steerloop.texts.data import Data


@torch.no_grad()
def contrast(model: Model, data: Data, cfg: Config) -> dict[str, list[float]]:
    """Per held-out item, nats per token: `contrast_positive` and `contrast_negative`, the mean
    log-probability of its answers; `contrast_1` and `contrast_2`, the difference of the sides by
    its first answers and by its last ones. Nothing where a trait has no such items."""
    items = data.contrast.filter("held").gather_every(cfg.every)
    columns: dict[str, list[float]] = {}
    if not len(items):
        return columns
    prompts = [model.render(x) for x in items["prompt"]]
    sides = items.select("positive", "negative").rows()
    most = max(len(x) for row in sides for x in row)
    texts = []  # as many of each side as any item has: the first answer fills up
    for row in sides:
        filled = [side + side[:1] * (most - len(side)) for side in row]
        texts.append([model.to_ids(answer) for side in filled for answer in side])
    found = endings(model, prompts, texts, cfg.batch_rows, "contrast").tolist()
    names = ("contrast_positive", "contrast_negative", "contrast_1", "contrast_2")
    for row, (positive, negative) in zip(found, sides, strict=True):
        up, down = row[: len(positive)], row[most : most + len(negative)]
        values = fmean(up), fmean(down), up[0] - down[0], up[-1] - down[-1]
        for name, value in zip(names, values, strict=True):
            columns.setdefault(name, []).append(value)
    return columns
