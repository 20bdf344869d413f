"""Steering vectors: extract one from persona pairs, add it to the residual stream.

    v_l = mean_x [ h_l(s⁺ ⊕ x) − h_l(s⁻ ⊕ x) ]     at the last prompt token, for l in the band

Mean difference of activations (Rimsky et al. 2023; persona vectors: Chen et al. 2025) at its raw
size: the dose is calibrated in KL, so units do not matter.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from steerloop.config import Config
from steerloop.kernels.batch import Dosed
from steerloop.kernels.nulls import null_vectors
from steerloop.loading.layers import band
from steerloop.loading.vectors import given
from steerloop.model import Model
from steerloop.readouts.states import Vector, mixed
from steerloop.texts.data import Data


def extract(model: Model, data: Data, cfg: Config) -> Vector:
    """Mean residual difference between the poles over all contexts, for each block of the band.

    Context i speaks under pair i modulo their number, so that wordings average out. `--teacher`
    may ask for the vector of other pairs, or for a null vector of these (see kernels/nulls.py);
    several packs are a weighted sum; with `--vector` it is read from files, and nothing extracted.
    Raises UserError when the band selects no block of this model, or a file is no vector for it.
    """
    blocks = band(cfg.steer_blocks, cfg.steer_band, len(model.decoder.layers), "steer")
    if data.files:
        return given(data.files, blocks, model.hf)
    each = mixed(model, data, blocks, cfg.batch_rows)
    vector = {b: difference.mean(0) for b, difference in each.items()}
    if cfg.teacher == "null":
        return null_vectors(each, vector, len(data.pairs), cfg.seed, 1)[0]
    return vector


@contextmanager
def steered(model: Model, vector: Vector, rows: float | Dosed) -> Iterator[None]:
    """Add dose · v_l at every position of every steered block.

    `rows` is one dose for all, or the rows that are in the model, with a dose each: it is read at
    each pass, so rows may leave a batch while it is decoded. Where v_l holds k directions (k, d), a
    row has a dose of each.
    Raises RuntimeError while gradients are recorded: students are trained unsteered.
    """
    if torch.is_grad_enabled():
        raise RuntimeError("steering is for sampling and scoring: use torch.no_grad()")

    def add(h: Tensor, v: Tensor) -> Tensor:
        if isinstance(rows, float | int):
            return h + (rows * v).to(h.dtype)
        shift = rows.dose @ v if v.ndim == 2 else rows.dose[:, None] * v
        return h + shift[:, None].to(h.dtype)

    hooks = {block: partial(add, v=v) for block, v in vector.items()}
    with model.hooked(hooks):
        yield
