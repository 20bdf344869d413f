"""Largest singular value of a low-rank product, differentiable; the cosine of two vectors."""

import torch
from jaxtyping import Float
from torch import Tensor


def sigma_max(A: Float[Tensor, "r d_in"], B: Float[Tensor, "d_out r"]) -> Float[Tensor, ""]:
    """σ_max(B A), exact, from a (d_out, r) matrix: with Aᵀ = Q R, B A = (B Rᵀ) Qᵀ."""
    return torch.linalg.matrix_norm(B @ torch.linalg.qr(A.T).R.T, ord=2)


def mean_sigma_max(factors: list[tuple[Tensor, Tensor]]) -> Float[Tensor, ""]:
    """Mean of σ_max(B A) over layers, each given as (A, B)."""
    return torch.stack([sigma_max(A, B) for A, B in factors]).mean()


def cosine(a: dict[int, Tensor], b: dict[int, Tensor]) -> float:
    """Cosine in [-1, 1] of two steering vectors over their blocks, concatenated."""
    flat = [torch.cat([x[k] for k in sorted(a)]) for x in (a, b)]
    return torch.cosine_similarity(*flat, dim=0).item()
