"""The control barrier on the size of Δ itself."""

import torch
from torch import Tensor

from steerloop.kernels.spectral import mean_sigma_max
from steerloop.lora import Layers
from steerloop.ranks import count


def spectral_loss(layers: Layers, lam: float) -> Tensor:
    """λ · mean σ_max(s B A) over the live factors joins the gradient, where gradients are on;
    returns the mean norm."""
    top = mean_sigma_max([(x.live_A, x.scale * x.live_B) for x in layers.values()])
    if torch.is_grad_enabled():
        (lam / count() * top).backward()  # every rank has it, and what they have is added up
    return top.detach()
