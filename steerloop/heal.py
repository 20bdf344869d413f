"""Heal: distil the kept completions into the live Δ, one objective under one constraint.

The reference does not change within a round: its hidden states at completion positions are
computed once, and the epochs run the student alone.
"""

import random
from dataclasses import replace
from functools import partial
from statistics import fmean

import polars as pl
import torch

from steerloop import lora
from steerloop.barrier import heal_loss
from steerloop.config import Config
from steerloop.kernels.folder import NOWHERE, Nowhere, work
from steerloop.kernels.fused_loss import Barrier
from steerloop.kernels.live import Bar
from steerloop.kernels.optimise import Scheduled, account, added, checkpointed
from steerloop.kernels.spectral import mean_sigma_max
from steerloop.model import Model

TAU_SHARE = 0.5  # tau auto: this share of the operating KL that the same heal has with λ = 0


def step_loss(model: Model, rows: list[tuple], barrier: Barrier, size: int) -> list[list[float]]:
    """Gradient of L over one optimiser step's rows (prompt, completion, reference), accumulated
    `size` rows at a time; both divisors are counted first, so that the cut changes nothing.
    Returns NLL per token and A_row per row, nats. Under no_grad it only measures."""
    n_total, nlls, tops = sum(len(c) for _, c, _ in rows), [], []
    rows = sorted(rows, key=lambda x: -len(x[0]) - len(x[1]))  # like lengths: little padding; the
    # longest come first: what they leave in memory holds the others
    for i in range(0, len(rows), size):
        prompts, completions, refs = map(list, zip(*rows[i : i + size], strict=True))
        (batch,) = model.batches((prompts, completions, [0.0] * len(prompts)), size)
        ref = None if refs[0] is None else torch.cat(refs)
        loss, nll, top = heal_loss(model.hidden(batch), ref, batch.targets, batch.rows, model.head,
                                   barrier, n_total, len(rows))
        if torch.is_grad_enabled():
            loss.backward()
        nlls, tops = nlls + nll.tolist(), tops + top.tolist()
    if barrier.kind == "spectral":  # a property of Δ, not of the rows
        top = mean_sigma_max([(x.live_A, x.scale * x.live_B) for x in model.layers.values()])
        tops.append(top.item())
        if torch.is_grad_enabled():
            (barrier.lam * top).backward()
    return [nlls, tops]


@torch.enable_grad()
def heal(
    model: Model, table: pl.DataFrame, cfg: Config, round: int, run: Nowhere = NOWHERE
) -> dict[str, float | None]:
    """Optimise a fresh live Δ on the rows of `table`; returns what the round's record needs.

    NLLs are nats per token (first step, last epoch, held-out rows); `operating_kl` is the mean
    A_row of the last epoch, nats; `active` the share of all rows seen that were over τ; `pull` the
    size of the barrier's gradient over that of the NLL at the first step of each later epoch, None
    where there is none. With a `run` folder it goes on from its last epoch after an interruption.
    Raises FloatingPointError naming step and rows (column `row`) when the gradient is not finite;
    Δ is as it was before that step.
    """
    tau = float(cfg.tau) if cfg.tau != "auto" else TAU_SHARE * heal(
        model, table, replace(cfg, lam=0.0, tau="0"), round, run)["operating_kl"]
    barrier = Barrier(cfg.barrier, cfg.agg, cfg.lam * (1 + round) ** cfg.lam_pow, tau)
    lora.open_round(model.layers, model.gates, cfg.seed)
    columns = table["prompt_ids"].to_list(), table["completion_ids"].to_list(), [0.0] * len(table)
    refs, gates = [None] * len(table), model.gates
    if cfg.barrier in ("kl_rev", "kl_fwd"):
        with torch.no_grad(), gates(gates.before(0 if cfg.ref == "base" else gates.live)):
            refs = [x for batch in model.batches(columns, cfg.batch_rows)
                    for x in batch.split(model.hidden(batch))]
    rows, rng = list(zip(*columns[:2], refs, strict=True)), random.Random(f"{cfg.seed}|{round}")
    place = {id(row): i for i, row in zip(table["row"], rows, strict=True)}
    rng.shuffle(rows)
    held, rows = rows[: (n := int(cfg.val_share * len(rows)))], rows[n:]
    size = cfg.batch * cfg.accumulate
    steps = cfg.epochs * (per_epoch := -(-len(rows) // size))
    live = [p for layer in model.layers.values() for p in (layer.live_A, layer.live_B)]
    optimiser, state = Scheduled(live, cfg, steps), f"{work(round)}/{cfg.barrier}-{cfg.lam:g}"
    done, log, pulls = optimiser.resume(run, state)
    with model.dense.unpacked(), checkpointed(model.hf, cfg.checkpointing):
        for step in (bar := Bar(range(steps), "heal", unit="step")):
            if (at := step % per_epoch * size) == 0:
                rng.shuffle(rows)
            if step < done:
                continue
            if at == 0 and step:
                optimiser.keep(run, state, done=step, log=log, pulls=pulls)
                if cfg.barrier != "nll" and barrier.lam:
                    pulls.append(added(live, *(partial(step_loss, model, rows[:size], x, cfg.batch)
                                               for x in (barrier, barrier._replace(lam=0.0)))))
            log.append(step_loss(model, rows[at : at + size], barrier, cfg.batch))
            if not optimiser.advance(step):
                raise FloatingPointError(
                    f"round {round + 1}, heal step {step}: the gradient is not finite; lower --lr "
                    f"(--force), look at rows {[place[id(x)] for x in rows[at : at + size]]}")
            bar.set_postfix(nll=fmean(log[-1][0]), kl=fmean(log[-1][1] or [0]))
    with torch.no_grad():
        val = step_loss(model, held, barrier, cfg.batch)[0]
    return account(log, per_epoch, barrier, val, pulls)
