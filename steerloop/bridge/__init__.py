"""Other people's evaluations of our model, in the state it is in: gated, steered or bare.

`--eval moralmaps` runs the public package `moralmaps` (formerly `tinymfv`) beside our own measures,
so that a run can be compared with published profiles. `just vendor --install` installs it.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from math import exp
from types import ModuleType

from steerloop import UserError
from steerloop.config import Config
from steerloop.model import Model
from steerloop.texts.foundations import foundation

NAMES = ("moralmaps", "tinymfv")


def moralmaps() -> Callable[[Model, Config], dict[str, list[float]]]:
    """The probe (see `profiles`). Raises UserError where the package is not installed."""
    name = next((x for x in NAMES if find_spec(x)), None)
    if name is None:
        raise UserError("--eval moralmaps needs the package moralmaps, which is not installed "
                        "here: `just vendor --install`, or leave --eval out")
    return partial(profiles, import_module(name))


def profiles(package: ModuleType, model: Model, cfg: Config) -> dict[str, list[float]]:
    """Its profile (share per foundation), mass on allowed answers, prefill perplexity and top-1
    agreement, each as one number. It writes its own prompts, which a persona would not reach: then
    it measures nothing."""
    if model.persona:
        return {}
    said = package.evaluate(
        model.hf, model.tokenizer, name="classic", n_vignettes=None,
        conditions=("other_violate",), max_think_tokens=cfg.think_tokens, batch_size=8,
        return_per_row=True,
    )  # fmt: skip
    profile = zip(said["profile"]["foundation"], said["profile"]["model"], strict=True)
    return {f"moralmaps_{foundation(name)}": [float(share)] for name, share in profile} | {
        "moralmaps_pmass": [float(said["mean_pmass_allowed"])],
        "moralmaps_ppl_prefill": [exp(said["mean_nll_prefill"])],
        "moralmaps_top1": [float(said["top1_acc"])],
    }
