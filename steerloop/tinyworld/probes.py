"""Measures that only a known grammar allows: opening mass, sentence validity, defiance.

`evaluate` calls them on whatever state the model is in. Both read the held-out
dilemmas of the run's split and return values per item.
"""

import math

import polars as pl

from steerloop.config import Config
from steerloop.model import Model
from steerloop.sample import jobs, sample, score
from steerloop.tinyworld import oracle
from steerloop.tinyworld.files import DATA, read_dilemmas


def opening_mass(model: Model, cfg: Config) -> dict[str, list[float]]:
    """Per dilemma: total probability of the twelve decisions the grammar can open with."""
    rows = [
        {"prompt": prompt, "prompt_ids": model.render(prompt), "completion_ids": model.encode(text)}
        for prompt in read_dilemmas(DATA, cfg.split)
        for text in oracle.openings(prompt)
    ]
    nlls, _ = score(model, pl.DataFrame(rows).with_columns(dose=0.0), cfg)
    mass: dict[str, float] = {}
    for row, nll in zip(rows, nlls, strict=True):
        mass[row["prompt"]] = mass.get(row["prompt"], 0.0) + math.exp(-nll.sum().item())
    return {"opening_mass": list(mass.values())}


def answers(model: Model, cfg: Config) -> dict[str, list[float]]:
    """Per sampled answer: share of its sentences the grammar could produce, and whether it opens by
    defying the order (an illegible opening defies nothing)."""
    table = jobs(model, read_dilemmas(DATA, cfg.split), [0.0])
    pairs = sample(model, table, {}, cfg, "probe|answers").select("prompt", "text").rows()
    return {
        "sentence_validity": [oracle.sentence_validity(*pair) for pair in pairs],
        "defiance": [float(oracle.defies(*pair) is True) for pair in pairs],
    }
