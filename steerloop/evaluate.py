"""Foundation axes and coherence of the model as it stands: gated, steered or bare.

What is measured is in steerloop/readouts/, one module a readout, and in the probes of a run.
"""

import polars as pl
import torch

from steerloop.config import Config
from steerloop.model import Model
from steerloop.readouts.forced_choice import choices
from steerloop.readouts.mundane import mundane
from steerloop.readouts.probes import long, probed
from steerloop.texts.data import Data


@torch.no_grad()
def evaluate(model: Model, data: Data, cfg: Config) -> list[pl.DataFrame]:
    """Measure the model in its current state: a row per vignette (see `choices`), and (measure,
    item, value) for ordinary text (nats) and for what the probes return."""
    items = probed(model, cfg) | {"mundane_nll": mundane(model, data, cfg)}
    return [choices(model, data.vignettes, cfg), long(items)]
