"""The model classes that people have: each is loaded from a directory through the real code, is
what the library's own model is, and goes through two rounds, dense and in 4 bits."""

import json
import math
from dataclasses import replace

import polars as pl
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from steerloop import UserError
from steerloop.checks.families import DENSE, save_family
from steerloop.checks.small import BOS, Small, short_run, small_config, token_batch
from steerloop.kernels.nf4 import NF4

EXPERTS = ["qwen3-moe", "qwen2-moe", "mixtral"]
SCALED = ["granite", "cohere"]  # the library multiplies their logits by a constant


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """family → its directory, written once."""
    root = tmp_path_factory.mktemp("families")
    return {x: save_family(root / x, x) for x in [*DENSE, *EXPERTS, *SCALED, "biases"]}


@pytest.mark.parametrize("family", [*DENSE, *SCALED, "biases"])
def check_logits_are_those_of_the_librarys_model(saved, family):
    ids, s = token_batch(2, 20), Small(small_config(saved[family], quant="none"))
    auto = AutoModelForImageTextToText if "multimodal" in family else AutoModelForCausalLM
    theirs = auto.from_pretrained(saved[family], dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = theirs(input_ids=ids).logits
        found = s.model.head(s.model.trunk(ids, ids >= 0))
    assert torch.allclose(found, wanted, atol=1e-4, rtol=1e-4)
    assert wanted.std() > 0.1


@pytest.mark.parametrize("family", DENSE)
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


@pytest.mark.parametrize("quant", ["none", "nf4"])
@pytest.mark.parametrize("family", DENSE)
def check_two_rounds(saved, tmp_path, family, quant):
    cfg = small_config(saved[family], quant=quant, dtype="float32", think_tokens=2)
    folder = short_run(tmp_path, cfg)
    summary = json.loads((folder / "summary.json").read_text())
    assert len(summary["healed"]) == 2
    for event in summary["healed"]:
        assert all(math.isfinite(x) for x in event["measures"].values())
    for round in ("00", "01"):
        adapter = load_file(folder / f"rounds/{round}/adapter.safetensors")
        assert len(adapter) == 2 * 3 * 7 and all(x.any() for x in adapter.values())
        vector = load_file(folder / f"rounds/{round}/vector.safetensors")
        assert len(vector) == 2 and all(x.any() for x in vector.values())
        assert pl.read_parquet(folder / f"rounds/{round}/completions.parquet")["train"].sum() == 4


@pytest.mark.parametrize("layout", ["hub", "library"])
def check_a_multimodal_checkpoint_gives_its_text_decoder(saved, tmp_path, layout):
    """Both layouts: the names on the hub, and those that the class has in memory."""
    folder = saved["gemma3-multimodal"]
    if layout == "library":
        folder = save_family(tmp_path, "gemma3-multimodal", save_original_format=False)
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert any(x.startswith("language_model.model.") for x in names) is (layout == "hub")
    assert any("vision_tower" in x for x in names)
    s = Small(small_config(folder, quant="nf4"))
    assert type(s.model.hf).__name__ == "Gemma3ForCausalLM"
    assert not [n for n, _ in s.model.hf.named_modules() if "vision" in n]
    assert type(s.model.decoder.layers[0].mlp.up_proj) is NF4


@pytest.mark.parametrize("family", EXPERTS)
def check_mixtures_of_experts_are_refused(saved, family):
    with pytest.raises(UserError, match=r"flattens its rows|--targets down_proj gate_proj up_proj"):
        Small(small_config(saved[family], quant="none"))


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
    """Drawn at random, since the library starts them at 0: what is loaded is what was saved."""
    folder = saved["biases"]
    found = load_file(folder / "model.safetensors")
    for name in [x for x in found if x.endswith("_proj.bias")]:
        found[name].normal_()
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    s = Small(small_config(folder, quant="nf4"))
    assert len(s.model.layers) == 3 * 7
    for name, layer in s.model.layers.items():
        assert type(layer.base) is NF4 and torch.equal(layer.base.bias, found[f"{name}.bias"])
