"""`--eval moralmaps`: without the package one clear line; with it, its numbers are those of our
model as it stands, through `generate` and forward."""

import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType

import polars as pl
import pytest
import torch

from steerloop import train
from steerloop.checks.small import token_batch
from steerloop.readouts.probes import probes
from steerloop.steer import steered
from steerloop.texts.foundations import FOUNDATIONS

NAMES = ["Care", "Fairness", "Loyalty", "Authority", "Sanctity", "Liberty", "SocialNorms"]


@pytest.fixture
def public(monkeypatch):
    """A stand-in for the package, with its call and its answer's shape → what it was given."""
    asked = {}

    def evaluate(model, tokenizer, **options):
        ids = token_batch(1, 9)
        with torch.no_grad():
            share = model(input_ids=ids).logits[0, -1, :7].softmax(-1)
        asked.update(options, new=model.generate(ids, max_new_tokens=3, do_sample=False).shape[1],
                     text=tokenizer.decode([70, 71]))
        profile = pl.DataFrame({"foundation": NAMES, "model": share.tolist(), "human": [1 / 7] * 7})
        return {"profile": profile, "mean_pmass_allowed": 0.9, "mean_nll_prefill": 0.0,
                "top1_acc": 0.5, "per_row": []}

    package = ModuleType("moralmaps")
    package.evaluate, package.__spec__ = evaluate, ModuleSpec("moralmaps", None)
    monkeypatch.setitem(sys.modules, "moralmaps", package)
    return asked


def check_its_absence_is_one_clear_line():
    with pytest.raises(SystemExit) as stopped:
        train.main(["--eval", "moralmaps", "--device", "cpu"])
    assert "just vendor --install" in stopped.value.code and "\n" not in stopped.value.code


def check_it_sees_the_model_in_its_state(small, public):
    s = small(think_tokens=5)
    measure = probes(replace(s.cfg, eval="moralmaps"))["moralmaps"]
    bare = measure(s.model, s.cfg)
    assert public["max_think_tokens"] == 5 and public["name"] == "classic"
    assert public["conditions"] == ("other_violate",) and public["n_vignettes"] is None
    assert public["new"] > 9 and public["text"]
    assert {f"moralmaps_{f}" for f in FOUNDATIONS} < set(bare)
    assert bare["moralmaps_pmass"] == [0.9] and bare["moralmaps_ppl_prefill"] == [1.0]
    with torch.no_grad(), steered(s.model, s.vector(), 2.0):
        assert measure(s.model, s.cfg) != bare
    s.stir(seed=1)
    student = measure(s.model, s.cfg)
    with torch.no_grad(), s.model.gates(s.model.gates.before(0)):
        assert student != bare == measure(s.model, s.cfg)
