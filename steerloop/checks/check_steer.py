"""The vector is the mean difference of hidden states at the last prompt token, read without running
what lies above; steering adds dose · v where it says, nowhere else, and leaves no trace."""

from dataclasses import replace

import pytest
import torch

from steerloop.checks.small import DEPTH, WIDTH, token_batch
from steerloop.checks.twins import add_to_blocks
from steerloop.config import parse
from steerloop.kernels.spectral import cosine
from steerloop.readouts.states import states
from steerloop.steer import extract, steered
from steerloop.texts.data import read_data

PAIRS = [("Be kind.", "Obey, always."), ("Help all people.", "Rank first.")]
CONTEXTS = ["Hi.", "What should I do now?", "Tell me about the old town hall.", "Go?", "1 + 1"]
IDS = token_batch(3, 20)


def block_outputs(model, ids):
    """Output of every block on a batch, in order."""
    found, handles = [], []
    for block in model.decoder.layers:
        handles.append(block.register_forward_hook(lambda m, i, out: found.append(out.clone())))
    with torch.no_grad():
        model.trunk(ids, ids >= 0)
    for handle in handles:
        handle.remove()
    return found


def extracted(s, blocks, size):
    """The vector of PAIRS and CONTEXTS on these blocks, in batches of this size."""
    data = replace(read_data(parse([])), pairs=PAIRS, contexts=CONTEXTS)
    return extract(s.model, data, replace(s.cfg, steer_blocks=blocks, batch_rows=size))


@pytest.mark.parametrize("size", [1, 4, 64])
@pytest.mark.parametrize("blocks", [[2, 3], [3]])  # block 2 is the first to see past the window
def check_extract_is_the_difference_of_hidden_states(small, size, blocks):
    s = small()
    found, bare = extracted(s, blocks, size), s.bare()
    assert list(found) == blocks
    for block in blocks:
        total = torch.zeros(WIDTH)
        for i, context in enumerate(CONTEXTS):
            for system, sign in zip(PAIRS[i % 2], (1, -1), strict=True):
                ids = torch.tensor([s.model.render(context, system)])
                with torch.no_grad():
                    states = bare(input_ids=ids, output_hidden_states=True).hidden_states
                total += sign * states[block + 1][0, -1]  # entry 0 is the embedding
        wanted = total / len(CONTEXTS)
        assert wanted.norm() > 0.1
        assert torch.allclose(found[block], wanted, atol=1e-4, rtol=1e-4)


def check_states_are_those_of_prompts_alone(small):
    """In the order in which they were asked, whatever is read together."""
    s = small()
    prompts = [s.model.render(x) for x in ("a", "a b c d e f", "a b", "a b c d e f g h", "b")]
    alone = torch.cat([states(s.model, [x], [2], 1)[2] for x in prompts])
    assert torch.allclose(states(s.model, prompts, [2], 2)[2], alone, atol=1e-4, rtol=1e-4)


def check_nothing_above_the_deepest_block_runs(small):
    s, ran = small(), []
    for i, block in enumerate(s.model.decoder.layers):
        block.register_forward_hook(lambda m, a, out, i=i: ran.append(i))
    s.model.decoder.norm.register_forward_hook(lambda *_: ran.append(DEPTH))
    extracted(s, [1, 2], 4)
    assert ran.count(0) == ran.count(1) == ran.count(2) > 1
    assert max(ran) <= 2


class Counted:
    """Doses that count how often they are read: once by each steering hook that fires."""

    def __init__(self, dose):
        self.reads, self._dose = 0, torch.tensor(dose)

    @property
    def dose(self):
        self.reads += 1
        return self._dose


def check_hooks_fire_once_per_forward_and_block(small):
    s, rows = small(steer_blocks=[0, 2, 3]), Counted([1.0, 0.5, 0.0])
    with torch.no_grad(), steered(s.model, s.vector(), rows):
        rows.reads = 0  # checking its type is a reading, too
        for _ in range(4):
            s.model.trunk(IDS, IDS >= 0)
    assert rows.reads == 4 * 3
    s.logits(IDS)
    assert rows.reads == 4 * 3  # gone with the block


def check_steering_leaves_earlier_blocks_alone(small):
    s = small(steer_blocks=[2])
    vector, plain = s.vector(), block_outputs(s.model, IDS)
    with torch.no_grad(), steered(s.model, vector, 1.5):
        moved = block_outputs(s.model, IDS)
    for block in (0, 1):
        assert torch.equal(moved[block], plain[block])
    assert torch.allclose(moved[2], plain[2] + 1.5 * vector[2], atol=1e-5)
    for block in (3, 4):
        assert not torch.allclose(moved[block], plain[block], atol=1e-2)


def check_each_row_gets_its_own_dose(small):
    s, doses = small(), [0.0, 0.7, -1.3]
    vector, rows, bare = s.vector(), Counted(doses), s.bare()
    with torch.no_grad(), steered(s.model, vector, rows):
        mixed = s.logits(IDS)
    for i, dose in enumerate(doses):
        with torch.no_grad(), add_to_blocks(bare, {b: dose * v for b, v in vector.items()}):
            alone = bare(input_ids=IDS[i : i + 1]).logits[0]
        assert torch.allclose(mixed[i], alone, atol=1e-4, rtol=1e-4)
    assert torch.allclose(mixed[0], s.logits(IDS)[0], atol=1e-5)
    assert not torch.allclose(mixed[1], s.logits(IDS)[1], atol=0.1)


def check_steering_is_gone_after_an_exception(small):
    s = small()
    before = s.logits(IDS)
    with pytest.raises(ZeroDivisionError), torch.no_grad(), steered(s.model, s.vector(), 2.0):
        assert not torch.equal(s.logits(IDS), before)
        raise ZeroDivisionError
    assert torch.equal(s.logits(IDS), before)
    assert not any(block._forward_hooks for block in s.model.decoder.layers)


def check_a_failing_extraction_leaves_no_hook(small, monkeypatch):
    s = small()
    monkeypatch.setattr(s.model.decoder.layers[1].mlp, "forward", None)
    with pytest.raises(TypeError):
        extracted(s, [1, 2], 4)
    assert not any(block._forward_hooks for block in s.model.decoder.layers)


def check_steering_refuses_gradients(small):
    s = small()
    with pytest.raises(RuntimeError), steered(s.model, s.vector(), 1.0):
        pass
    assert not any(block._forward_hooks for block in s.model.decoder.layers)


def check_cosine():
    a = {1: torch.tensor([3.0, 0.0]), 2: torch.tensor([0.0, 4.0])}
    b = {2: torch.tensor([0.0, 1.0]), 1: torch.tensor([0.0, 2.0])}
    assert cosine(a, a) == pytest.approx(1)
    assert cosine(a, {k: -5 * x for k, x in a.items()}) == pytest.approx(-1)
    assert cosine(a, b) == pytest.approx(4 / (5 * 5**0.5))
