"""What is compiled computes what the plain code does, is compiled once for all shapes, and kept;
without a compiler there is one line, and the plain code."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from steerloop.barrier import Barrier, Step, divergence, heal_loss, slope
from steerloop.checks.check_barrier import problem
from steerloop.checks.check_dense import large
from steerloop.kernels import chunked, hardware
from steerloop.kernels import head as heads
from steerloop.loading.cache import COMPILED, keep_compiled

CUTS = [[7, 5], [9, 3], [1], [4, 4, 4], [20, 1], [8, 8], [30], [5, 6, 7], [3], [12, 2]]


def check_without_a_compiler_a_warning_says_so_once(monkeypatch, capsys):
    said = []
    monkeypatch.setattr(hardware, "compiler", lambda _: "no g++")
    monkeypatch.setattr(hardware.logger, "warning", said.append)
    hardware._warn.cache_clear()
    for _ in range(2):
        assert hardware.compiled(abs, torch.zeros(1)) is abs
    assert len(said) == 1 and "no g++" in said[0] and "install" in said[0]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["kl_rev", "kl_fwd"])
def check_compiled_parts_are_the_eager_ones(kind, monkeypatch):
    found = []
    for least in (heads.LARGE, 2):
        large(monkeypatch, least)
        h, ref, targets, rows, head = problem([5, 3, 9], 6, 333, 0, None, torch.float32)
        barrier = Barrier(kind, "p95", 0.7, 0.0)
        loss, nll, top = heal_loss(h, ref, targets, rows, head, Step(barrier, 17, 3))
        loss.backward()
        found.append([loss.detach(), nll, top, h.grad])
    assert not hardware.compiler("cpu")  # else this compared eager with eager
    assert all(torch.allclose(a, b, atol=1e-6, rtol=1e-4) for a, b in zip(*found, strict=True))


def losses(v, kind="kl_rev"):
    """Micro-batches of many shapes, in steps of as many sizes."""
    for total, sizes in enumerate(CUTS, 40):
        h, ref, targets, rows, head = problem(sizes, 6, v, 0, None, torch.float32)
        step = Step(Barrier(kind, "rmse", 0.7, 0.0), total, 6)
        heal_loss(h, ref, targets, rows, head, step)[0].backward()


def check_shapes_are_not_compiled_one_by_one(monkeypatch):
    """Two functions, whatever the rows, their lengths, and the tokens of a step."""
    large(monkeypatch, 2)
    assert not hardware.compiler("cpu")
    losses(333)
    hardware._compiled.cache_clear()
    torch._dynamo.reset()
    before = counters["stats"]["unique_graphs"]
    losses(333)
    assert counters["stats"]["unique_graphs"] - before == 2


def check_a_single_position_is_not_compiled(monkeypatch):
    large(monkeypatch, 2)
    monkeypatch.setattr(chunked, "compiled", lambda f, z: max)
    assert chunked.fast(slope, torch.zeros(1, 9)) is slope
    assert chunked.fast(divergence, torch.zeros(2, 9)) is max


def check_what_is_compiled_is_kept_with_the_user(monkeypatch, tmp_path):
    monkeypatch.delenv(COMPILED, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_compiled()
    assert os.environ[COMPILED] == str(tmp_path / "steerloop" / "compiled")
    monkeypatch.setenv(COMPILED, "elsewhere")
    keep_compiled()
    assert os.environ[COMPILED] == "elsewhere"
    monkeypatch.delenv(COMPILED)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep_compiled()
    assert COMPILED not in os.environ


@pytest.mark.long
def check_another_process_finds_it(tmp_path):
    code = ("from torch._dynamo.utils import counters\n"
            "from steerloop.checks.check_compiled import losses\nlosses(2**15)\n"
            "print(counters['inductor']['fxgraph_cache_hit'])")
    run = partial(subprocess.run, [sys.executable, "-c", code], check=True, capture_output=True,
                  text=True, encoding="utf-8", env=os.environ | {COMPILED: str(tmp_path)})
    assert [run().stdout.split()[-1] for _ in range(2)] == ["0", "3"], "with a probe"
