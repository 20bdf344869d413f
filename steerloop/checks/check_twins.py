"""The races are fair: in fp32 the straightforward twins of the bench compute what ours does."""

from dataclasses import replace
from random import Random

import polars as pl
import pytest
import torch

from steerloop.barrier import Barrier, Step, heal_loss
from steerloop.bench import twins
from steerloop.checks.small import completions, data_files
from steerloop.dose import dose as solve
from steerloop.dose import kl_by_dose
from steerloop.heal import step_loss
from steerloop.kernels.batch import Row
from steerloop.kernels.head import Head
from steerloop.readouts.forced_choice import choices
from steerloop.sample import completion_losses, jobs, sample
from steerloop.steer import extract
from steerloop.texts.data import read_data

TEXTS = ["He told me to lie. Well?", "No."]
DENSE = pytest.mark.parametrize("small", ["none"], indirect=True)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def raced(ours):
    """A small model and its twin."""
    return ours.model, twins.load(ours.cfg, ours.model), ours.cfg


@pytest.mark.parametrize("kind", ["kl_rev", "kl_fwd"])
def check_loss_and_gradient(kind):
    torch.manual_seed(0)
    head, (h, h_ref) = Head(torch.randn(50, 8)), torch.randn(2, 12, 8)
    rows, targets = torch.tensor([0] * 5 + [1] * 3 + [2] * 4), torch.randint(50, (12,))
    barrier, found = Barrier(kind, "rmse", 0.7, 0.5), []
    for twin in (False, True):
        x = h.clone().requires_grad_()
        loss = (twins.loss(head(x), head(h_ref), targets, rows, barrier, 12, 3) if twin else
                heal_loss(x, h_ref, targets, rows, head, Step(barrier, 12, 3))[0])
        loss.backward()
        found.append((loss.detach(), x.grad))
    torch.testing.assert_close(*found, **CLOSE)


def check_a_heal_step(small):
    ours = small()
    model, twin, _ = raced(ours)
    table = completions(5).filter(pl.col("completion_ids").list.len() > 1)
    columns = table["prompt_ids"].to_list(), table["completion_ids"].to_list()
    with torch.no_grad(), model.gates(model.gates.before(0)):
        refs = [x for batch in model.batches(table, 8) for x in batch.split(model.hidden(batch))]
    ours.stir(0)
    barrier = Barrier("kl_rev", "rmse", 2.0, 0.1)
    rows = [Row(*x) for x in zip(*columns, refs, table["row"], strict=True)]
    nlls, tops = step_loss(model, rows, barrier, 3)
    assert min(tops) > barrier.tau
    student = twins.adapted(twin, list(model.layers))
    factors = {name: x for name, x in student.named_parameters() if x.requires_grad}
    with torch.no_grad():
        for name, x in factors.items():
            path, _, factor = name.removeprefix("base_model.model.").partition(".lora_")
            x.copy_(getattr(model.layers[path], f"live_{factor[0]}"))
    loss = twins.step_loss(student, twin, list(zip(*columns, strict=True)), barrier, 2)
    expected = sum(nlls) / len(nlls) + 2.0 * sum(x - 0.1 for x in tops) / len(tops)
    assert loss == pytest.approx(expected, rel=1e-4)
    assert len(factors) == 2 * len(model.layers)
    for name, x in factors.items():
        path, _, factor = name.removeprefix("base_model.model.").partition(".lora_")
        mine = getattr(model.layers[path], f"live_{factor[0]}").grad
        torch.testing.assert_close(x.grad, mine, rtol=1e-3, atol=1e-4 * mine.abs().max().item())


@pytest.mark.parametrize(
    ("small", "stops"), [("none", True), ("none", False), ("nf4", False)], indirect=["small"])
def check_greedy_tokens(small, stops):
    ours = small(max_new_tokens=6, temperature=0.0)
    model, twin, cfg = raced(ours)
    vector, doses = ours.vector(), [0.0, 20.0]
    table = sample(model, jobs(model, TEXTS, doses), vector, cfg, "x", stops)
    prompts, expected = table["prompt_ids"].to_list(), table["completion_ids"].to_list()
    for run in (twins.sample, twins.sample_batch):
        assert run(twin, prompts, table["dose"].to_list(), vector, 6, 0.0, stops) == expected
    assert expected[::2] != expected[1::2]  # steered or not makes a difference


@DENSE
def check_choices(small):
    model, twin, cfg = raced(small())
    vignettes = pl.DataFrame({"text": TEXTS, "label": ["care", "liberty"]})
    for think in (0, 2):
        found = choices(model, vignettes, replace(cfg, think_tokens=think))
        for text, mine in zip(TEXTS, found.to_dicts(), strict=False):
            other = twins.choice(twin, text, think)
            assert {k: mine[k] for k in other} == pytest.approx(other, rel=1e-4)


@DENSE
def check_doses_and_scores(small, tmp_path):
    ours = small(temperature=0.0, dose_prompts=2, dose_tokens=5, target_kl=0.5)
    model, twin, cfg = raced(ours)
    data = read_data(replace(cfg, **data_files(tmp_path)))
    vector, prompts = ours.vector(), [model.render(x) for x in data.prompts[:2]]
    for dose, p95 in kl_by_dose(model, vector, data, [0.2, 0.6], cfg, "x")["dose", "p95"].rows():
        assert twins.p95(twin, prompts, vector, dose) == pytest.approx(p95, rel=1e-3)
    gap = twins.solve(twin, prompts, vector) / solve(model, vector, data, cfg, "x")[0]
    assert 2 ** (-1 / twins.STEPS) < gap < 2 ** (1 / twins.STEPS)
    rows = completions(2)
    for mine, *row in zip(completion_losses(model, rows, cfg)[0], rows["prompt_ids"].to_list(),
                          rows["completion_ids"].to_list(), strict=True):
        torch.testing.assert_close(twins.score(twin, *row), mine, **CLOSE)


@DENSE
def check_vectors(small, tmp_path):
    model, twin, cfg = raced(small(batch_rows=3))
    pair, rng = ("Be kind.", "Obey."), Random(0)
    texts = ["".join(rng.choices("abcde ", k=5 + i)) for i in range(5)]
    plus, minus = ([model.render(x, pole) for x in texts] for pole in pair)
    data = replace(read_data(replace(cfg, **data_files(tmp_path))), pairs=[pair], contexts=texts)
    mine = extract(model, data, cfg)
    other = twins.extract(twin, plus, minus, cfg.steer_blocks)
    torch.testing.assert_close(mine, other, **CLOSE)
