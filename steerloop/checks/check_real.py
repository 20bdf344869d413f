"""On real weights: what holds on random ones holds on pretrained models, too.

    just gate-real        all of it: minutes for SmolLM2, some more for Gemma
    pytest -m 'real and not long'        the part that CI runs, on SmolLM2 alone

A model that was not fetched is skipped, with the command that fetches it.
"""

import dataclasses
import json
import signal

import pytest
import torch
from transformers import AutoModelForCausalLM

from steerloop import lora
from steerloop.barrier import Barrier, Step, heal_loss
from steerloop.bench import twins
from steerloop.checks.check_resume import resumed, same
from steerloop.checks.cut import cut_off
from steerloop.checks.twins import dense_heal_loss, dense_kl
from steerloop.config import parse
from steerloop.export import export_adapter, export_merged
from steerloop.export.student import open_student
from steerloop.loading.hub import SHORT, kept_folder
from steerloop.model import load
from steerloop.runfolder.folder import checksums
from steerloop.sample import jobs, sample
from steerloop.texts.data import lines, read, read_data
from steerloop.train import train

pytestmark = pytest.mark.real
SMOL, GEMMA = "smollm2-135m", "gemma-3-270m"
MODELS = [SMOL, pytest.param(GEMMA, marks=pytest.mark.long)]
PROMPTS = 20
FOUR_BITS = {SMOL: 0.336, GEMMA: 0.2}  # KL to the dense base, nats a token
LONG = 600  # tokens: beyond the 512 of Gemma's window
EXACT = ["--quant", "none", "--dtype", "float32", "--device", "cpu"]
SHORT_RUN = ["--rounds", "2", "--n_prompts", "4", "--n_keep", "4", "--walk_rows", "4", "--epochs",
             "1", "--dose_prompts", "2", "--dose_tokens", "8", "--max_new_tokens", "16",
             "--max_contexts", "8", "--think_tokens", "8", "--every", "25", "--no_filter",
             "--bootstrap", "100", "--target_kl", "0.3", "--said_prompts", "6", "--said_pairs", "2",
             "--u0_items", "4"]  # fmt: skip

ASKED = "data/traits/care_over_authority/prompts.txt"


def config(name, *flags):
    """The config of a model that was fetched; the pretrained one has a plain template."""
    if kept_folder(name) is None:
        pytest.skip(f"{name} is not here: python -m steerloop.models fetch {name}")
    assert name in SHORT
    template = ["--template", "plain"] if name == GEMMA else []
    return parse(["--model", name, *template, *flags])


@pytest.fixture(scope="module")
def exact():
    """Name of a model → it in fp32, dense, with its config: loaded once."""
    known = {}

    def model(name):
        if name not in known:
            cfg = config(name, *EXACT, "--max_new_tokens", "16", "--temperature", "0")
            known[name] = load(cfg), cfg
        return known[name]

    return model


def texts_of(model):
    """Ordinary prompts, and one that is longer than a sliding window."""
    prompts = read(ASKED, lines)
    story = " ".join(read("data/contexts.txt", lines) * 9)
    ids = model.to_ids(story)[:LONG]
    return [*(prompts * PROMPTS)[: PROMPTS - 1], model.to_text(ids)]


@pytest.mark.parametrize("name", MODELS)
def check_greedy_tokens_are_the_librarys(exact, name):
    model, cfg = exact(name)
    table = sample(model, jobs(model, texts_of(model), [0.0]), {}, cfg, "x", True)
    prompts, ours = table["prompt_ids"].to_list(), table["completion_ids"].to_list()
    assert len(prompts) == PROMPTS and max(map(len, prompts)) > 512 and len(set(map(str, ours))) > 9
    twin = twins.load(cfg, model)
    theirs = [x for p in prompts for x in twins.generate(twin, [p], 16, 0.0)]
    assert ours == theirs


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["kl_rev", "kl_fwd"])
def check_loss_and_gradient_on_real_logits(exact, name, kind):
    """Over the whole vocabulary: 49,152 words, and 262,144."""
    model, _ = exact(name)
    ids = [model.to_ids(x)[:9] for x in read(ASKED, lines)[:2]]
    with torch.no_grad():
        h = model.hidden(model.batch([x[:2] for x in ids], [x[2:] for x in ids]))
    torch.manual_seed(0)
    h_ref = h + 0.1 * h.std() * torch.randn_like(h)
    targets = torch.tensor([t for x in ids for t in x[2:]])
    rows = torch.tensor([i for i, x in enumerate(ids) for _ in x[2:]])
    barrier, found = Barrier(kind, "rmse", 0.7, 1e-3), []
    for exactly in (False, True):
        x = h.clone().requires_grad_()
        loss = (dense_heal_loss(x, h_ref, targets, rows, model.head, barrier, 14, 2)[0] if exactly
                else heal_loss(x, h_ref, targets, rows, model.head, Step(barrier, 14, 2))[0])
        loss.backward()
        found.append((loss.detach(), x.grad))
    (ours, mine), (loss, gradient) = found
    assert ours.item() == pytest.approx(loss.item(), rel=1e-5)
    assert torch.allclose(mine, gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item())


def mundane(model, cfg, rows=8):
    """Prompts and answers of ordinary text, as ids."""
    table = read_data(cfg).mundane.head(rows)
    return [model.render(x) for x in table["prompt"]], [model.to_ids(x) for x in table["text"]]


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def check_what_four_bits_cost(exact, name):
    """On ordinary text our NF4 is the library's, and as far from the dense base as docs/models.md
    says."""
    model, cfg = exact(name)
    cfg = dataclasses.replace(cfg, quant="nf4", decode="nf4")
    packed, twin, dense = load(cfg), twins.load(cfg, model), []
    for prompt, answer in zip(*mundane(model, cfg), strict=True):
        batch = model.batch([prompt], [answer])
        base, ours = (x.head(x.hidden(batch)).log_softmax(-1) for x in (model, packed))
        dense.append(dense_kl(base, ours))
        assert dense_kl(ours, twins.logp(twin, prompt, answer)).max() < 1e-5
    kl = torch.cat(dense)
    print(f"\n{name}: KL(dense ‖ NF4) {kl.mean():.3f} nats a token, p95 {kl.quantile(0.95):.2f}")
    assert kl.mean().item() == pytest.approx(FOUR_BITS[name], rel=0.05)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def check_the_dense_phase_is_the_packed_path(exact, name):
    _, cfg = exact(name)
    model = load(dataclasses.replace(cfg, quant="nf4", decode="dense", dtype="bfloat16"))
    before = model.hidden(model.batch(*mundane(model, cfg)))
    for k in range(2):
        lora.open_round(model.layers, model.gates, k)
        for layer in model.layers.values():
            layer.live_B.normal_(0, 0.02)
        lora.fold(model.layers, model.gates, lora.live_delta(model.layers))
    batch = model.batch(*mundane(model, cfg))
    packed = model.head(model.hidden(batch)).log_softmax(-1)
    with model.dense():
        merged = model.head(model.hidden(batch)).log_softmax(-1)
    kl = dense_kl(packed, merged)
    base = dense_kl(packed, model.head(before).log_softmax(-1))
    print(f"\n{name}: KL(packed ‖ dense phase) p99 {kl.quantile(0.99):.2e} nats a token; "
          f"to the base {base.mean():.2e}")
    assert kl.quantile(0.99) <= 1e-2 < base.mean() and kl.max() > 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two rounds that nobody interrupted, and its config."""
    cfg = config(SMOL, *EXACT, *SHORT_RUN)
    return train(dataclasses.replace(cfg, runs=str(tmp_path_factory.mktemp("whole")))), cfg


@pytest.mark.long
def check_two_rounds_killed_and_resumed_end_in_the_same_bits(whole, tmp_path):
    run, cfg = whole
    assert json.loads((run / "summary.json").read_text())["ended"]
    cut, status, _ = cut_off(cfg, tmp_path, len(checksums(run)))
    assert status == -signal.SIGKILL and not (cut / "summary.json").exists()
    assert same(resumed(cut, cfg), run)


@pytest.mark.long
def check_exports_are_the_student(whole, tmp_path):
    """Their own parity checks refuse what is not; the fetched base is found again by its name."""
    run, _ = whole
    student = open_student(run, "2")
    export_adapter(student, tmp_path / "peft")
    settings = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "smollm2-135m-instruct"
    export_merged(open_student(run, "2"), tmp_path / "merged")
    hf = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert hf.config.to_dict().get("quantization_config") is None
    assert type(hf).__name__ == "LlamaForCausalLM"
