"""What the bench computes about memory is what the code does: copies of a chunk's logits, bytes of
the base, and a load that reads, samples and heals."""

from dataclasses import replace

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from steerloop.barrier import Barrier, Step, heal_loss
from steerloop.bench import load, memory
from steerloop.bench.shapes import save_random
from steerloop.config import Config
from steerloop.kernels.head import COPIES, Head
from steerloop.kernels.nf4 import NF4
from steerloop.loading.room import MOST_GPU, NF4_BITS

N, V = 64, 4096


class Peak(TorchDispatchMode):
    """The most bytes that were alive at once among the results of all operations."""

    def __init__(self):
        super().__init__()
        self.alive, self.most = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {k: v for k, v in self.alive.items() if not v[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return out


@pytest.mark.parametrize("kind", ["kl_rev", "kl_fwd"])
def check_copies_of_a_chunk_are_counted_right(kind):
    torch.manual_seed(0)
    head, h = Head(torch.randn(V, 8)), torch.randn(N, 8).requires_grad_()
    rows, targets = torch.zeros(N, dtype=torch.long), torch.zeros(N, dtype=torch.long)
    with Peak() as peak:
        step = Step(Barrier(kind, "rmse", 1.0, 0.0), N, 1)
        heal_loss(h, torch.randn(N, 8), targets, rows, head, step)
    assert COPIES - 1 < peak.most / (4 * N * V) < COPIES + 0.5


def check_bits_of_a_packed_weight_are_counted_right():
    layer = NF4(torch.randn(256, 256), None)
    held = sum(x.nbytes for x in (layer.packed, layer.state.absmax, layer.state.state2.absmax))
    assert 8 * held / 256**2 == pytest.approx(NF4_BITS, abs=0.01)


def check_needs_grow_with_what_is_asked():
    cfg = Config(batch=3, batch_rows=8, max_new_tokens=64)
    found, part = memory.need("tiny", cfg), "activations of a micro-batch"
    dense, more, longer = (memory.need("tiny", replace(cfg, **x)) for x in (
        {"quant": "none"}, {"batch": 6}, {"max_new_tokens": 384}))
    assert found["healing"] == pytest.approx(sum(list(found.values())[:7]))
    assert dense["base"] > 2 * found["base"] - 0.01 and (
        dense["healing"] > found["healing"] - found["weights unpacked to train"])
    assert more[part] == 2 * found[part] and more["key-value cache"] == found["key-value cache"]
    assert 2 < longer[part] / found[part] < 4, "of 640 tokens in the place of 320"
    assert longer["key-value cache"] == 2 * found["key-value cache"]
    free = memory.need("tiny", Config())
    assert (free["rows of a micro-batch"], free["rows of a batch"]) == (6, MOST_GPU)


def check_a_random_model_loads_samples_and_heals(tmp_path):
    folder = save_random(tmp_path / "model", "tiny", shard="4MB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    cfg = Config(model=str(folder), device="cpu", rounds=2, r=4, dtype="bfloat16")
    found = load.run(cfg, rows=2, tokens=4)
    assert found["tokens"] == 2 * 4 and 0 < found["gradient"] < float("inf")
    assert found["base_mb"] < found["files_mb"] / 2
