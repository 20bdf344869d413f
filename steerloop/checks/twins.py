"""Slow, obvious twins: each computes in plain steps what the package computes cleverly."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from steerloop.barrier import Barrier
from steerloop.kernels.head import Head


def dense_logp(h: Tensor, head: Head) -> Tensor:
    """Hidden states → log-probabilities, everything at once in fp32."""
    z = head.scale * (h.float() @ head.weight.float().T)
    if head.softcap is not None:
        z = head.softcap * (z / head.softcap).tanh()
    return z - z.logsumexp(-1, keepdim=True)


def dense_kl(logp: Tensor, logq: Tensor) -> Tensor:
    """KL(p‖q) over the last axis, nats."""
    return (logp.exp() * (logp - logq)).sum(-1)


def dense_aggregate(kls: Tensor, agg: str) -> Tensor:
    """Aggregate of one row's KLs, each by its textbook formula."""
    if agg == "rmse":
        return (kls**2).mean().sqrt()
    if agg == "mean":
        return kls.sum() / len(kls)
    ordered = kls.sort().values
    if agg == "max":
        return ordered[-1]
    place = 0.95 * (len(kls) - 1)
    low = math.floor(place)
    high = min(low + 1, len(kls) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def dense_heal_loss(
    h: Tensor,
    h_ref: Tensor | None,
    targets: Tensor,
    rows: Tensor,
    head: Head,
    barrier: Barrier,
    n_total: int,
    b_total: int,
) -> tuple[Tensor, list[float], list[float]]:
    """L by its definition, one position and one row at a time; differentiable by autograd."""
    logp, nlls, tops = dense_logp(h, head), [], []
    loss = h.float().sum() * 0
    for i, target in enumerate(targets.tolist()):
        nlls.append(-logp[i, target].item())
        loss = loss - logp[i, target] / n_total
    for row in sorted(set(rows.tolist())) if h_ref is not None else []:
        kls = []
        for i in (rows == row).nonzero()[:, 0].tolist():
            logq = dense_logp(h_ref[i], head).detach()
            forward = barrier.kind == "kl_fwd"
            kls.append(dense_kl(logq, logp[i]) if forward else dense_kl(logp[i], logq))
        top = dense_aggregate(torch.stack(kls), barrier.agg)
        tops.append(top.item())
        if top > barrier.tau:
            loss = loss + barrier.lam / b_total * (top - barrier.tau)
    return loss, nlls, tops


def top_p_distribution(logits: list[float], temperature: float, k: int, p: float) -> list[float]:
    """Probability of each token under temperature, top-k, then top-p within those."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])[:k]
    mass = [math.exp((logits[i] - logits[order[0]]) / temperature) for i in order]
    total, before, out = sum(mass), 0.0, [0.0] * len(logits)
    for i, x in zip(order, mass, strict=True):
        if before < p:
            out[i] = x / total
        before += x / total
    return [x / sum(out) for x in out]


def add_to_blocks(hf: Any, additions: dict[int, Tensor]) -> ExitStack:
    """Plain forward hooks that add a vector to the output of blocks, until the stack closes."""
    stack = ExitStack()
    for block, addition in additions.items():

        def hook(module: nn.Module, inputs: Any, out: Any, addition: Tensor = addition) -> Any:
            return out + addition

        handle = hf.get_decoder().layers[block].register_forward_hook(hook)
        stack.callback(handle.remove)
    return stack


@torch.no_grad()
def row_logits(hf: Any, ids: list[int], additions: dict[int, Tensor] | None = None) -> Tensor:
    """Logits (tokens, vocabulary) of one row alone: no padding, no cache."""
    with add_to_blocks(hf, additions or {}):
        return hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


def slow_decode(
    hf: Any,
    prompt: list[int],
    draws: Tensor,
    stops: list[int],
    choose: Callable[[Tensor, float], int],
    additions: dict[int, Tensor] | None = None,
) -> list[int]:
    """One row, the whole sequence read anew for every token."""
    out: list[int] = []
    for u in draws.tolist():
        out.append(choose(row_logits(hf, prompt + out, additions)[-1], u))
        if out[-1] in stops:
            break
    return out


def slow_pick(logits: Tensor, u: float, temperature: float, k: int, p: float) -> int:
    """Inverse CDF over tokens from likely to unlikely, step by step."""
    values = logits.tolist()
    if temperature == 0:
        return max(range(len(values)), key=lambda i: values[i])
    probability = top_p_distribution(values, temperature, k, p)
    total = 0.0
    for i in sorted(range(len(values)), key=lambda i: -values[i]):
        total += probability[i]
        if u < total:
            return i
    raise AssertionError("draws lie below 1")
