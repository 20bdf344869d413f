"""Load a model, take one heal step, sample one batch: peak memory and time of each.

Run in a process of its own, since peaks are those of a process.
"""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import polars as pl
import torch

from steerloop import lora
from steerloop.barrier import Barrier
from steerloop.bench.measure import MB, watched, weight_bytes
from steerloop.config import Config
from steerloop.heal import step_loss
from steerloop.healing.threshold import threshold
from steerloop.kernels.batch import Row
from steerloop.kernels.hardware import memory
from steerloop.loading.files import weight_files
from steerloop.loading.hub import locate
from steerloop.loading.room import PROMPT, needs
from steerloop.loading.weights import load_weights
from steerloop.model import Model, load
from steerloop.sample import sample


def run(cfg: Config, rows: int, tokens: int) -> dict[str, Any]:
    """Figures of loading a model beside the most that it should take (the model as it is held, and
    its largest weight in fp32), of one optimiser step on completions of `tokens` tokens, and of
    `rows` × `tokens` sampled tokens."""
    cuda = cfg.device == "cuda"
    with watched(cuda) as weights:
        load_weights(cfg.model, cfg.dtype, cfg.attn, cfg.quant, torch.device(cfg.device))
    with watched(cuda) as wrapped:
        model = load(cfg)
    shards = [x.stat().st_size / MB for x in weight_files(locate(cfg.model))]
    largest = 4 * max(x.numel() for x in model.hf.parameters()) / MB
    base = weight_bytes(model) / MB
    figures = {"weights": weights, "weights_and_stack": wrapped,
               "base_mb": base, "largest_weight_mb": largest, "bound_mb": base + largest,
               "files_mb": sum(shards), "largest_shard_mb": max(shards)}
    rng = Random(0)

    def texts(count: int, length: int) -> list[list[int]]:
        return [[rng.randrange(6, 250) for _ in range(length)] for _ in range(count)]

    def heal() -> None:
        lora.open_round(model.layers, model.gates, 0)
        prompts, ends = texts(cfg.step_rows, PROMPT), texts(cfg.step_rows, tokens)
        with torch.no_grad(), model.gates(model.gates.before(0)):
            refs = [x for at in range(0, len(ends), cfg.batch)
                    for batch in [model.batch(prompts[at : at + cfg.batch],
                                              ends[at : at + cfg.batch])]
                    for x in batch.split(model.hidden(batch))]
        rows = [Row(*x) for x in zip(prompts, ends, refs, range(len(ends)), strict=True)]
        step_loss(model, rows, Barrier(cfg.barrier, cfg.agg, cfg.lam, threshold(cfg)), cfg.batch)

    def decode() -> None:
        table = pl.DataFrame({"prompt_ids": texts(rows, PROMPT), "prompt_id": range(rows)})
        table = table.with_columns(dose=0.0, multiple=0, copy=0)
        exact = replace(cfg, max_new_tokens=tokens, batch_rows=rows)
        figures["tokens"] = sample(model, table, {}, exact, "bench", stops=False)[
            "completion_ids"].list.len().sum()

    parts: dict[str, Callable[[], None]] = {"sample": decode, "heal": heal}
    for name, part in parts.items():
        with watched(cuda) as figures[name]:
            part()
    figures["computed"] = computed(model, replace(cfg, max_new_tokens=tokens), rows)
    grads = [p.grad for x in model.layers.values() for p in (x.live_A, x.live_B)]
    figures["gradient"] = float(torch.stack([g.norm() for g in grads if g is not None]).norm())
    return figures


def computed(model: Model, cfg: Config, rows: int) -> dict[str, float]:
    """MB that healing (cfg.batch completions at once) and sampling (`rows`) should take at most
    beside what is held by then: the base, the stack, the live factors."""
    heal, sample = needs(model.hf, model.layers, cfg, memory(model.device))
    held = heal.whole["base"] + heal.whole["folded stack"]
    live = heal.whole["live factors, gradients, Adam"] / 2  # no moments are made here
    bytes_ = {"heal": sum(heal.parts(cfg.batch).values()) - held - live,
              "sample": sum(sample.parts(rows).values()) - held}
    return {name: x / MB for name, x in bytes_.items()}
