"""Heal: distil the kept completions into the live Δ, one objective under one constraint.

The reference does not change within a round: its hidden states at completion positions are
computed once, and the epochs run the student alone.
"""

import random
from functools import partial

import polars as pl
import torch
from torch import Tensor

from steerloop import lora
from steerloop.barrier import Barrier, Step, heal_loss
from steerloop.config import Config
from steerloop.healing.course import Course
from steerloop.healing.fresh import fresh
from steerloop.healing.optimiser import training
from steerloop.healing.reference import with_reference
from steerloop.healing.spectral import spectral_loss
from steerloop.healing.threshold import threshold
from steerloop.kernels.batch import Row, like_lengths, longest_first
from steerloop.model import Model
from steerloop.ranks import dealt, pooled, summed
from steerloop.runfolder.recorder import NOTHING, Recorder


def step_loss(model: Model, rows: list[Row], barrier: Barrier, size: int) -> list[list[float]]:
    """Gradient of L over one optimiser step's rows, accumulated `size` rows at a time.

    Returns NLL per token and A_row per row, nats. Under no_grad it only measures.
    """
    n_total = sum(len(row.completion) for row in rows)
    step = Step(barrier, n_total, len(rows))
    nlls, tops = [], []
    for prompts, completions, ref in like_lengths(dealt(longest_first(rows)), size):
        batch = model.batch(prompts, completions)
        h = model.hidden(batch)
        loss, nll, top = heal_loss(h, ref, batch.targets, batch.rows, model.head, step)
        if torch.is_grad_enabled():
            loss.backward()
        nlls.append(nll)
        tops.append(top)
    if barrier.kind == "spectral":  # a property of Δ, not of the rows
        tops.append(spectral_loss(model.layers, barrier.lam)[None])
    if torch.is_grad_enabled():
        summed(model.hf)
    n = sum(map(len, nlls))
    nats = torch.cat(nlls + tops).tolist() if nlls else []  # a GPU is waited for once
    return pooled(nats[:n], nats[n:])


@torch.enable_grad()
def heal(
    model: Model,
    table: pl.DataFrame,
    cfg: Config,
    round: int,
    run: Recorder = NOTHING,
) -> tuple[dict[str, float | None], dict[str, Tensor]]:
    """Optimise a fresh live Δ on the rows of `table`; returns what the round's record needs (see
    Course.account; losses in nats) and Δ, ready to fold: '<layer>.A' (r, d_in), '<layer>.B'
    (d_out, r).

    With a `run` that keeps, it goes on from its last epoch after an interruption. Raises
    FloatingPointError naming step and rows (column `row`) when the gradient is not finite; Δ is as
    it was before that step.
    """
    lam = cfg.lam * (1 + round) ** cfg.lam_pow
    barrier = Barrier(cfg.barrier, cfg.agg, lam, threshold(cfg))
    live = fresh(model.layers, model.gates, cfg.seed)
    rows = with_reference(model, table, cfg)
    rng = random.Random(f"{cfg.seed}|{round}")
    rng.shuffle(rows)
    n_held = int(cfg.val_share * len(rows))
    held, rows = rows[:n_held], rows[n_held:]
    starts = range(0, len(rows), cfg.step_rows)
    course = Course(live, barrier, cfg, round, len(starts), run)
    with model.dense.unpacked(), training(model.hf, cfg.checkpointing):
        for epoch in range(cfg.epochs):
            rng.shuffle(rows)
            if epoch < course.done:
                continue
            first = partial(step_loss, model, rows[: cfg.step_rows], size=cfg.batch)
            course.begin(epoch, first)
            for at in starts:
                part = rows[at : at + cfg.step_rows]
                losses = step_loss(model, part, barrier, cfg.batch)
                course.advance(losses, [row.number for row in part])
    with torch.no_grad():
        val = step_loss(model, held, barrier, cfg.batch)[0] if held else []
    return course.account(val), lora.live_delta(model.layers)
