"""Measures that only a known grammar allows: opening mass, sentence validity, defiance.

`evaluate` calls them on whatever state the model is in. Both read the held-out dilemmas of the
run's split, as many as the run has prompts but no fewer than an interval needs, and return values
per item.
"""

import polars as pl
import torch

from steerloop.config import Config
from steerloop.model import Model
from steerloop.readouts.endings import endings
from steerloop.sample import jobs, sample
from steerloop.texts.data import FEWEST
from steerloop.tinyworld import oracle
from steerloop.tinyworld.files import DATA, read_dilemmas

REPEATS = 3  # answers to each dilemma: one alone leaves a standard error of .02 on validity


@torch.no_grad()
def opening_mass(model: Model, cfg: Config) -> dict[str, list[float]]:
    """Per dilemma: total probability of the twelve decisions the grammar can open with.

    """
    prompts = read_dilemmas(DATA, cfg.split)[: max(FEWEST, cfg.n_prompts)]
    texts = [[model.to_ids(x) for x in oracle.openings(prompt)] for prompt in prompts]
    asked = [model.render(prompt) for prompt in prompts]
    means = endings(model, asked, texts, cfg.batch_rows, "openings")
    sizes = torch.tensor([[len(ids) for ids in row] for row in texts])
    return {"opening_mass": (means * sizes).exp().sum(1).tolist()}


def answers(model: Model, cfg: Config) -> dict[str, list[float]]:
    """Per sampled answer: share of its sentences the grammar could produce, and whether it opens by
    defying the order (an illegible opening defies nothing)."""
    dilemmas = read_dilemmas(DATA, cfg.split)[: max(FEWEST, cfg.n_prompts)]
    table = pl.concat([jobs(model, dilemmas, [0.0], repeat) for repeat in range(REPEATS)])
    pairs = sample(model, table, {}, cfg, "probe|answers").select("prompt", "text").rows()
    return {
        "sentence_validity": [oracle.sentence_validity(*pair) for pair in pairs],
        "defiance": [float(oracle.defies(*pair) is True) for pair in pairs],
    }
