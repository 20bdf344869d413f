"""The model classes that people have: each is loaded from a directory through the real code, is
what the library's own model is, and goes through two rounds, dense and in 4 bits."""

import json
import math
import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from steerloop import UserError, train
from steerloop.checks.classes import CLOSE, save_class, worst_apart
from steerloop.checks.families import DENSE, HYBRID, MULTIMODAL, save_family
from steerloop.checks.small import BOS, Small, short_config, short_run, small_config, token_batch
from steerloop.kernels.nf4 import NF4

EXPERTS = ["qwen3-moe", "qwen2-moe", "mixtral"]
SCALED = ["granite", "cohere"]  # the library multiplies their logits by a constant


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """family → its directory, written once."""
    root = tmp_path_factory.mktemp("families")
    return {x: save_family(root / x, x) for x in [*DENSE, *HYBRID, *EXPERTS, *SCALED, "biases"]}


@pytest.mark.parametrize("family", [*DENSE, *HYBRID, *SCALED, "biases"])
def check_logits_are_those_of_the_librarys_model(saved, family):
    ids, s = token_batch(2, 20), Small(small_config(saved[family], quant="none"))
    auto = AutoModelForImageTextToText if "multimodal" in family else AutoModelForCausalLM
    theirs = auto.from_pretrained(saved[family], dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = theirs(input_ids=ids).logits
        found = s.model.head(s.model.trunk(ids, ids >= 0))
    assert torch.allclose(found, wanted, atol=1e-4, rtol=1e-4)
    assert wanted.std() > 0.1


@pytest.mark.parametrize("family", [*DENSE, *HYBRID])
def check_every_way_to_batch_a_family_is_the_same(saved, family):
    """Left padding and several lengths, past the window where it has one."""
    s = Small(small_config(saved[family], quant="none"))
    prompts = [[BOS, *row[:n].tolist()] for row, n in zip(token_batch(3, 30), (30, 11, 4),
                                                          strict=True)]
    with torch.no_grad():
        together = s.model.head(s.model.trunk(*s.model.pad(prompts))[:, -1])
        for row, prompt in zip(together, prompts, strict=True):
            alone = s.model.hf(input_ids=torch.tensor([prompt])).logits[0, -1]
            assert torch.allclose(row, alone, atol=1e-4, rtol=1e-4)


ROUNDS = list(product([*DENSE, "qwen3.5"], ["none", "nf4"]))
SAMPLE = [("qwen3.5", "nf4")]
TURNS = [pytest.param(*x, marks=[pytest.mark.long] * (x not in SAMPLE)) for x in ROUNDS]


@pytest.mark.parametrize(("family", "quant"), TURNS)
def check_two_rounds(saved, tmp_path, family, quant):
    cfg = small_config(saved[family], quant=quant, dtype="float32", think_tokens=2)
    wrapped = 3 * 7
    if family == "qwen3.5":  # blocks 1 and 3 are linear, 2 attends
        cfg = replace(cfg, targets=[*cfg.targets, "in_proj_qkv", "out_proj"])
        wrapped = 5 + 7 + 5
    folder = short_run(tmp_path, cfg)
    summary = json.loads((folder / "summary.json").read_text())
    assert len(summary["healed"]) == 2
    for event in summary["healed"]:
        assert all(math.isfinite(x) for x in event["measures"].values())
    for round in ("00", "01"):
        adapter = load_file(folder / f"rounds/{round}/adapter.safetensors")
        assert len(adapter) == 2 * wrapped and all(x.any() for x in adapter.values())
        vector = load_file(folder / f"rounds/{round}/vector.safetensors")
        assert len(vector) == 2 and all(x.any() for x in vector.values())
        assert pl.read_parquet(folder / f"rounds/{round}/completions.parquet")["train"].sum() == 4


@pytest.mark.parametrize("layout", ["hub", "library"])
@pytest.mark.parametrize("family", MULTIMODAL)
def check_a_multimodal_checkpoint_gives_its_text_decoder(saved, tmp_path, family, layout):
    """Both layouts: the names on the hub, and those that the class has in memory."""
    folder = saved[family]
    if layout == "library":
        folder = save_family(tmp_path, family, save_original_format=False)
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    if family == "gemma3-multimodal":
        assert any(x.startswith("language_model.model.") for x in names) is (layout == "hub")
    assert any("visi" in x or "visual" in x for x in names)
    s = Small(small_config(folder, quant="nf4"))
    assert type(s.model.hf).__name__ in ("Gemma3ForCausalLM", "Qwen3_5ForCausalLM")
    assert not [n for n, _ in s.model.hf.named_modules() if "visi" in n or "visual" in n]
    assert type(s.model.decoder.layers[0].mlp.up_proj) is NF4


@pytest.mark.parametrize("family", EXPERTS)
def check_mixtures_of_experts_are_refused(saved, family):
    with pytest.raises(UserError, match=r"flattens its rows|--targets down_proj gate_proj up_proj"):
        Small(small_config(saved[family], quant="none"))


@pytest.mark.long
def check_attention_of_a_mixture_can_be_trained(saved, tmp_path):
    """What the refusal offers works: leave the experts out of --targets."""
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    cfg = small_config(saved["qwen3-moe"], quant="none", targets=targets)
    assert len(json.loads((short_run(tmp_path, cfg) / "summary.json").read_text())["healed"]) == 2


def check_thought_is_not_asked_for_by_the_template(saved):
    model = Small(small_config(saved["qwen3"], quant="none")).model
    assert model.to_text(model.render("Why?"), special=True).endswith("assistant\n<no thought>\n")


def check_soft_capped_attention_does_not_run_without_its_cap(saved):
    cfg = small_config(saved["gemma2"], quant="none")
    assert Small(cfg).model.hf.config._attn_implementation == "eager"
    with pytest.raises(UserError, match="--attn auto"):
        Small(replace(cfg, attn="sdpa"))


def check_biases_reach_the_4_bit_base(saved):
    folder = saved["biases"]
    found = load_file(folder / "model.safetensors")
    s = Small(small_config(folder, quant="nf4"))
    assert len(s.model.layers) == 3 * 7
    for name, layer in s.model.layers.items():
        assert type(layer.base) is NF4 and torch.equal(layer.base.bias, found[f"{name}.bias"])


RIGHT = {  # classes beside those above that work, with their own targets where they have no usual
    "qwen3_next": ["q_proj", "o_proj", "in_proj_qkvz"], "lfm2": None, "falcon_h1": None,
    "jamba": None, "mamba": ["in_proj", "out_proj"], "gemma4_text": None, "nemotron_h": None,
}  # fmt: skip
REFUSED = {
    "gemma3n_text": r"block 0 puts out \[4, 1, .*take a model with one stream",
    "hy_v4": r"block 0 puts out \[1, .*take a model with one stream",
    "recurrent_gemma": r"padding before a row gets into it \(.*take another model",
    "bart": r"it counts positions by itself, .*take another model",
    "minimax": r"cannot be read as a decoder .*take another model",
    "dory": r"its block 0 runs 2 times .*take another model",
    "bert": r"no list of decoder layers",
    "mamba": r"without calling it, leave that out",
}


@pytest.mark.parametrize("name", RIGHT)
def check_linear_attention_and_others_are_right_in_batches(tmp_path, name):
    """Padded on both sides, decoded while rows leave, paired for the forced choice, and in the
    gradient: as each row alone."""
    usual = save_class(tmp_path, name)
    targets = RIGHT[name] or usual
    s = Small(small_config(tmp_path, quant="none", targets=targets))
    assert max(worst_apart(s).values()) < CLOSE
    assert s.model.trunk.stepwise is (name in ("jamba", "mamba"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", REFUSED)
def check_what_cannot_be_read_in_batches_is_one_line_before_a_run(tmp_path, name, dtype):
    targets = save_class(tmp_path / "model", name)
    cfg = small_config(tmp_path / "model", quant="none", dtype=dtype, targets=targets)
    with pytest.raises(UserError, match=REFUSED[name]) as e:
        train.train(short_config(tmp_path, cfg))
    assert "\n" not in str(e.value) and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_next", "falcon_h1", "mamba", "llama", "gemma3",
                                  "mixtral"])  # fmt: skip
def check_rounding_to_16_bits_refuses_no_model(tmp_path, name):
    usual = save_class(tmp_path, name)
    targets = RIGHT.get(name) or usual
    Small(small_config(tmp_path, quant="none", dtype="bfloat16", targets=targets))


def tried(folder: Path, name: str) -> str:
    """What becomes of a class of the library: a line of the table."""
    try:
        targets = save_class(folder, name)
    except Exception as e:  # whatever its own config wants is not our matter
        return f"no small one: {type(e).__name__}"
    while targets:
        try:
            s = Small(small_config(folder, quant="none", targets=targets, steer_blocks=[1]))
        except UserError as e:
            assert "\n" not in str(e)
            flat = re.search(r"(\w+) flattens its rows", str(e))
            if not flat:
                return str(e).partition("does not fit: ")[2]
            targets.remove(flat[1])
            continue
        worst = max(worst_apart(s).values())
        assert worst < CLOSE, f"{name} is silently wrong: {worst_apart(s)}"
        return f"right within {worst:.0e}{', by single tokens' * s.model.trunk.stepwise}"
    return "too large, or nothing but layers that flatten rows"


@pytest.mark.long
def check_every_causal_class_is_right_in_batches_or_one_line(tmp_path):
    """Some 195 classes, a third of a second each; `-s` shows the table."""
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        print(f"{name:26} {tried(tmp_path / name, name)}")
