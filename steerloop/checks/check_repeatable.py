"""Healing asks a GPU for sums in one order, and for nothing that has none. There is no GPU here:
the switches are looked at, and the operations of an optimiser step by name."""

import pytest
import torch
from torch.utils import deterministic
from torch.utils._python_dispatch import TorchDispatchMode

from steerloop import heal
from steerloop.barrier import Barrier
from steerloop.checks.families import DENSE, HYBRID, save_family
from steerloop.checks.small import Small, completions, small_config
from steerloop.heal import step_loss
from steerloop.healing import optimiser, repeatable
from steerloop.healing.fresh import fresh
from steerloop.healing.reference import with_reference
from steerloop.healing.repeatable import refused

CUDA = torch.device("cuda")
NONE = {  # what torch refuses on a GPU where it has to be deterministic, of what a model might use
    "cumsum", "put_", "scatter_reduce", "scatter_add", "scatter_add_", "kthvalue", "median",
    "histc", "bincount", "nll_loss2d_backward", "embedding_bag", "adaptive_avg_pool2d_backward",
    "upsample_nearest2d_backward", "upsample_bilinear2d_backward", "reflection_pad1d_backward",
    "reflection_pad2d_backward", "max_pool3d_with_indices_backward", "grid_sampler_2d_backward",
    "scatter", "scatter_"}  # the last are not refused, but slower, and easily done without


def switches():
    return torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory


def check_healing_is_strict_on_a_gpu_and_nothing_else_is(small, monkeypatch):
    s, seen = small(), []
    monkeypatch.setattr(optimiser, "repeatable", lambda hf, device: repeatable.repeatable(hf, CUDA))
    monkeypatch.setattr(heal, "step_loss", lambda *args, **kw: (seen.append(switches()),
                                                                step_loss(*args, **kw))[1])
    before = switches()
    heal.heal(s.model, completions(8), s.cfg, 0)
    *steps, last = seen
    assert set(steps) == {(True, False)} and len(steps) > 2
    assert last == before == switches() == (False, True), "rows held out are only measured"


def check_a_cpu_is_left_alone(small):
    s = small()
    with optimiser.training(s.model.hf, False):
        assert switches() == (False, True)


def check_the_switch_goes_back_whatever_happens(small):
    s = small()
    with pytest.raises(KeyError), repeatable.repeatable(s.model.hf, CUDA):
        assert switches() == (True, False)
        raise KeyError
    assert switches() == (False, True)


def check_a_mode_that_was_on_stays_on(small):
    s = small()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with repeatable.repeatable(s.model.hf, CUDA):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def check_a_model_that_has_no_strict_form_is_trained_as_it_is_and_that_is_said(
    small, monkeypatch
):
    s, said = small(), []
    fresh(s.model.layers, s.model.gates, 0)

    def fails(*_):
        raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but "
                           "you set it")

    monkeypatch.setattr(repeatable.logger, "warning", said.append)
    handle = s.model.decoder.layers[0].register_forward_hook(fails)
    assert refused(s.model.hf) == "cumsum_cuda_kernel"
    for _ in range(2):
        with repeatable.repeatable(s.model.hf, CUDA):
            assert switches()[0] is False
    handle.remove()
    assert len(said) == 1 and "on a GPU cumsum_cuda_kernel adds in no fixed order" in said[0]
    assert refused(s.model.hf) == "" and not any(x.grad is not None for x in s.live())
    s.model.decoder.layers[0].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        refused(s.model.hf)


class Named(TorchDispatchMode):
    """Names of operations on numbers that are not whole; along one dimension all sums have a strict
    form."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.is_floating_point() and out.ndim > 1:
            self.names.add(func._schema.name.removeprefix("aten::"))
        return out


@pytest.mark.parametrize("agg", ["rmse", "mean", "p95", "max"])
def check_an_optimiser_step_has_nothing_that_a_gpu_could_not_repeat(small, agg):
    s = small()
    assert not stepped(s, agg) & NONE


@pytest.mark.parametrize("family", [
    pytest.param(x, marks=[pytest.mark.long] * (x not in ("gemma3", "qwen3.5")))
    for x in [*DENSE, *HYBRID]])
def check_nor_have_the_families(tmp_path, family):
    """Linear attention sums up along the tokens, for which torch has no strict form: such a model
    is trained as it is."""
    s = Small(small_config(save_family(tmp_path, family), quant="none"))
    assert stepped(s, "rmse") & NONE == ({"cumsum"} if family in HYBRID else set())


def stepped(s, agg):
    """The operations of an optimiser step."""
    live = fresh(s.model.layers, s.model.gates, 0)
    rows = with_reference(s.model, completions(6), s.cfg)
    course = optimiser.Scheduled(live, s.cfg, 4)
    with Named() as ops, torch.enable_grad():
        step_loss(s.model, rows, Barrier("kl_rev", agg, 0.3, 0.001), 3)
        course.advance(1)
    assert "mm" in ops.names or "addmm" in ops.names
    return ops.names
