"""Where a GPU would be waited for: nowhere in a decoding step, twice in an optimiser step. No GPU
is needed to see it (bench/dispatched.py). And what is done instead computes the same."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from steerloop.barrier import Barrier
from steerloop.bench.dispatched import META, Dispatched, onto_meta
from steerloop.checks.check_graphs import DOSES, PROMPTS, drawn
from steerloop.checks.check_sample import LONG
from steerloop.checks.families import DENSE, HYBRID, save_family
from steerloop.checks.small import Small, completions, small_config
from steerloop.config import parse
from steerloop.heal import step_loss
from steerloop.healing.fresh import fresh
from steerloop.healing.optimiser import Scheduled
from steerloop.kernels import decode, graphs, masks
from steerloop.kernels.batch import Row
from steerloop.kernels.decode import generate, pick
from steerloop.model import load
from steerloop.sample import in_flight, jobs
from steerloop.steer import steered

STEPS = 2 * decode.READ + 3


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """A family, or the embedded model, by name; graphs 'record' there, and say what waits."""

    def open_(name, **fields):
        if name == "embedded":
            cfg = parse(["--device", "cpu", "--dtype", "float32"])
            s = SimpleNamespace(cfg=cfg, model=load(cfg))
            width = s.model.head.weight.shape[1]
            s.vector = lambda: {b: torch.randn(width) for b in cfg.steer_blocks}
        else:
            path = save_family(tmp_path / name, name)
            s = Small(small_config(path, quant="none", **fields))
        s.cfg.max_new_tokens = STEPS
        return s

    monkeypatch.setattr(graphs, "recordable", lambda _: True)
    return open_


def decoded(s, monkeypatch, choose=None, gates=None):
    """(waits of a step that is recorded, waits of the loop around it, recorded steps); each row may
    have `gates` of its own."""
    inside, recorded = [], []

    def repeatable(run, device):
        with Dispatched() as step:
            out = run()
        inside.extend(step.waits)
        recorded.append(step.ops)
        return lambda: None, out

    monkeypatch.setattr(graphs, "repeatable", repeatable)
    choose = choose or partial(pick, temperature=1.0, k=s.cfg.top_k, p=s.cfg.top_p)
    vector = {b: v.to(META) for b, v in s.vector().items()}
    with torch.no_grad(), s.model.dense(gates is None):
        onto_meta(s.model)
        rows = in_flight(s.model, jobs(s.model, PROMPTS, DOSES), s.cfg, "0|test")
        if gates is not None:
            rows.gates, s.model.gates.value = s.model.gates, gates.to(META)
        with Dispatched() as loop, steered(s.model, vector, rows):
            step = graphs.steps(s.model.trunk, s.model.head, rows)
            generate(step, rows, choose, s.model.stop_ids)
    return inside, loop.waits, recorded


@pytest.mark.parametrize("family", [*DENSE, "embedded"])
def check_a_decoding_step_waits_for_nothing(family, opened, monkeypatch):
    inside, loop, recorded = decoded(opened(family), monkeypatch)
    assert not inside and recorded
    around = [x for x in loop if "cache_utils.py" not in x]  # which sends zeros, once a batch
    assert len(around) == -(-STEPS // decode.READ), around  # where the tokens are looked at
    assert {x.rpartition(": ")[2] for x in around} == {"fetched to the host"}


def check_a_step_under_gates_waits_for_nothing(opened, monkeypatch):
    """Each row under gates of its own, in the layers."""
    rounds = torch.rand(len(PROMPTS) * len(DOSES), 3)
    inside, loop, recorded = decoded(opened("llama3"), monkeypatch, gates=rounds)
    assert not inside and len(recorded) == 1
    assert not [x for x in loop if "lora.py" in x]


@pytest.mark.parametrize("waiting", ["tolist", "cpu", "item", "nonzero"])
def check_a_wait_is_seen_and_placed(waiting, opened, monkeypatch):
    def choose(logits, draws):
        token = logits.argmax(-1)
        getattr(token[0] if waiting == "item" else token, waiting)()
        return token

    _, loop, _ = decoded(opened("llama3"), monkeypatch, choose)
    assert sum(f"{__file__}:" in x for x in loop) == STEPS, loop


def stepped(s, barrier=None):
    """What is dispatched in an optimiser step of two micro-batches."""
    barrier = barrier or Barrier("kl_rev", "rmse", 1.0, 0.2)
    table = completions(6)
    fresh(s.model.layers, s.model.gates, 0)
    onto_meta(s.model)
    live = [x for layer in s.model.layers.values() for x in (layer.live_A, layer.live_B)]
    optimiser, rows = Scheduled(live, s.cfg, 10), []
    for number, prompt, ids in table.select("row", "prompt_ids", "completion_ids").rows():
        ref = torch.randn(len(ids), s.model.head.weight.shape[1], device=META)
        rows.append(Row(prompt, ids, ref, number))
    for _ in range(2):
        with Dispatched() as found:
            step_loss(s.model, rows, barrier, 3)
            optimiser.advance(1)
    return found


@pytest.mark.parametrize("family", [*DENSE, *HYBRID, "embedded"])
def check_an_optimiser_step_waits_twice(family, opened):
    """But for linear attention, whose mask the library asks whether it is all true."""
    found = stepped(opened(family)).waits
    asked = [x for x in found if "masking_utils.py" in x]
    assert len(asked) == (2 if family in HYBRID else 0)
    assert len(found) - len(asked) == 2, found
    assert any("heal.py" in x for x in found) and any("optimiser.py" in x for x in found)


@pytest.mark.parametrize("attn, family", [
    ("eager", "gemma2"), *((attn, family) for attn in ("sdpa", "eager")
                           for family in ("gemma3", "llama3", "mistral", "gemma3-multimodal"))])
def check_masks_that_ask_nothing_mask_the_same(family, attn, opened, monkeypatch):
    """Padding on either side, and reading on from a cache; one row has none of it."""
    s = opened(family, attn=attn)
    ids = torch.randint(6, 200, (2, 21))
    mask = torch.ones_like(ids).bool()
    mask[1, :6] = False

    def read():
        cache = graphs.empty_cache(s.model.hf)
        with torch.no_grad():
            return [s.model.trunk(ids, mask), s.model.trunk(ids, mask.flip(1)),
                    s.model.trunk(ids[:1], mask[:1]),
                    s.model.trunk(ids[:, :-3], mask[:, :-3], cache),
                    s.model.trunk(ids[:, -3:], mask, cache)]

    wanted = read()
    asked = []
    monkeypatch.setattr(masks, "waits", lambda device: asked.append(device) or True)
    for a, b, seen in zip(read(), wanted, (mask, mask.flip(1), mask[:1], mask[:, :-3],
                                           mask[:, -3:]), strict=True):
        assert torch.allclose(a[seen], b[seen], atol=1e-5)
    assert asked


def check_looking_seldom_draws_the_same(small, monkeypatch):
    """Rows that end between two looks draw on, and what they drew is dropped."""
    s = small(**LONG)
    wanted, told = drawn(s).to_list(), []
    assert any(len(x) % decode.READ for x in wanted)
    monkeypatch.setattr(decode, "waits", lambda _: True)
    monkeypatch.setattr("steerloop.sample.Bar.drew", lambda _, *n: told.append(n))
    assert drawn(s).to_list() == wanted
    assert sum(n for n, _ in told) == sum(map(len, wanted))
    assert sum(n for _, n in told) == len(wanted)
