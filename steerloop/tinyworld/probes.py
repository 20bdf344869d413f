"""Measures that only a known grammar allows: opening mass, sentence validity, defiance.

`evaluate` calls them on whatever state the model is in. Both read the held-out dilemmas of the
run's split, as many as the run has prompts but no fewer than an interval needs, and return values
per item.
"""

import polars as pl
import torch
from einops import rearrange

from steerloop.config import Config
from steerloop.kernels.batch import pad
from steerloop.kernels.caches import arrange, empty_cache
from steerloop.model import Model
from steerloop.sample import jobs, sample
from steerloop.texts.data import FEWEST
from steerloop.tinyworld import oracle
from steerloop.tinyworld.files import DATA, read_dilemmas

REPEATS = 3  # answers to each dilemma: one alone leaves a standard error of .02 on validity


@torch.no_grad()
def opening_mass(model: Model, cfg: Config) -> dict[str, list[float]]:
    """Per dilemma: total probability of the twelve decisions the grammar can open with.

    The prompts are read once; every opening continues a copy of its prompt's cache.
    """
    prompts = read_dilemmas(DATA, cfg.split)[: max(FEWEST, cfg.n_prompts)]
    texts = [model.to_ids(text) for prompt in prompts for text in oracle.openings(prompt)]
    copies = len(texts) // len(prompts)
    ids, mask = model.pad([model.render(prompt) for prompt in prompts])
    cache = empty_cache(model.hf)
    first = model.trunk(ids, mask, cache)[:, -1:].repeat_interleave(copies, dim=0)
    arrange(cache, torch.arange(len(texts)) // copies)
    after, seen = pad(texts, model.stop_ids[0], model.device, left=False)
    past = mask.repeat_interleave(copies, dim=0)
    h = model.trunk(after, torch.cat([past, seen], dim=1), cache)
    logp = model.head(torch.cat([first, h[:, :-1]], dim=1)).log_softmax(-1)
    each = logp.gather(-1, after[..., None])[..., 0].masked_fill(~seen, 0.0).sum(-1)
    return {"opening_mass": rearrange(each.exp(), "(p o) -> p o", o=copies).sum(-1).tolist()}


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
