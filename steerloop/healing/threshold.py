"""τ in units of the model: a share of the KL to base that a coherent teacher has by its doses.

c* is solved such that the 95th percentile of the per-token KL is `target_kl`, and KL grows with the
square of a dose, as long as the text holds. So what A_row of the teacher is can be said before
anything is sampled, from the config alone. What is measured on completions can't say it: where they
are broken, it is the damage itself that would be measured, and allowed.
"""

from statistics import fmean
from typing import Any

# A_row of a row of the teacher at c*, over target_kl, as measured on the embedded model and on
# SmolLM2-135M-Instruct (docs/results.md).
AT_DOSE = {"rmse": 0.5, "mean": 0.3, "p95": 1.0, "max": 2.0}


def threshold(cfg: Any) -> float:
    """τ, nats: `tau`, or where that is 0, `tau_share` of what A_row of the teacher is by its
    doses. 0 where both are: every row pays from its first nat."""
    if cfg.tau:
        return cfg.tau
    squares = fmean(multiple**2 for multiple in cfg.multiples)
    return cfg.tau_share * AT_DOSE[cfg.agg] * squares * cfg.target_kl
