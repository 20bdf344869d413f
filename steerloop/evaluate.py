"""The trait and coherence of the model as it stands: gated, steered or bare.

What is measured is in steerloop/readouts/, one module a readout, and in the probes of a run.
"""

import polars as pl
import torch

from steerloop.config import Config
from steerloop.model import Model
from steerloop.readouts.forced_choice import choices
from steerloop.readouts.items import items
from steerloop.readouts.said import said
from steerloop.readouts.states import Vector
from steerloop.steer import steered
from steerloop.texts.data import Data

BARE: Vector = {}


@torch.no_grad()
def evaluate(
    model: Model, data: Data, cfg: Config, vector: Vector = BARE, dose: float = 0.0
) -> list[pl.DataFrame]:
    """Measure the model in its current state, steered at `dose` (units of the vector): a row per
    vignette (see `choices`), a value per item of whatever else is read (see `items`), and a row per
    answer of its own (see `said`)."""
    with steered(model, vector, dose):
        values = items(model, data, cfg)
        rows = choices(model, data.vignettes, cfg)
    return [rows, values, said(model, data, cfg, vector, dose)]
