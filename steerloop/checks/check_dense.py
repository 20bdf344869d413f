"""Every short cut gives what the long way gives: dense phases, prompts read once, products in
tiles, compiled parts, micro-batches of like lengths."""

import subprocess
import sys
import textwrap
from contextlib import nullcontext

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steerloop import lora
from steerloop.barrier import Barrier, Step, heal_loss
from steerloop.checks.check_barrier import close, problem
from steerloop.checks.small import WINDOW, completions, short_run, small_config, token_batch
from steerloop.checks.twins import dense_logp
from steerloop.config import Config, parse
from steerloop.heal import step_loss
from steerloop.kernels import blocked, chunked, dense, hardware
from steerloop.kernels import head as heads
from steerloop.kernels.batch import Row
from steerloop.kernels.blocked import Blocked
from steerloop.kernels.caches import empty_cache
from steerloop.kernels.head import Head
from steerloop.kernels.prefix import follow, paired
from steerloop.model import load
from steerloop.runfolder.identity import resolved
from steerloop.sample import jobs, sample
from steerloop.texts.data import read_data

PROMPTS = ["Why?", "Must I go to the old town hall today?", "He told me so."]


def grown(s, rounds=2):
    """The model after some rounds that say something."""
    for k in range(rounds):
        s.stir(k, 0.1)
        s.fold()
    return s.model


def plain_rows(table):
    """What `step_loss` reads where nothing is compared with a reference."""
    columns = table.select("prompt_ids", "completion_ids", "row").rows()
    return [Row(prompt, completion, None, number) for prompt, completion, number in columns]


def logits(model, ids):
    with torch.no_grad():
        return model.head(model.trunk(ids, ids >= 0))


def large(monkeypatch, least):
    """From that vocabulary on, compiling and tiles pay."""
    monkeypatch.setattr(heads, "LARGE", least)
    monkeypatch.setattr(chunked, "LARGE", least)


def kl(p, q):
    """KL per position, nats."""
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


@pytest.fixture(params=["plain", "blocked"])
def layout(request, monkeypatch):
    """Weights as they are, or those of dense phases and the head rearranged."""
    if request.param == "blocked":
        monkeypatch.setattr(blocked, "SMALL", 1)
        large(monkeypatch, 1)
        assert blocked.suits(torch.zeros(1))  # else this compared plain with plain
    return request.param


@pytest.mark.parametrize("gates", [None, [0.0, 0, 0], [1.0, 0, 0], [0.5, 2, 1]])
def check_the_dense_model_is_the_gated_one(small, gates, layout):
    model, ids = grown(small()), token_batch(3, 3 * WINDOW)
    assert model.head.blocks is (layout == "blocked")
    model.gates.value = None if gates is None else torch.tensor(gates)
    plain = logits(model, ids)
    with torch.no_grad(), model.dense():
        kinds = {type(m) for m in model.decoder.modules()}
        assert lora.GatedLoRALinear not in kinds and (Blocked in kinds) is (layout == "blocked")
        found = logits(model, ids)
    assert torch.allclose(found, plain, atol=1e-4) and kl(plain, found).max() < 1e-6
    assert torch.equal(logits(model, ids), plain)  # and everything is back


def check_a_dense_phase_in_bfloat16_costs_little(small):
    s = small(dtype="bfloat16", saved={"depth": 4})
    model, ids = grown(s), token_batch(8, 3 * WINDOW)
    plain = logits(model, ids)
    with torch.no_grad(), model.dense():
        found = logits(model, ids)
    scale = plain.std()  # of an untrained model, far sharper than a language model's
    assert kl(plain / scale, found / scale).flatten().quantile(0.99) <= 1e-2


def check_dense_weights_follow_the_stack(small):
    """They are kept while nothing changes, and made anew after whatever changes the stack."""
    model, ids = grown(small(rounds=4)), token_batch(2, 6)

    def found():
        with torch.no_grad(), model.dense():
            return logits(model, ids)

    found()
    kept = model.dense.known[1]
    found()
    assert model.dense.known[1] is kept

    def train():
        for layer in model.layers.values():
            layer.live_B.add_(0.1)

    def fold(delta):
        lora.fold(model.layers, model.gates, delta)

    saved = {name: torch.full_like(x, 0.1) for name, x in lora.live_delta(model.layers).items()}
    changes = {
        "open": lambda: lora.open_round(model.layers, model.gates, 5), "train": train,
        "gates": lambda: setattr(model.gates, "value", torch.tensor([1.0, 0, 1, 0])),
        "all": lambda: setattr(model.gates, "value", None),
        "fold": lambda: fold(lora.live_delta(model.layers)),
        "resume": lambda: fold(saved),
    }
    for change in changes.values():
        with torch.no_grad():
            change()
        assert torch.allclose(found(), logits(model, ids), atol=1e-4)


def check_gates_do_not_move_in_a_dense_phase(small):
    model, ids = grown(small()), token_batch(2, 6)
    student = logits(model, ids)
    with torch.no_grad(), model.dense():
        with pytest.raises(RuntimeError, match="dense"), model.gates(torch.zeros(3)):
            pass
        with model.dense():  # a phase within a phase is the same one
            pass
        assert model.gates.fixed
    rows = torch.tensor([[1.0, 0, 0], [0.0, 1, 0]])
    with torch.no_grad(), model.gates(rows):
        plain = logits(model, ids)
        with model.dense():  # a gate a row: nothing to merge into
            assert torch.equal(logits(model, ids), plain)
    with pytest.raises(KeyError), torch.no_grad(), model.dense():
        raise KeyError
    assert not model.gates.fixed and torch.equal(logits(model, ids), student)


def check_auto_is_a_rule_on_sizes(small, monkeypatch):
    size = sum(p.numel() for n, p in small(quant="none").model.hf.named_parameters()
               if "proj" in n and "live" not in n) * 4
    stack = sum(x.nbytes for m in small().model.layers.values() for x in m.buffers(False))
    for room, sampling in ((3.3 * (size + stack), True), (0.3 * size, False)):
        monkeypatch.setattr(dense, "memory", lambda _, room=room: room)
        assert small().model.dense.on is sampling
        assert small(decode="dense").model.dense.on and not small(decode="nf4").model.dense.on
    monkeypatch.setattr(dense, "memory", lambda _: 9 * size)
    s = small()
    assert s.model.dense.training is (s.cfg.quant == "nf4")


def check_unpacked_training_is_training(small):
    """Bit for bit the gradients of the 4-bit layers, and the layers are back afterwards."""
    s = small()
    s.stir(1)
    rows = plain_rows(completions(5))
    barrier, grads = Barrier("nll", "rmse", 0.0, 0.0), []
    s.model.dense.training = True
    before = dict(s.model.hf.named_modules())
    for phase in (torch.enable_grad, s.model.dense.unpacked):
        with phase():
            step_loss(s.model, rows, barrier, 2)
        grads.append([p.grad.clone() for p in s.live()])
        for p in s.live():
            p.grad = None
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert dict(s.model.hf.named_modules()) == before


def check_samples_are_the_same_dense_or_not(layout, small):
    tokens = []
    for decode in ("dense", "nf4"):
        s = small(decode=decode, max_new_tokens=40)
        table = jobs(grown(s), PROMPTS, [0.0, 0.6])
        tokens.append(sample(s.model, table, s.vector(), s.cfg, "0|test")["completion_ids"])
    assert tokens[0].equals(tokens[1])


def kept_rows(run):
    """All that a run sampled, kept and trained on, by round."""
    return pl.concat([pl.read_parquet(x).select("completion_ids", "keep", "train")
                      for x in sorted(run.glob("rounds/*/completions.parquet"))])


@pytest.mark.long
def check_a_run_keeps_the_same_rows_dense_or_not(folders, tmp_path):
    kept = [kept_rows(short_run(tmp_path, small_config(folders(), quant="nf4", decode=x), x))
            for x in ("dense", "nf4")]
    assert kept[0].equals(kept[1]) and kept[0]["train"].sum() == 8


@pytest.mark.long
def check_a_run_keeps_the_same_rows_with_every_short_cut_and_with_none(folders, tmp_path):
    """Dense phases, blocked layers and head, compiled loss, one batch; against gated layers, plain
    products and row by row."""
    kept = []
    for on in (True, False):
        with pytest.MonkeyPatch.context() as m:
            m.setattr(blocked, "SMALL", 1 if on else 2**60)
            large(m, 1 if on else 2**60)
            cfg = small_config(folders(), quant="none", decode="dense" if on else "nf4")
            kept.append(kept_rows(short_run(tmp_path, cfg, str(on), batch_rows=64 if on else 1,
                                            step_rows=4, batch=4 if on else 1)))
    assert kept[0].equals(kept[1]) and kept[0]["train"].sum() == 8


@pytest.mark.parametrize(("quant", "dtype"), [("none", "bfloat16"), ("nf4", "float32"),
                                              ("nf4", "bfloat16")])
def check_a_dense_phase_costs_little_on_the_embedded_model(quant, dtype):
    """Its logits as they are, its own kind of text, a Δ that shows."""
    cfg = Config(model="embedded", device="cpu", quant=quant, dtype=dtype, rounds=3, r=8)
    model, data = load(cfg), read_data(parse(["--model", "embedded"]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in model.layers.values():
            layer.live_A.normal_(0, 0.05, generator=generator)
            layer.live_B.normal_(0, 0.05, generator=generator)
        rows = [model.render(x) + model.to_ids(y) for x, y in zip(
            data.mundane["prompt"][:24], data.mundane["text"][:24], strict=True)]
        ids, mask = model.pad(rows)
        found = []
        for phase in (nullcontext, model.dense):
            with phase():
                found.append(model.head(model.trunk(ids, mask)[mask]))
        with model.gates(model.gates.before(0)):
            base = model.head(model.trunk(ids, mask)[mask])
    assert kl(found[0], base).mean() > 0.01
    assert kl(*found).quantile(0.99) <= 1e-2


@pytest.mark.parametrize(("within", "between"), [(0, 0), (1, 0), (0, 1)])
def check_pairs_are_read_as_single_rows(small, within, between):
    """Common starts of several lengths; ends that are equally long, or longer by some tokens within
    or between pairs; past the window."""
    s = small()
    starts = [token_batch(1, n, n)[0].tolist() for n in (3, 2 * WINDOW, 5)]
    ends = [[token_batch(1, 4 + within * i + between * k, 9 + i)[0].tolist() for i in (0, 1)]
            for k in range(len(starts))]
    prompts = [a + b for a, pair in zip(starts, ends, strict=True) for b in pair]
    ending = token_batch(1, 3, 77)[0].tolist()
    with torch.no_grad():
        rows = paired(s.model.trunk, s.model.pad, empty_cache(s.model.hf), prompts, 0)
        assert rows.ids[:, 0].tolist() == [x[-1] for x in prompts]
        found = follow(s.model.trunk, rows, ending)
        for h, prompt in zip(found, prompts, strict=True):
            ids = torch.tensor([prompt + ending])
            assert torch.allclose(h, s.model.trunk(ids, ids >= 0)[0, -4:], atol=1e-4)


def check_common_starts_are_read_once(small):
    model, seen = small().model, []

    def trunk(ids, *rest):
        seen.append(ids.numel())
        return model.trunk(ids, *rest)

    starts = [token_batch(1, 20, n)[0].tolist() for n in range(4)]
    with torch.no_grad():
        paired(trunk, model.pad, empty_cache(model.hf),
               [[*x, 7 + i, 9] for x in starts for i in (0, 1)], 0)
    assert seen == [4 * 20, 8 * 1]


@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=4), v=st.integers(2, 40),
       tile=st.integers(1, 50), seed=st.integers(0, 999), softcap=st.sampled_from([None, 2.0]))
def check_products_in_tiles_are_products(sizes, v, tile, seed, softcap):
    """Where the CPU is slow in bfloat16, weights are multiplied in fp32: closer to the truth."""
    h, ref, targets, rows, head = problem(sizes, 6, v, seed, softcap, torch.bfloat16)
    barrier, n = Barrier("kl_rev", "mean", 0.7, 0.0), max(1, len(targets))
    exact = Head(head.weight.float(), softcap, head.scale)
    wide = h.detach().float().requires_grad_()
    with pytest.MonkeyPatch.context() as m:
        m.setattr(hardware, "fast_bf16", lambda _: False)
        m.setattr(heads, "TILE", tile)
        head = Head(head.weight, softcap, head.scale)
        assert head.tiled and not head.blocks
        with torch.no_grad():
            assert torch.allclose(head(h).log_softmax(-1), dense_logp(h.float(), exact), atol=1e-4)
        heal_loss(h, ref, targets, rows, head, Step(barrier, n, 2))[0].backward()
    heal_loss(wide, ref.float(), targets, rows, exact, Step(barrier, n, 2))[0].backward()
    assert close(h.grad, wide.grad, 1e-2)  # rounded to bfloat16 once


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4), v=st.integers(2, 40),
       seed=st.integers(0, 999), softcap=st.sampled_from([None, 2.0]), tile=st.integers(1, 50))
def check_a_large_head_of_a_cpu_is_the_plain_one(sizes, v, seed, softcap, tile):
    """Blocked, or in tiles where there is no memory for a copy: loss and gradient are the same."""
    h, ref, targets, rows, head = problem(sizes, 6, v, seed, softcap, torch.float32)
    barrier, found = Barrier("kl_rev", "p95", 0.7, 0.0), []
    with pytest.MonkeyPatch.context() as m:
        m.setattr(heads, "TILE", tile)
        for least, small, share in ((2**15, 2**17, 1), (1, 1, 1), (1, 1, 0)):
            m.setattr(blocked, "SMALL", small)
            m.setattr(heads, "SHARE_TRAINING", share)
            with pytest.MonkeyPatch.context() as now:
                large(now, least)
                head = Head(head.weight, softcap, head.scale)
            assert (head.tiled, head.blocks) == (least == 1, least == 1 and share == 1)
            h.grad = None
            step = Step(barrier, len(targets), len(sizes))
            heal_loss(h, ref, targets, rows, head, step)[0].backward()
            found.append((head(h.detach()[None])[0], h.grad))
    for z, grad in found[1:]:
        assert close(z, found[0][0], 1e-5) and close(grad, found[0][1], 1e-4)


def check_a_blocked_weight_asks_for_no_gradient():
    layer, x = Blocked(torch.randn(4, 3)), torch.ones(2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="no_grad"):
        layer(x)


@pytest.mark.long
def check_freed_memory_is_kept_or_not():
    """In a process of its own: holes that others left in the heap would take the block."""
    program = textwrap.dedent("""
        import torch
        from steerloop.bench.measure import resident
        from steerloop.kernels.hardware import keep_freed

        def left():
            before = resident()["anon"]
            torch.ones(2**25)  # 128 MiB, gone at once
            return resident()["anon"] - before

        keep_freed(False)
        assert max(left(), left()) < 16
        keep_freed(True)
        assert sum(grown := [left() for _ in range(6)]) > 100 and min(grown) < 16, grown
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def check_auto_precision_is_what_the_hardware_is_fast_at(monkeypatch):
    for fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(hardware, "fast_bf16", lambda _, fast=fast: fast)
        assert hardware.precision("auto", torch.device("cpu")) == dtype
        assert hardware.precision("float32", torch.device("cpu")) == torch.float32
        assert f"torch.{resolved(Config(), 'cpu')['dtype']}" == str(dtype)  # what config.json says
        assert hardware.multiplies(torch.zeros(1, dtype=torch.bfloat16)) is fast


def check_micro_batches_hold_rows_of_like_length(small, monkeypatch):
    s, table, seen = small(), completions(9), []
    rows, make = plain_rows(table), s.model.batch
    monkeypatch.setattr(s.model, "batch", lambda prompts, completions: seen.append(
        [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]) or make(
            prompts, completions))
    with torch.no_grad():
        nlls, _ = step_loss(s.model, rows, Barrier("nll", "rmse", 0.0, 0.0), 4)
    assert [x for part in seen for x in part] == sorted(
        (len(row.prompt) + len(row.completion) for row in rows), reverse=True)
    assert list(map(len, seen)) == [4, 4, 1] and len(nlls) == sum(
        len(row.completion) for row in rows)
