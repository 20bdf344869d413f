"""Only the live factors learn, their gradient is that of a model with the history merged for good,
and what is saved of a round is the round."""

import pytest
import torch
from safetensors.torch import load_file

from steerloop import lora
from steerloop.barrier import Barrier
from steerloop.checks.small import completions, token_batch
from steerloop.heal import heal, step_loss
from steerloop.kernels.batch import Row
from steerloop.runfolder.folder import Folder

IDS = token_batch(2, 18)
BARRIER = Barrier("kl_rev", "rmse", 1.0, 0.1)


def base_states(s, table):
    """Hidden states of the untouched base at completion positions, row by row."""
    with torch.no_grad(), s.model.gates(s.model.gates.before(0)):
        (batch,) = s.model.batches(table, len(table))
        return list(batch.split(s.model.hidden(batch)))


def step_rows(s, table):
    """What one optimiser step reads: prompt, completion, reference states of each row."""
    columns = table["prompt_ids"].to_list(), table["completion_ids"].to_list()
    return [Row(*x) for x in zip(*columns, base_states(s, table), table["row"], strict=True)]


def gradients(s, rows, size=6, barrier=BARRIER):
    """Gradients of the live factors over one optimiser step."""
    s.model.hf.zero_grad()
    step_loss(s.model, rows, barrier, size)
    return [p.grad.clone() for p in s.live()]


def check_gradient_with_history_is_that_of_a_merged_model(small):
    gated, merged, table = small(), small(), completions(5)
    rows = step_rows(gated, table)
    for k in range(2):
        gated.stir(seed=k)
        gated.fold()
        for name, layer in merged.model.layers.items():
            part = gated.model.layers[name].slot(k)
            merged_weight = layer.base.weight + layer.scale * part["B"] @ part["A"]
            layer.base = torch.nn.Linear(*layer.base.weight.shape[::-1], bias=False)
            layer.base.requires_grad_(False).weight.copy_(merged_weight)
    gated.stir(seed=7)
    for ours, theirs in zip(gated.live(), merged.live(), strict=True):
        theirs.data.copy_(ours.data)
    found, wanted = gradients(gated, rows), gradients(merged, rows)
    for a, b in zip(found, wanted, strict=True):
        assert b.norm() > 1e-4
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * b.abs().max().item())


def check_first_gradient_reaches_live_factors_alone(small):
    s = small(rounds=2)
    s.stir(seed=0)
    s.fold()
    rows = step_rows(s, completions(4))
    lora.open_round(s.model.layers, s.model.gates, seed=1)
    step_loss(s.model, rows, BARRIER, 4)
    trainable = {id(p) for p in s.live()}
    for name, p in s.model.hf.named_parameters():
        assert p.requires_grad == (id(p) in trainable), name
        assert id(p) in trainable or p.grad is None, name
    for layer in s.model.layers.values():
        assert layer.live_B.grad.norm() > 0
        assert not layer.live_A.grad.any()  # B = 0 hides A at first


def check_heal_moves_live_factors_and_nothing_else(small):
    s = small(epochs=2, lr=1e-2, val_share=0.0)
    frozen = {k: x.clone() for k, x in s.model.hf.state_dict().items() if "live" not in k}
    lora.open_round(s.model.layers, s.model.gates, s.cfg.seed)
    start = [p.detach().clone() for p in s.live()]
    heal(s.model, completions(6), s.cfg, 0)
    for before, now in zip(start, s.live(), strict=True):
        assert not torch.equal(before, now)
    now = s.model.hf.state_dict()
    for name, before in frozen.items():
        assert torch.equal(now[name], before), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def check_save_and_load_are_exact(small, tmp_path, dtype):
    first, second, folder = small(dtype=dtype), small(dtype=dtype), Folder(tmp_path / "run")
    for k in range(2):
        first.stir(seed=k)
        folder.tensors(f"rounds/{k:02d}/adapter", first.fold(), round=k)
    for k in range(2):
        found = load_file(tmp_path / f"run/rounds/{k:02d}/adapter.safetensors")
        assert {x.dtype for x in found.values()} == {getattr(torch, dtype)}
        lora.fold(second.model.layers, second.model.gates, found)
    assert second.model.gates.live == 2
    assert torch.equal(second.logits(IDS), first.logits(IDS))
    with torch.no_grad(), first.model.gates(first.model.gates.before(1)):
        once = first.logits(IDS)
    assert not torch.equal(once, first.logits(IDS))  # both rounds are heard


def check_loading_the_rounds_of_another_model_is_refused(small):
    one, other = small(lora_blocks=[1, 2]), small(lora_blocks=[2, 3])
    one.stir(seed=0)
    with pytest.raises(KeyError):
        lora.fold(other.model.layers, other.model.gates, one.fold())
    assert other.model.gates.live == 0


def check_a_fresh_round_is_seeded(small):
    s, draws = small(), []
    for seed in (0, 0, 1):
        lora.open_round(s.model.layers, s.model.gates, seed)
        draws.append([layer.live_A.detach().clone() for layer in s.model.layers.values()])
    assert all(map(torch.equal, draws[0], draws[1]))
    assert not any(map(torch.equal, draws[0], draws[2]))
    assert all(0.9 < x.abs().max() * x.shape[1] ** 0.5 <= 1 for x in draws[0])
