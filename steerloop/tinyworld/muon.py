"""Muon in float32: momentum, then the nearest semi-orthogonal matrix, for a stack of equal shapes.

    m <- beta m + (1 - beta) g;   u = (1 - beta) g + beta m
    W <- W - lr * sqrt(max(1, rows / cols)) * ortho(u)

Replaces `torch.optim.Muon`, which computes ortho in bfloat16: on a CPU without bfloat16 units that
takes longer than forward and backward together, and this takes a tenth of a step. Left out: weight
decay.
"""

import torch
from torch import Tensor

# Quintic Newton-Schulz coefficients of Keller Jordan's Muon.
A, B, C = 3.4445, -4.7750, 2.0315
ITERATIONS = 5


def orthogonalise(stack: Tensor) -> Tensor:
    """Push the singular values of each matrix of a (k, rows, cols) stack towards 1."""
    wide = stack.shape[-2] <= stack.shape[-1]
    x = stack if wide else stack.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Parameters must be matrices; those of one shape are updated as one stack."""

    def __init__(self, params: list[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for weight in group["params"]:
                shapes.setdefault(weight.shape, []).append(weight)
            for weights in shapes.values():
                self._step_stack(weights, group["lr"], group["momentum"])

    def _step_stack(self, weights: list[Tensor], lr: float, momentum: float) -> None:
        updates = []
        for weight in weights:
            state = self.state[weight]
            buffer = state.setdefault("momentum_buffer", torch.zeros_like(weight))
            buffer.lerp_(weight.grad, 1 - momentum)
            updates.append(weight.grad.lerp(buffer, momentum))
        rows, cols = weights[0].shape
        scale = lr * max(1.0, rows / cols) ** 0.5
        for weight, update in zip(weights, orthogonalise(torch.stack(updates)), strict=True):
            weight.sub_(update, alpha=scale)
