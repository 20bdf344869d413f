"""What it costs to measure the student that was trained: in 16 bits a dense phase puts the stack
beside the weights, where merging would round it away (kernels/dense.py). The twin merges."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import polars as pl
import torch
from torch import nn

from steerloop import lora
from steerloop.bench.measure import Runner, against, race
from steerloop.bench.work import Figures, Size, texts
from steerloop.config import Config
from steerloop.kernels.dense import Dense, Stacked, still
from steerloop.model import load
from steerloop.readouts.forced_choice import choices
from steerloop.sample import sample
from steerloop.texts.data import read, vignettes

HEARD = (0, 1, 4, 8)  # rounds of the student
SIZE = 2e-3  # of the entries of B


def merged(layer: Stacked) -> nn.Module:
    """One matrix, summed in fp32 and rounded to the dtype of the base."""
    weight, (A, B) = layer.base.weight, layer.heard()
    whole = torch.addmm(weight.float(), B.float(), A.float()).to(weight.dtype)
    return still(whole, layer.base.bias)


@torch.no_grad()
def grow(layers: lora.Layers, gates: lora.Gates) -> None:
    """One more round that says something at random."""
    lora.open_round(layers, gates, gates.live)
    for layer in layers.values():
        layer.live_B.normal_(0, SIZE)
    lora.fold(layers, gates, lora.live_delta(layers))


def phase(dense: Dense, known: tuple[Any, dict[str, nn.Module]], do: Callable[[], Any]) -> None:
    """A piece of work on these layers: they are known, so none are made."""
    dense.known = known
    do()


def run(cfg: Config, size: Size) -> Figures:
    """`rows` completions of exactly `tokens` tokens, and the forced choice of a quarter as many
    vignettes after `think` tokens, by the number of rounds that the student has."""
    torch.manual_seed(0)
    cfg = replace(cfg, rounds=max(HEARD), batch_rows=size.rows, max_new_tokens=size.tokens,
                  think_tokens=size.think)
    model = load(cfg)
    table = pl.DataFrame({"prompt_ids": texts(size.rows, size.prompt)}).with_columns(
        prompt_id=pl.int_range(size.rows), multiple=0.0, copy=0, dose=0.0)
    asked = read(cfg.vignettes.replace("{split}", cfg.split), vignettes).head(-(-size.rows // 4))
    work: dict[str, Callable[[], Any]] = {
        "sample": lambda: sample(model, table, {}, cfg, "0|bench", stops=False),
        "evaluate": lambda: choices(model, asked, cfg)}
    found: Figures = {name: {} for name in work}
    for heard in HEARD:
        while model.gates.live < heard:
            grow(model.layers, model.gates)
        model.dense.release()
        with model.dense():
            state, ours = model.dense.known
        twin = ours | {k: merged(m) for k, m in model.layers.items()}
        for name, do in work.items():
            runners = {of: Runner(partial(phase, model.dense, (state, form), do))
                       for of, form in (("ours", ours), ("merged", twin))}
            figures = race(runners, size.repeats, model.device.type == "cuda")
            found[name][heard] = against(figures)
    return {"rows": size.rows, "tokens": size.tokens, "prompt": size.prompt, "think": size.think,
            "vignettes": len(asked), "rounds_heard": found}
