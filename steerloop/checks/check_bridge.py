"""`--eval moralmaps`: without the package one clear line; with it, its numbers are those of our
model as it stands, through `generate`, its cache and forward."""

import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import polars as pl
import pytest
import torch

from steerloop import UserError, train
from steerloop.bridge import moralmaps
from steerloop.checks.small import STOPS, token_batch
from steerloop.kernels.caches import cached
from steerloop.readouts.probes import probed, probes
from steerloop.steer import steered
from steerloop.texts.foundations import FOUNDATIONS

NAMES = ["Care", "Fairness", "Loyalty", "Authority", "Sanctity", "Liberty", "SocialNorms"]
ITEMS, PROMPT, SUFFIX, OPTIONS = 3, 9, 4, slice(70, 77)


def install(monkeypatch, evaluate):
    package = ModuleType("moralmaps")
    package.evaluate, package.__spec__ = evaluate, ModuleSpec("moralmaps", None)
    monkeypatch.setitem(sys.modules, "moralmaps", package)


@pytest.fixture
def public(monkeypatch):
    """A stand-in for the package, with its signature, its road through the model (thought of a
    fixed length, then a suffix over the cache) and its answer's shape → what it was given."""
    asked = {}

    @torch.no_grad()
    def evaluate(model, tokenizer, name="classic", vignettes=None, *, n_vignettes=None,
                 conditions=("other_violate",), max_think_tokens=64, batch_size=8,
                 return_per_row=False, verbose=1):
        asked.update(name=name, vignettes=vignettes, n_vignettes=n_vignettes, verbose=verbose,
                     conditions=conditions, text=tokenizer.decode([70, 71]))
        thought = model.generate(
            token_batch(ITEMS, PROMPT), attention_mask=torch.ones(ITEMS, PROMPT, dtype=torch.long),
            max_new_tokens=max_think_tokens, min_new_tokens=max_think_tokens, do_sample=False,
            suppress_tokens=STOPS, pad_token_id=0, return_dict_in_generate=True,
            output_scores=True, num_return_sequences=1,
        )
        asked["thought"] = thought.sequences.shape[1] - PROMPT
        assert len(thought.scores) == asked["thought"] == max_think_tokens
        seen = torch.cat([thought.sequences, token_batch(ITEMS, SUFFIX, seed=1)], 1)
        logits = model(input_ids=seen[:, -SUFFIX:], attention_mask=torch.ones_like(seen),
                       **cached(model, thought.past_key_values)).logits[:, -1]
        share = logits.softmax(-1)[:, OPTIONS].double().numpy()
        p = share / share.sum(-1, keepdims=True)
        labels = [p[0], 1 - p[1], None]
        rows = [{"id": str(i), "p": p[i], "label": labels[i], "pmass_allowed": share[i].sum()}
                for i in range(ITEMS)]
        table = {"foundation": NAMES, "model": p.mean(0).tolist(), "human": [1 / 7] * 7}
        return {"profile": pl.DataFrame(table), "mean_nll_prefill": 0.0, "top1_acc": 0.5,
                "mean_pmass_allowed": float(share.sum(-1).mean()), "per_row": rows}

    install(monkeypatch, evaluate)
    return asked


def check_its_absence_is_one_clear_line():
    with pytest.raises(SystemExit) as stopped:
        train.main(["--eval", "moralmaps", "--device", "cpu"])
    assert "just vendor --install" in stopped.value.code and "\n" not in stopped.value.code


@pytest.mark.parametrize("think, thought", [(0, 1), (1, 1), (5, 5)])
def check_it_sees_the_model_in_its_state(small, public, think, thought):
    s = small(think_tokens=think)
    measure = probes(replace(s.cfg, eval="moralmaps"))["moralmaps"]
    bare = measure(s.model, s.cfg)
    assert public["thought"] == thought and public["text"]
    assert (public["name"], public["conditions"]) == ("classic", ("other_violate",))
    assert public["n_vignettes"] is public["vignettes"] is None and public["verbose"] == 0
    package = sys.modules["moralmaps"]
    own = package.evaluate(s.bare(), s.model.tokenizer, max_think_tokens=thought)
    assert bare["moralmaps_pmass"] == pytest.approx([x["pmass_allowed"] for x in own["per_row"]])
    assert np.mean(bare["moralmaps_pmass"]) == pytest.approx(own["mean_pmass_allowed"])
    shares = [bare[f"moralmaps_{f}"] for f in FOUNDATIONS]
    assert shares == [[pytest.approx(x)] for x in own["profile"]["model"]]
    assert bare["moralmaps_top1"] == [1, 0] and bare["moralmaps_ppl_prefill"] == [1.0]
    with torch.no_grad(), steered(s.model, s.vector(), 2.0):
        assert measure(s.model, s.cfg) != bare
    s.stir(seed=1)
    student = measure(s.model, s.cfg)
    with torch.no_grad(), s.model.gates(s.model.gates.before(0)):
        assert student != bare == measure(s.model, s.cfg)


def answer(**other):
    """What the package answers on three vignettes, of which it cannot score the second."""
    nan, label = [float("nan")] * 7, np.eye(7)[2]
    rows = [{"p": p, "label": label, "pmass_allowed": m}
            for p, m in ((label, 0.9), (nan, nan[0]), (np.eye(7)[3], 0.1))]
    table = pl.DataFrame({"foundation": NAMES, "model": [1 / 7] * 7})
    return {"profile": table, "per_row": rows, "mean_nll_prefill": 0.5} | other


def check_an_unscorable_item_is_no_answer(small, monkeypatch):
    install(monkeypatch, lambda *_, **__: answer())
    s = small()
    measures = probed(s.model, replace(s.cfg, eval="moralmaps"))
    assert measures["moralmaps_pmass"] == [0.9, 0.0, 0.1]
    assert measures["moralmaps_top1"] == [1, 0, 0]


def without(key):
    rows = [{k: v for k, v in row.items() if k != key} for row in answer()["per_row"]]
    if key in rows[0]:
        return {k: v for k, v in answer().items() if k != key}
    return answer(per_row=rows)


@pytest.mark.parametrize("evaluate, named", [
    (None, "no function evaluate"),
    (lambda model, tokenizer, name, *, conditions, batch_size, return_per_row, max_think_tokens: 0,
     "no argument n_vignettes, verbose"),
    (lambda *_, **__: {"top1_acc": 0.1, "per_row": []}, "no result profile, mean_nll_prefill"),
    (lambda *_, **__: answer(profile=pl.DataFrame({"foundation": NAMES})), "no column model"),
    (lambda *_, **__: without("pmass_allowed"), "no column pmass_allowed"),
    (lambda *_, **__: without("label"), "no column label"),
    (lambda *_, **__: answer(profile=None), "could score no vignette"),
])  # fmt: skip
def check_another_version_is_one_clear_line(small, monkeypatch, evaluate, named):
    install(monkeypatch, evaluate)
    if evaluate is None:
        del sys.modules["moralmaps"].evaluate
    s = small()
    with pytest.raises(UserError) as said:
        moralmaps()(s.model, s.cfg)
    assert named in str(said.value) and "\n" not in str(said.value)


def check_a_package_that_cannot_be_imported_is_one_clear_line(tmp_path, monkeypatch):
    (tmp_path / "moralmaps.py").write_text("import a_package_of_nobody\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"cannot be imported.*a_package_of_nobody"):
        moralmaps()
