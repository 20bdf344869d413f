"""Gates choose which rounds are heard, exactly: none of them is the untouched base, bit for bit;
folding changes no output bit; a mixed batch is its rows; nothing stays changed after a failure."""

import pytest
import torch

from steerloop import lora
from steerloop.checks.small import token_batch

IDS = token_batch(3, 20)


def with_history(small, rounds=2, **fields):
    """A small model with folded rounds and a live one, each of which changes the logits."""
    s = small(**fields)
    for k in range(rounds):
        s.stir(seed=k)
        s.fold()
    s.stir(seed=rounds)
    return s


def merged_logits(s, openness):
    """Logits of the bare model with openness[k] · s · B A of each round added to its weights."""
    bare = s.bare()
    for name, layer in s.model.layers.items():
        A, B = layer.factors()
        for k, share in enumerate(openness):
            at = slice(k * layer.r, (k + 1) * layer.r)
            bare.get_submodule(name).weight.data += share * layer.scale * B[:, at] @ A[at]
    with torch.no_grad():
        return bare(input_ids=IDS).logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(3,), (len(IDS), 3)])
def check_closed_gates_are_the_untouched_base(small, dtype, shape):
    s = with_history(small, dtype=dtype)
    with torch.no_grad():
        base = s.bare()(input_ids=IDS).logits
        with s.model.gates(torch.zeros(shape)):
            assert torch.equal(s.logits(IDS), base)
    assert not torch.allclose(s.logits(IDS).float(), base.float(), atol=0.1)  # the student differs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def check_fold_keeps_every_bit_round_after_round(small, dtype, attn):
    s = small(dtype=dtype, attn=attn, rounds=3)
    before = s.logits(IDS)
    for k in range(3):
        lora.open_round(s.model.layers, s.model.gates, seed=k)
        assert torch.equal(s.logits(IDS), before)  # a fresh Δ is an exact no-op
        s.stir(seed=k)
        changed = s.logits(IDS)
        assert not torch.equal(changed, before)
        s.fold()
        before = s.logits(IDS)
        assert torch.equal(before, changed)


def check_mixed_rows_are_three_passes(small):
    s, before = with_history(small), None
    gates = s.model.gates
    states = [gates.before(0), gates.before(gates.live), torch.ones(3)]
    with torch.no_grad(), gates(torch.stack(states)):
        mixed = s.logits(IDS)
    for row, state in enumerate(states):
        with torch.no_grad(), gates(state):
            alone = s.logits(IDS[row : row + 1])[0]
        assert torch.allclose(mixed[row], alone, atol=1e-5, rtol=1e-5)
        assert before is None or not torch.allclose(alone, before, atol=0.1)
        before = alone


@pytest.mark.parametrize("openness", [(1, 0, 1), (0.5, 0.25, 0), (0, 2, 1), (1, 1, 1)])
def check_gates_weigh_each_round(small, openness):
    s = with_history(small)
    with torch.no_grad(), s.model.gates(torch.tensor(openness).float()):
        found = s.logits(IDS)
    assert torch.allclose(found, merged_logits(s, openness), atol=1e-3, rtol=1e-4)


def check_no_gates_are_all_gates_open(small):
    s = with_history(small)
    assert torch.allclose(s.logits(IDS), merged_logits(s, (1, 1, 1)), atol=1e-3, rtol=1e-4)


def check_before_names_the_earlier_students(small):
    s = small()
    s.stir(seed=0)
    s.fold()
    student = s.logits(IDS)
    s.stir(seed=1)
    with torch.no_grad(), s.model.gates(s.model.gates.before(s.model.gates.live)):
        previous = s.logits(IDS)
    assert torch.allclose(previous, student, atol=1e-5)
    assert not torch.allclose(s.logits(IDS), student, atol=0.1)


def check_gates_refuse_to_move_under_gradients(small):
    gates = small().model.gates
    with pytest.raises(RuntimeError), gates(gates.before(0)):
        pass
    assert gates.value is None


def check_gates_are_restored_after_an_exception(small):
    gates = small().model.gates
    outer = torch.ones(3)
    with torch.no_grad(), gates(outer):
        with pytest.raises(ZeroDivisionError), gates(gates.before(0)):
            raise ZeroDivisionError
        assert gates.value is outer
    assert gates.value is None and not gates.closed
