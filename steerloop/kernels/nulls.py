"""Null vectors: directions from the same extraction that cannot be the trait.

    n_l = Σ_i ε_i [ h_l(s⁺ ⊕ x_i) − h_l(s⁻ ⊕ x_i) ] / n,    ε_i = ±1

with as many plus as minus among the contexts of each persona pair, so that the mean difference
cancels, and what is left along it taken out. Free signs are no null: the mean difference is large
against its spread, so at equal KL they are the vector again.

Letters: n contexts, d width.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def balanced(n: int, groups: int, rng: torch.Generator) -> Float[Tensor, "n"]:
    """Signs of n contexts, dealt to `groups` persona pairs in turn: as many plus as minus in each;
    one that is left over has 0."""
    signs = torch.zeros(n)
    for group in range(groups):
        mine = torch.arange(group, n, groups)
        mine = mine[torch.randperm(len(mine), generator=rng)]
        half = len(mine) // 2
        signs[mine[:half]], signs[mine[half : 2 * half]] = 1.0, -1.0
    return signs


def apart(x: Tensor, v: Tensor) -> Tensor:
    """What of x is orthogonal to v."""
    return x - (x @ v) / (v @ v) * v


def null_vectors(
    each: dict[int, Float[Tensor, "n d"]], vector: dict[int, Float[Tensor, "d"]], pairs: int,
    seed: int, k: int,
) -> list[dict[int, Float[Tensor, "d"]]]:
    """k null vectors at their raw size, orthogonal to `vector`: block → direction. `each` are the
    differences by block, of contexts that so many persona pairs took turns over."""
    n, rng = len(next(iter(each.values()))), torch.Generator().manual_seed(seed)
    found = []
    for _ in range(k):
        null = {}
        signs = balanced(n, pairs, rng)
        for block, difference in each.items():
            mean = signs.to(difference) @ difference / n
            null[block] = apart(mean, vector[block])
        found.append(null)
    return found
