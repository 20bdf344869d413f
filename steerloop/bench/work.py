"""What the races have in common: how much work, a vector to steer by, and how close ours came to
what the machine can do at most.

Letters: d width, v vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from steerloop.bench.measure import Runner, bandwidth, linear_size, matmul_peak, step_bytes
from steerloop.config import Config
from steerloop.kernels.hardware import multiplies
from steerloop.loading.layers import band
from steerloop.model import Model
from steerloop.readouts.states import Vector

SIZE = 0.1  # of the steering vector's entries against those of the residual stream


@dataclass
class Size:
    """How much work: rows of ours, rows that the slow twin is measured on, tokens of a completion
    and of its prompt, tokens of thought, how often everything runs, and whether the weights are
    those of a real model."""

    rows: int
    twin_rows: int
    tokens: int
    prompt: int
    think: int
    repeats: int
    real: bool = False


Figures = dict[str, Any]


def ours_of(model: Model, run: Callable[[], Any], units: float | int = 1) -> Runner:
    """A runner of ours: it keeps the weights of dense phases and the blocked copy of the head."""
    def forget() -> None:
        model.dense.release()
        vars(model.head).pop("blocked", None)
    return Runner(run, units, forget=forget)


def texts(count: int, length: int, seed: int = 0) -> list[list[int]]:
    """Random ordinary tokens."""
    rng = Random(seed)
    return [[rng.randrange(10, 250) for _ in range(length)] for _ in range(count)]


def vector(model: Model, cfg: Config) -> Vector:
    """A random direction on the steered band, a tenth of the states in size."""
    blocks = band(cfg.steer_blocks, cfg.steer_band, len(model.decoder.layers), "steer")
    generator, d, size = torch.Generator().manual_seed(0), model.head.weight.shape[1], {}

    def note(block: int) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, out: Any) -> None:
            size[block] = out.float().square().mean().sqrt().item()
        return hook

    hooks = [model.decoder.layers[b].register_forward_hook(note(b)) for b in blocks]
    with torch.no_grad():
        model.trunk(*model.pad(texts(4, 16)))
    for hook in hooks:
        hook.remove()
    return {b: (SIZE * size[b] * torch.randn(d, generator=generator)).to(model.device)
            for b in blocks}


def products(
    model: Model, figures: Figures, tokens: int, blocks: list[int], head: int, repeat: float = 1.0
) -> Figures:
    """Share of the matrix-product peak: `tokens` through these blocks, `repeat` times over, and
    `head` products of one hidden state with the output embedding."""
    v, d = model.head.weight.shape
    linear = linear_size([model.decoder.layers[b] for b in blocks])
    flops = 2 * (repeat * tokens * linear + head * v * d)
    return product_share(flops / figures["ours"]["seconds"], model.head.weight)


def product_share(rate: float, weight: Tensor) -> Figures:
    """Floating point operations per second beside the peak of the dtype they are done in."""
    peak = matmul_peak(weight.dtype if multiplies(weight) else torch.float32, weight.device)
    return {"gflops": rate / 1e9, "peak_gflops": peak / 1e9, "share_of_matmul_peak": rate / peak}


def reading(
    model: Model, seconds: float, steps: float | int, rows: int, tokens: float
) -> Figures:
    """Share of the memory bandwidth that `steps` decoding steps need at least."""
    rate = steps * step_bytes(model, rows, tokens) / seconds
    peak = bandwidth(model.head.weight.dtype, model.device)
    return {"gb_per_s": rate / 1e9, "peak_gb_per_s": peak / 1e9, "share_of_bandwidth": rate / peak}
