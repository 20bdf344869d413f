"""Heal: distil the kept completions into the live Δ, one objective under one constraint.

The reference does not change within a round: its hidden states at completion positions are
computed once, and the epochs run the student alone.
"""

import math
import random

import polars as pl
import torch
from jaxtyping import Float
from loguru import logger
from torch import Tensor
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from steerloop import lora
from steerloop.barrier import Barrier, heal_loss
from steerloop.config import Config
from steerloop.model import Model


def spectral(layers: lora.Layers) -> Float[Tensor, ""]:
    """Mean over layers of σ_max(s · B A) of the live Δ: exact, through the r × r factor of A."""
    small = [layer.live_B @ torch.linalg.qr(layer.live_A.T).R.T for layer in layers.values()]
    scales = [layer.scale for layer in layers.values()]
    tops = [s * torch.linalg.matrix_norm(x, ord=2) for s, x in zip(scales, small, strict=True)]
    return torch.stack(tops).mean()


@torch.no_grad()
def references(model: Model, prompts: list, completions: list, cfg: Config) -> list[Tensor]:
    """Per row, the hidden states (n, d) of the reference at completion positions."""
    refs: list[Tensor] = []
    with model.gates(model.gates.before(0 if cfg.ref == "base" else model.gates.live)):
        for batch in model.batches(prompts, completions, [0.0] * len(prompts), cfg.batch_rows):
            refs += batch.split(model.hidden(batch))
    return refs


def step_loss(
    model: Model, rows: list[tuple], barrier: Barrier, size: int
) -> tuple[list[float], list[float]]:
    """Gradient of L over one optimiser step's rows (prompt, completion, reference), accumulated
    `size` rows at a time; both divisors are counted first, so that the cut changes nothing.
    Returns NLL per token and A_row per row, nats. Under no_grad it only measures."""
    n_total, nlls, tops = sum(len(c) for _, c, _ in rows), [], []
    for i in range(0, len(rows), size):
        prompts, completions, refs = zip(*rows[i : i + size], strict=True)
        batch = model.collate(list(prompts), list(completions), [0.0] * len(prompts))
        ref = torch.cat(refs) if refs[0] is not None else None
        loss, nll, top = heal_loss(model.hidden(batch), ref, batch.targets, batch.rows, model.head,
                                   barrier, n_total, len(rows))
        if torch.is_grad_enabled():
            loss.backward()
        nlls += nll.tolist()
        tops += top.tolist()
    if barrier.kind == "spectral":
        top = spectral(model.layers)
        tops.append(top.item())
        if torch.is_grad_enabled():
            (barrier.lam * top).backward()
    return nlls, tops


@torch.enable_grad()
def heal(model: Model, table: pl.DataFrame, cfg: Config, round: int) -> dict[str, float | None]:
    """Optimise a fresh live Δ on the rows of `table`; returns what the round's record needs.

    NLLs are nats per token (first step, last epoch, held-out rows); `operating_kl` is the mean
    A_row of the last epoch, nats; `active` the share of all rows seen that were over τ.
    Raises FloatingPointError when the gradient is not finite.
    """
    lora.open_round(model.layers, model.gates, cfg.seed)
    barrier = Barrier(cfg.barrier, cfg.agg, cfg.lam * (1 + round) ** cfg.lam_pow, cfg.tau)
    prompts, completions = table["prompt_ids"].to_list(), table["completion_ids"].to_list()
    hinged = cfg.barrier in ("kl_rev", "kl_fwd")
    refs = references(model, prompts, completions, cfg) if hinged else [None] * len(table)
    rng = random.Random(f"{cfg.seed}|{round}|heal")
    rows = list(zip(prompts, completions, refs, strict=True))
    rng.shuffle(rows)
    held, rows = rows[: (n := int(cfg.val_share * len(rows)))], rows[n:]
    size = cfg.batch * cfg.accumulate
    steps = cfg.epochs * (per_epoch := -(-len(rows) // size))
    live = [p for layer in model.layers.values() for p in (layer.live_A, layer.live_B)]
    optimiser = torch.optim.AdamW(
        live, lr=cfg.lr, betas=(cfg.beta1, cfg.beta2), weight_decay=cfg.weight_decay)
    scheduler = get_cosine_schedule_with_warmup(optimiser, math.ceil(cfg.warmup * steps), steps)
    if cfg.checkpointing:
        model.hf.gradient_checkpointing_enable({"use_reentrant": False})
        model.hf.train()  # the library recomputes in training mode only; no model here has dropout
    log: list[tuple[list[float], list[float]]] = []
    bar = tqdm(range(steps), "heal", unit="step", leave=False)
    for step in bar:
        if (at := step % per_epoch) == 0:
            rng.shuffle(rows)
        nll, top = step_loss(model, rows[at * size : (at + 1) * size], barrier, cfg.batch)
        log.append((nll, top))
        norm = torch.nn.utils.clip_grad_norm_(live, cfg.clip)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"round {round}, heal step {step}: gradient norm {norm}")
        optimiser.step()
        scheduler.step()
        optimiser.zero_grad()
        bar.set_postfix(nll=mean(nll), kl=mean(top))
    model.hf.eval()
    with torch.no_grad():
        val_nll, _ = step_loss(model, held, barrier, cfg.batch) if held else ([], [])
    last = log[-per_epoch:]
    operating = mean([x for _, tops in last for x in tops])
    active = mean([float(x > cfg.tau) for _, tops in log for x in tops])
    if hinged and active == 0:
        logger.warning(f"the barrier never fired: set --tau {cfg.tau} below the operating KL, "
                       f"{operating:.3g} nats ({cfg.agg})")
    return {"nll_first": mean(log[0][0]), "nll": mean([x for nlls, _ in last for x in nlls]),
            "val_nll": mean(val_nll), "operating_kl": operating, "active": active,
            "lam": barrier.lam, "steps": steps}


def mean(values: list[float]) -> float | None:
    """Mean, or None of nothing."""
    return sum(values) / len(values) if values else None
