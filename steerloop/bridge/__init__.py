"""Other people's evaluations of our model, in the state it is in: gated, steered or bare.

`--eval moralmaps` runs the public package `moralmaps` (formerly `tinymfv`) beside our own measures,
so that a run can be compared with published profiles. `just vendor --install` installs it.
"""

from collections.abc import Callable, Collection
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from inspect import Parameter, signature
from math import exp, isfinite
from types import ModuleType
from typing import Any

from steerloop import UserError
from steerloop.config import Config
from steerloop.model import Model
from steerloop.texts.foundations import foundation

NAMES = ("moralmaps", "tinymfv")
KNOWN = "moralmaps 0.1.0 (github.com/wassname/moral-maps at a9a0132)"  # the interface relied upon
ASKED = {"name": "classic", "n_vignettes": None, "conditions": ("other_violate",), "batch_size": 8,
         "return_per_row": True, "verbose": 0}  # louder, it samples 512 tokens for its log
LEAST = 1  # token of thought: its `generate` refuses 0


def moralmaps() -> Callable[[Model, Config], dict[str, list[float]]]:
    """The probe (see `profiles`). Raises UserError where the package is not installed, cannot be
    imported, or lacks what is asked of it."""
    name = next((x for x in NAMES if find_spec(x)), None)
    if name is None:
        raise UserError("--eval moralmaps needs the package moralmaps, which is not installed "
                        "here: `just vendor --install`, or leave --eval out")
    try:
        package = import_module(name)
    except ImportError as e:
        raise UserError(f"--eval moralmaps: the package {name} cannot be imported ({e}): "
                        "`just vendor --install` installs what it needs too") from e
    _expect(package, ["evaluate"], dir(package), "function")
    takes = signature(package.evaluate).parameters
    if Parameter.VAR_KEYWORD not in {x.kind for x in takes.values()}:
        _expect(package, [*ASKED, "max_think_tokens"], takes, "argument")
    return partial(profiles, package)


def profiles(package: ModuleType, model: Model, cfg: Config) -> dict[str, list[float]]:
    """What it says of the model as it stands. One number each: its profile (moralmaps_⟨foundation⟩,
    shares) and prefill perplexity (moralmaps_ppl_prefill). A value per vignette, whose means are
    the package's own: whether its first choice is the label's (moralmaps_top1) and its mass on
    allowed answers (moralmaps_pmass); a vignette that it calls unscorable has 0 of both.

    It writes its own prompts, which a persona would not reach: then it measures nothing. It thinks
    for one token at least, so --think_tokens 0 asks for one. Raises UserError where its answer
    lacks a column.
    """
    if model.persona:
        return {}
    said = package.evaluate(
        model.hf, model.tokenizer, max_think_tokens=max(LEAST, cfg.think_tokens), **ASKED
    )
    _expect(package, ["profile", "mean_nll_prefill", "per_row"], said, "result")
    table, rows, nll = said["profile"], said["per_row"], said["mean_nll_prefill"]
    if table is None or nll is None:
        raise UserError(f"--eval moralmaps: {package.__name__} could score no vignette on this "
                        "model: leave --eval out")
    _expect(package, ["foundation", "model"], table.columns, "column")
    for row in rows:
        _expect(package, ["p", "label", "pmass_allowed"], row, "column")
    profile = zip(table["foundation"], table["model"], strict=True)
    return {f"moralmaps_{foundation(name)}": [float(share)] for name, share in profile} | {
        "moralmaps_pmass": [_mass(row) for row in rows],
        "moralmaps_ppl_prefill": [exp(nll)],
        "moralmaps_top1": [_right(row) for row in rows if row["label"] is not None],
    }


def _mass(row: dict[str, Any]) -> float:
    return float(row["pmass_allowed"]) if isfinite(row["pmass_allowed"]) else 0.0


def _right(row: dict[str, Any]) -> float:
    chosen, label = list(row["p"]), list(row["label"])
    return float(all(map(isfinite, chosen)) and
                 chosen.index(max(chosen)) == label.index(max(label)))


def _expect(package: ModuleType, needed: list[str], there: Collection[str], kind: str) -> None:
    lacking = [x for x in needed if x not in there]
    if lacking:
        raise UserError(f"--eval moralmaps: the {package.__name__} installed here has no {kind} "
                        f"{', '.join(lacking)}; {KNOWN} has: install that, or leave --eval out")
