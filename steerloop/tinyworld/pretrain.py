"""Train the embedded model: a Gemma 3 of 1.44 M parameters on generated conversations.

    loss = sum_i w_i * CE_i / sum_i w_i over model turns of one step (two micro-batches);
    CE at an answer digit is against the exact label distribution of the grammar

Muon moves the matrices of the blocks, AdamW the embedding and the norms; both follow one schedule
(linear warm-up, then cosine to zero in tokens). The state is saved every few shards, atomically,
and a rerun continues where it stopped.
"""

import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from loguru import logger
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    PreTrainedTokenizerBase,
)

from steerloop.tinyworld.batches import Encoder, MicroBatch, shard
from steerloop.tinyworld.muon import Muon
from steerloop.tinyworld.tokenizer import END_OF_TURN

LAYERS = 6
ACCUMULATE = 2  # micro-batches per step
SAVE_EVERY = 10  # shards


@dataclass(frozen=True)
class Recipe:
    """What a training run depends on."""

    seed: int = 0
    tokens: int = 6_500_000  # in micro-batches, padding included
    muon_lr: float = 0.02
    adamw_lr: float = 3e-3
    warmup: float = 0.02  # share of the tokens
    clip: float = 1.0
    global_layer: int = 2  # the one layer that sees past the window of 64 tokens


def model_config(tokenizer: PreTrainedTokenizerBase, global_layer: int) -> Gemma3TextConfig:
    kinds = ["sliding_attention"] * LAYERS
    kinds[global_layer] = "full_attention"
    return Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=64,
        layer_types=kinds,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",
    )


def new_model(tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> Gemma3ForCausalLM:
    torch.manual_seed(recipe.seed)
    model = Gemma3ForCausalLM(model_config(tokenizer, recipe.global_layer))
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END_OF_TURN)],
        do_sample=True,
        temperature=1.0,
        top_k=64,
        top_p=0.95,
    )
    return model


def optimisers(model: Gemma3ForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for everything else."""
    blocks = list(model.model.layers.parameters())
    matrices = [weight for weight in blocks if weight.ndim == 2]
    chosen = {id(weight) for weight in matrices}
    rest = [weight for weight in model.parameters() if id(weight) not in chosen]
    return [
        Muon(matrices, lr=recipe.muon_lr),
        torch.optim.AdamW(rest, lr=recipe.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate_factor(done: float, warmup: float) -> float:
    """Linear warm-up, cosine to zero; `done` is the share of tokens seen."""
    if done < warmup:
        return max(done / warmup, 0.02)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warmup) / (1 - warmup))))


def weighted_loss(model: Gemma3ForCausalLM, batch: MicroBatch, digit_ids: Tensor) -> Tensor:
    """Sum of weighted cross-entropies of one micro-batch."""
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden.flatten(0, 1)[batch.positions])
    losses = F.cross_entropy(logits, batch.targets, reduction="none")
    digit_logps = logits[batch.digit_rows].log_softmax(-1)[:, digit_ids]
    soft = -(batch.digit_targets * digit_logps).sum(-1)
    return (losses.index_put((batch.digit_rows,), soft) * batch.weights).sum()


def train_step(
    model: Gemma3ForCausalLM,
    batches: list[MicroBatch],
    digit_ids: Tensor,
    optimizers: list[torch.optim.Optimizer],
    clip: float,
) -> float:
    """One optimiser step; the divisor is counted before the first backward pass."""
    total_weight = sum(float(batch.weights.sum()) for batch in batches)
    total = 0.0
    for batch in batches:
        loss = weighted_loss(model, batch, digit_ids) / total_weight
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return total


@dataclass
class Progress:
    """Where a training run stands."""

    shard: int = 0
    tokens: int = 0
    seconds: float = 0.0


def save_state(
    path: Path, model: Gemma3ForCausalLM, optimizers: list[torch.optim.Optimizer], at: Progress
) -> None:
    state = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "progress": asdict(at),
    }
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def load_state(
    path: Path, model: Gemma3ForCausalLM, optimizers: list[torch.optim.Optimizer]
) -> Progress:
    """Restore a saved state, or start from the beginning when there is none."""
    if not path.exists():
        return Progress()
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return Progress(**state["progress"])


def train(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, work: Path) -> Gemma3ForCausalLM:
    """Train to the end of the recipe, resuming from `work` when it holds a state."""
    model, encoder = new_model(tokenizer, recipe), Encoder(tokenizer)
    optimizers, digit_ids = optimisers(model, recipe), torch.tensor(encoder.digit_ids)
    base_rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    path = work / f"state-{recipe.seed}.pt"
    at = load_state(path, model, optimizers)
    model.train()
    bar = tqdm(total=recipe.tokens, initial=at.tokens, unit="tok", unit_scale=True, mininterval=20)
    while at.tokens < recipe.tokens:
        started, pending, losses = time.monotonic(), [], []
        for batch in shard(encoder, recipe.seed, at.shard):
            pending.append(batch)
            at.tokens += batch.ids.numel()
            if len(pending) < ACCUMULATE:
                continue
            factor = learning_rate_factor(at.tokens / recipe.tokens, recipe.warmup)
            for optimizer, rate in zip(optimizers, base_rates, strict=True):
                optimizer.param_groups[0]["lr"] = rate * factor
            losses.append(train_step(model, pending, digit_ids, optimizers, recipe.clip))
            bar.update(sum(b.ids.numel() for b in pending))
            pending = []
        at.shard += 1
        at.seconds += time.monotonic() - started
        logger.info(
            f"seed {recipe.seed} shard {at.shard}: {at.tokens / 1e6:.2f} M tokens, "
            f"loss {sum(losses) / len(losses):.3f}, {at.tokens / at.seconds:,.0f} tokens/s"
        )
        if at.shard % SAVE_EVERY == 0 or at.tokens >= recipe.tokens:
            save_state(path, model, optimizers, at)
    bar.close()
    return model.eval()
