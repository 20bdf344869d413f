"""All that has a value per item: (measure, item, value)."""

import polars as pl

from steerloop.config import Config
from steerloop.model import Model
from steerloop.readouts.contrast import contrast
from steerloop.readouts.mundane import mundane
from steerloop.readouts.probes import long, probed
from steerloop.readouts.reasons import reasons
from steerloop.texts.data import Data


def items(model: Model, data: Data, cfg: Config) -> pl.DataFrame:
    """Reasons, contrasted answers and ordinary text (nats), and what the probes return."""
    found = probed(model, cfg) | {"mundane_nll": mundane(model, data, cfg)}
    axis = [data.up, data.down]
    return long(found | contrast(model, data, cfg) | reasons(model, data, cfg, axis))
