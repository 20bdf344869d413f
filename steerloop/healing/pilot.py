"""A threshold from the data: τ as a share of what plain training on the same rows operates at."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any


def pilot(cfg: Any, healed: Callable[[Any], tuple[dict[str, Any], Any]]) -> Any:
    """A config with τ set (nats), where it asks for a share: `healed` under it with λ = 0 says in
    its stats at which KL it operates. Any other config as it is."""
    if not cfg.tau_share:
        return cfg
    stats, _ = healed(replace(cfg, lam=0.0, tau=0.0, tau_share=0.0))
    return replace(cfg, tau=cfg.tau_share * stats["operating_kl"], tau_share=0.0)
