"""The 4-bit base: its own arithmetic against dequantise-then-linear, and gradients that never stop.

Every check that takes `small` runs on a 4-bit base too; here is what is of 4 bits alone.
"""

import subprocess
import sys
import weakref

import pytest
import torch
import torch.nn.functional as F
from bitsandbytes.functional import create_dynamic_map
from hypothesis import given
from hypothesis import strategies as st

from steerloop.barrier import Barrier
from steerloop.checks.small import completions, token_batch
from steerloop.checks.world import WEIGHTS
from steerloop.heal import step_loss
from steerloop.kernels.batch import Row
from steerloop.kernels.nf4 import NF4, canonical
from steerloop.loading.weights import Stored, load_weights
from steerloop.sample import jobs, sample

LEVELS = [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
          0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]


@given(
    st.sampled_from([torch.float32, torch.bfloat16]), st.integers(1, 3), st.integers(1, 5),
    st.sampled_from([(16, 64), (48, 32), (7, 40), (64, 3)]), st.booleans(), st.integers(0, 99))
def check_forward_and_backward_are_dequantise_then_linear(dtype, b, t, shape, bias, seed):
    torch.manual_seed(seed)
    bias = torch.nn.Parameter(torch.randn(shape[0], dtype=dtype), False) if bias else None
    layer = NF4(torch.randn(shape, dtype=dtype), bias)
    x = torch.randn(b, t, shape[1], dtype=dtype).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    y, wanted = layer(x), F.linear(twin, layer.weight.clone(), bias)
    pull = torch.randn_like(y)
    y.backward(pull)
    wanted.backward(pull)
    limit = 1e-5 if dtype == torch.float32 else 2e-2
    assert y.dtype == x.grad.dtype == dtype
    assert torch.allclose(y, wanted, atol=limit, rtol=limit)
    assert torch.allclose(x.grad, twin.grad, atol=limit, rtol=limit) and x.grad.any()


def check_the_weight_is_the_nearest_level_of_its_block():
    """A twin of the format itself: each block of 64 is its largest size times one of 16 levels.

    The scales are quantised again, to 8 bits, hence the tolerance.
    """
    torch.manual_seed(0)
    weight = torch.randn(32, 128)
    blocks = weight.reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    levels = torch.tensor(LEVELS)
    nearest = levels[(blocks[..., None] / scale[..., None] - levels).abs().argmin(-1)] * scale
    found = NF4(weight, None).weight.reshape(-1, 64)
    assert (found - nearest).abs().max() < 0.02 * scale.max()
    assert (found - weight.reshape(-1, 64)).abs().mean() < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(256, 320), (640, 2048), (7, 64), (3, 50), (5, 13)])
def check_the_bytes_are_the_canonical_ones(shape, dtype):
    """Every byte of codes and scales from their definition, so that another quantiser, or another
    version of the library, has something to equal."""
    torch.manual_seed(0)
    weight = torch.randn(shape).to(dtype)
    packed, state = canonical(weight)
    blocks = padded(weight.float().flatten(), 64)
    sizes = blocks.abs().amax(1)
    codes = nearest(state.code, blocks / sizes[:, None]).flatten()[: -(-weight.numel() // 2) * 2]
    high, low = padded(codes, 2).T
    assert torch.equal(packed.flatten(), (16 * high + low).to(torch.uint8))
    assert torch.allclose(state.code, torch.tensor(LEVELS), atol=1e-7)
    assert torch.equal(state.offset, sizes.mean())
    rest = padded(sizes - sizes.mean(), 256)
    largest = rest.abs().amax(1)
    assert torch.equal(state.state2.absmax, largest)
    table = nearest(create_dynamic_map(), torch.arange(2**16) * (2 / 65535) - 1)
    place = ((rest / largest[:, None] + 1) * 32767.5 + 0.5).floor().long()
    assert torch.equal(state.absmax, table[place].flatten()[: len(sizes)].to(torch.uint8))


def padded(x, width):
    """Rows of `width`, the last one filled with zeros."""
    return F.pad(x, (0, -len(x) % width)).reshape(-1, width)


def nearest(levels, x):
    """The index of the level that is nearest to each number."""
    return torch.bucketize(x.double(), (levels[1:].double() + levels[:-1].double()) / 2)


def check_a_weight_takes_little_more_than_four_bits():
    layer = NF4(torch.randn(256, 256), None)
    state = layer.state
    held = sum(x.nbytes for x in (layer.packed, state.absmax, state.state2.absmax))
    assert not list(layer.parameters())
    assert 8 * held / 256**2 == pytest.approx(4.127, abs=0.01)


def check_every_linear_layer_of_the_blocks_is_packed(small):
    s = small()
    linear = [getattr(m, "base", m) for m in s.model.decoder.layers.modules()
              if isinstance(m, torch.nn.Linear) or m in s.model.layers.values()]
    assert len(linear) > len(s.model.layers)
    assert all((type(m) is NF4) is (s.cfg.quant == "nf4") for m in linear)
    assert type(s.model.hf.get_output_embeddings()) is torch.nn.Linear
    assert not getattr(s.model.hf.config, "quantization_config", None)


def dense_twin(small):
    """The same model with every 4-bit layer replaced by a dense one of the same weight."""
    twin = small()
    for name, layer in list(twin.model.decoder.named_modules()):
        if type(layer) is NF4:
            dense = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
            dense.requires_grad_(False).weight.copy_(layer.weight)
            twin.model.decoder.set_submodule(name, dense)
    return twin


def check_gradients_flow_after_no_grad_passes(small):
    """The trap of bitsandbytes' own layer: sampling in eval mode, then healing."""
    s, rows, twin = small(), completions(4), dense_twin(small)
    for one in (s, twin):
        one.stir(seed=1)
    sample(s.model, jobs(s.model, ["Why?", "Go"], [0.0, 1.0]), s.vector(), s.cfg, "0|test")
    columns = rows.select("prompt_ids", "completion_ids", "row").rows()
    rows = [Row(prompt, completion, None, number) for prompt, completion, number in columns]
    for one in (s, twin):
        step_loss(one.model, rows, Barrier("nll", "rmse", 0.0, 0.0), 4)
    for ours, theirs in zip(s.live(), twin.live(), strict=True):
        limit = 1e-5 * theirs.grad.abs().max().item()
        assert ours.grad.any() and torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=limit)


def check_dense_runs_do_not_import_bitsandbytes():
    program = ("import sys, steerloop.train; from steerloop.train import load, parse; "
               "load(parse(['--device', 'cpu'])); sys.exit('bitsandbytes' in sys.modules)")
    assert WEIGHTS.is_file()
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


def check_loading_quantises_one_matrix_at_a_time(folders, monkeypatch):
    """Layer by layer it is the dense model in 4 bits, and no two full matrices coexist."""
    folder = str(folders())
    _, dense = load_weights(folder, "float32", "auto", "none", torch.device("cpu"))
    alive, most = [], []

    def watched(self, weight, bias, plain=NF4.__init__):
        most.append(sum(x() is not None for x in alive))
        plain(self, weight, bias)

    def read(self, part, plain=Stored.__getitem__):
        weight = plain(self, part)
        if weight.ndim == 2 and ".layers." in self.key:
            alive.append(weakref.ref(weight))
        return weight

    monkeypatch.setattr(Stored, "__getitem__", read)
    monkeypatch.setattr(NF4, "__init__", watched)
    _, packed = load_weights(folder, "float32", "auto", "nf4", torch.device("cpu"))
    monkeypatch.undo()
    found = {n: m for n, m in packed.named_modules() if type(m) is NF4}
    assert len(found) == len(most) == 7 * len(dense.model.layers) and max(most) == 1
    for name, layer in found.items():
        assert torch.equal(layer.weight, NF4(dense.get_submodule(name).weight, None).weight)
    ids = token_batch(2, 12)
    with torch.no_grad():
        assert not torch.equal(packed(input_ids=ids).logits, dense(input_ids=ids).logits)
