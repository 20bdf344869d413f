"""Others' models and adapters, measured as our own are."""

from dataclasses import replace

import peft
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from steerloop import UserError
from steerloop.checks.exported import made_run
from steerloop.checks.families import save_family
from steerloop.checks.small import data_files, small_config, token_batch
from steerloop.export import export_adapter
from steerloop.export.student import open_student
from steerloop.readouts.forced_choice import choices
from steerloop.report.__main__ import main as report
from steerloop.score import bare, find_adapter, put_on, score
from steerloop.texts.data import read_data


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """family → (student, folder of its PEFT export, config)."""
    root, known = tmp_path_factory.mktemp("score"), {}

    def make(family):
        if family not in known:
            cfg = small_config(save_family(root / family, family), quant="none", **data_files(root),
                               runs=str(root / "scores"))
            student = open_student(made_run(root / f"run-{family}", cfg), "3")
            known[family] = student, export_adapter(student, root / f"peft-{family}"), cfg
        return known[family]

    return make


@pytest.mark.parametrize("family", ["gemma3", "gemma3-multimodal"])
def check_an_adapter_scores_as_its_student(made, capsys, family):
    student, adapter, cfg = made(family)
    with pytest.raises(UserError, match=f"names its base {family}, which is no model here.*--base"):
        score(str(adapter), cfg)
    folder = score(str(adapter), replace(cfg, model="no such model", u0=False), cfg.model)
    vignettes = read_data(cfg).vignettes
    columns = pl.col("^p_.*$")
    for state, gates in (("base", 0 * student.gates), ("scored", student.gates)):
        found = pl.read_parquet(folder / f"rounds/00/{state}.eval.parquet")
        with torch.no_grad(), student.model.gates(gates):
            wanted = choices(student.model, vignettes, cfg, free=False)
        gap = found.select(columns).to_numpy() - wanted.select(columns).to_numpy()
        assert abs(gap).max() < 1e-5 and found["vignette"].equals(wanted["vignette"])
    tables = [pl.read_parquet(folder / f"rounds/00/{x}.eval.parquet") for x in ("base", "scored")]
    assert abs(tables[0]["p_care"] - tables[1]["p_care"]).max() > 1e-3
    capsys.readouterr()
    report([str(folder)])
    said = capsys.readouterr().out
    assert "Δauthority (nats)" in said and "| scored |" in said


def check_a_model_is_measured_alone_or_against_another(made, tmp_path):
    _, _, cfg = made("gemma3")
    other = save_family(tmp_path / "other", "llama3")
    alone = score(str(other), cfg)
    assert not (alone / "rounds/00/scored.eval.parquet").exists()
    both = score(str(other), cfg, base=cfg.model)
    first, second = (pl.read_parquet(x) for x in (
        alone / "rounds/00/base.eval.parquet", both / "rounds/00/scored.eval.parquet"))
    assert first.equals(second)
    assert not first.equals(pl.read_parquet(both / "rounds/00/base.eval.parquet"))


def foreign(made, folder, **fields):
    """An adapter of PEFT's own making on the small gemma; its first B is not zero."""
    base = AutoModelForCausalLM.from_pretrained(made("gemma3")[2].model)
    wrapped = peft.get_peft_model(base, fields.pop("config", None) or peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, init_lora_weights=False, **fields))
    wrapped.save_pretrained(folder)
    return folder


def check_an_adapter_of_another_kind_is_measured(made, tmp_path):
    adapter = foreign(made, tmp_path / "dora", target_modules=["q_proj", "down_proj"],
                      use_dora=True, rank_pattern={"q_proj": 2}, use_rslora=True)
    found = score(str(adapter), made("gemma3")[2])
    a, b = (pl.read_parquet(found / f"rounds/00/{x}.eval.parquet")["p_care"]
            for x in ("base", "scored"))
    assert abs(a - b).max() > 1e-3


@pytest.mark.parametrize("bias", ["all", "lora_only", "none"])
@pytest.mark.parametrize("quant", ["none", "nf4"])
def check_an_adapter_with_biases_is_measured_and_its_base_without(tmp_path, bias, quant):
    """PEFT leaves trained biases in when it switches an adapter off."""
    folder, ids = save_family(tmp_path / "biases", "biases"), token_batch(2, 20)
    wrapped = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder), peft.LoraConfig(
            task_type="CAUSAL_LM", r=4, init_lora_weights=False, bias=bias,
            target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, x in wrapped.named_parameters():
            if name.endswith("bias") and x.requires_grad:
                x.normal_()
        wanted = wrapped.eval()(input_ids=ids).logits
    wrapped.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        model = bare(small_config(folder, quant=quant))
        plain = model.hf(input_ids=ids).logits
        off = put_on(model, find_adapter(str(tmp_path / "adapter")))
        found = [model.hf(input_ids=ids).logits]
        with pytest.raises(ZeroDivisionError), off():
            assert torch.equal(model.hf(input_ids=ids).logits, plain)
            raise ZeroDivisionError
        found.append(model.hf(input_ids=ids).logits)
    assert torch.equal(*found) and not torch.allclose(plain, found[0], atol=0.1)
    assert quant == "nf4" or torch.allclose(found[0], wanted, atol=1e-4)
    saved = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert sum(x.endswith("bias") for x in saved) == {"none": 0, "lora_only": 8, "all": 28}[bias]


def check_what_would_be_measured_wrongly_is_refused(made, tmp_path):
    cfg = made("gemma3")[2]
    silent = foreign(made, tmp_path / "silent", target_modules=["q_proj"])
    tensors = load_file(silent / "adapter_model.safetensors")
    save_file({k.replace("layers", "blocks"): x for k, x in tensors.items()},
              silent / "adapter_model.safetensors", {"format": "pt"})
    idle = foreign(made, tmp_path / "idle", target_modules=["q_proj"])
    save_file({k: x * ("lora_A" in k) for k, x in tensors.items()},
              idle / "adapter_model.safetensors", {"format": "pt"})
    head = foreign(made, tmp_path / "head", target_modules=["lm_head"])
    prompt = foreign(made, tmp_path / "prompt", config=peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=2))
    for folder, said in ((silent, "has no place"), (idle, "changes nothing"), (head, "not head"),
                         (prompt, "the prompt")):
        with pytest.raises(UserError, match=said):
            score(str(folder), cfg)
    (silent / "adapter_model.safetensors").rename(silent / "adapter_model.bin")
    with pytest.raises(UserError, match="only safetensors"):
        score(str(silent), cfg)
