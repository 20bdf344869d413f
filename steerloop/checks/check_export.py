"""What leaves the house is the student: every artefact is loaded by its consumer and compared."""

import csv
import json
import os
import re
import shlex
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import peft
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from steerloop import UserError
from steerloop.checks.exported import change_json, difference, made_run
from steerloop.checks.families import DENSE, save_family
from steerloop.checks.small import small_config, token_batch
from steerloop.export import adapter, export_adapter, export_merged, export_vector, vectors
from steerloop.export.__main__ import main
from steerloop.export.merged import copy_tokenizer
from steerloop.export.parity import widened
from steerloop.export.student import c_star, open_student, read_vector
from steerloop.export.vectors import flags
from steerloop.runfolder.files import write_whole

FAMILIES = [*DENSE, "biases", "qwen3-moe", "qwen3.5"]
ARCHITECTURES = {"gemma3-multimodal": "gemma3", "llama3": "llama", "mistral": "llama",
                 "qwen3-moe": "qwen3moe", "qwen3.5": "qwen35", "biases": "llama",
                 "smollm2": "llama"}  # as llama.cpp calls them
PREFIX = {"gemma3-multimodal": "model.language_model.layers."}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Family → its directory, written once."""
    root, known = tmp_path_factory.mktemp("families"), {}

    def folder(family):
        if family not in known:
            known[family] = save_family(root / family, family)
            if "multimodal" in family:  # what a model that sees is published with
                (known[family] / "preprocessor_config.json").write_text("{}")
        return known[family]

    return folder


@pytest.fixture(scope="module")
def run(saved, tmp_path_factory):
    """(family, config fields) → a run folder of three random rounds, made once."""
    known = {}

    def make(family="gemma3", size=0.3, **fields):
        if family == "qwen3-moe":
            fields |= {"targets": ["q_proj", "k_proj", "v_proj", "o_proj"]}
        if (key := repr((family, size, fields))) not in known:
            cfg = small_config(saved(family), **{"quant": "none", **fields})
            known[key] = made_run(tmp_path_factory.mktemp("run"), cfg, size)
        return known[key]

    return make


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Two completions show what eight do, in a quarter of the time."""
    monkeypatch.setattr("steerloop.export.parity.ROWS", 2)


SUMMARY = {"axis": ["authority"], "base": {"coherence": 1.0, "ppl_mundane": 2.0}, "healed": [
    {"round": 2, "shift": {"authority": {"nats": [-1.0, -1.1, -0.9]}},
     "measures": {"coherence": 0.123, "ppl_mundane": 2.2}}]}


def answers(student, ids):
    """The student's logits, through the library's own forward pass."""
    with torch.no_grad(), student.model.gates(student.gates):
        return student.model.hf(input_ids=ids).logits


def library(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


@pytest.mark.parametrize("family", FAMILIES)
def check_peft_and_transformers_load_the_student(run, tmp_path, family):
    student = open_student(run(family), "3", "1,0.5,-0.25")
    ids = token_batch(2, 20)
    wanted = answers(student, ids)
    base = library(student.cfg.model)
    with torch.no_grad():
        assert difference(base(input_ids=ids).logits, wanted) > 0.1
        found = peft.PeftModel.from_pretrained(base, export_adapter(student, tmp_path / "peft"))
        assert difference(found(input_ids=ids).logits, wanted) < 1e-4
        merged = library(export_merged(student, tmp_path / "merged"))
        assert difference(merged(input_ids=ids).logits, wanted) < 1e-4
    names = load_file(tmp_path / "peft/adapter_model.safetensors")
    start = "base_model.model." + PREFIX.get(family, "model.layers.")
    assert len(names) == 2 * len(student.model.layers)
    assert all(x.startswith(start) and x.endswith((".lora_A.weight", ".lora_B.weight"))
               for x in names)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.chat_template == student.model.tokenizer.chat_template
    vision = [x for x, _ in merged.named_parameters() if "vision" in x]
    assert bool(vision) is (family == "gemma3-multimodal")
    assert (tmp_path / "merged/preprocessor_config.json").exists() is bool(vision)


@pytest.mark.parametrize("family", FAMILIES)
def check_vectors_of_every_family_come_back(run, tmp_path, family):
    """Exporting compares what was read back, steering the model, with what was written."""
    student = open_student(run(family), "3")
    for gguf in (True, False):
        out = export_vector(student, tmp_path / f"{gguf}", gguf=gguf)
    reader = GGUFReader(tmp_path / "True/vector.gguf")
    arch = reader.get_field("controlvector.model_hint").contents()
    assert arch == ARCHITECTURES.get(family, family)
    assert load_file(out / "vector.safetensors").keys() == {"block.1", "block.2"}


def check_the_text_decoder_of_a_multimodal_checkpoint_can_be_served_alone(run, tmp_path):
    student = open_student(run("gemma3-multimodal"), "3")
    export_adapter(student, tmp_path / "out", prefix="model")
    names = load_file(tmp_path / "out/adapter_model.safetensors")
    assert all(x.startswith("base_model.model.model.layers.") for x in names)


@pytest.mark.parametrize("prefix", ["model.language_model", "layers"])
def check_a_key_that_resolves_nowhere_is_an_error(run, tmp_path, prefix):
    student = open_student(run(), "3")
    with pytest.raises(UserError, match=f"{prefix}.*21 of 21 keys resolve nowhere"):
        export_adapter(student, tmp_path / "out", prefix=prefix)
    assert not list(tmp_path.iterdir())


def check_rank_and_alpha_are_what_engines_take(run, tmp_path):
    student = open_student(run(), "3", "1,0,1")
    export_adapter(student, tmp_path / "out")
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 8  # two open rounds of rank 4
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert {len(x) for k, x in load_file(tmp_path / "out/adapter_model.safetensors").items()
            if "lora_A" in k} == {8}
    assert [adapter.allowed(x) for x in (1, 2, 12, 129, 257, 512)] == [1, 8, 16, 256, 320, 512]
    with pytest.raises(UserError, match="--rank 512"):
        adapter.allowed(513)
    assert all(a < b for a, b in pairwise(adapter.RANKS))


def check_svd_at_full_rank_is_the_stack_and_below_it_the_best(run, tmp_path):
    student = open_student(run(), "3", "1,0.5,1")
    layer = next(iter(student.model.layers.values()))
    A, B = adapter.factors(layer, student.gates)
    dense = sum(layer.scale * g * layer.slot(k)["B"] @ layer.slot(k)["A"]
                for k, g in enumerate((1, 0.5, 1)))
    assert difference(B @ A, dense) < 1e-5
    (A12, B12), lost = adapter.truncate((A, B), 12)
    assert difference(B12 @ A12, dense) < 1e-5 and lost < 1e-8
    (A3, B3), lost = adapter.truncate((A, B), 3)
    assert A3.shape[0] == B3.shape[1] == 3
    sigma = torch.linalg.svdvals(dense.double())
    assert abs(lost / sigma[3:].square().sum() - 1) < 1e-4
    assert abs((dense - B3 @ A3).square().sum() / lost - 1) < 1e-4
    export_adapter(student, tmp_path / "full", rank=12)
    with pytest.raises(UserError, match=r"not the student.*larger --rank"):
        export_adapter(student, tmp_path / "half", rank=3)
    export_adapter(student, tmp_path / "allowed", rank=3, tolerance=99.0)
    assert "is lost" in (tmp_path / "allowed/README.md").read_text()
    assert not (tmp_path / "half").exists()


@pytest.mark.parametrize("to", ["peft", "merged", "vector", "gguf-vector"])
def check_what_is_not_the_student_is_removed(run, tmp_path, to, monkeypatch):
    """A wrong factor, a wrong vector: the exporter notices by itself and leaves nothing."""
    folder = run()
    place = tmp_path / "out"
    real = adapter.factors
    monkeypatch.setattr(f"steerloop.export.{'merged' if to == 'merged' else 'adapter'}.factors",
                        lambda layer, gates: (real(layer, gates)[0], 1.01 * real(layer, gates)[1]))
    for name in ("load_vector", "load_gguf"):
        monkeypatch.setattr(f"steerloop.export.{name}", lambda path: {1: torch.ones(32)})
    with pytest.raises(SystemExit, match="is not the student, and was removed"):
        main([str(folder), "--to", to, "--out", str(place)])
    assert not list(tmp_path.iterdir())


def check_a_4_bit_run_merges_onto_the_base_it_saw(run, tmp_path):
    student = open_student(run(quant="nf4"), "3")
    ids = token_batch(2, 20)
    merged = library(export_merged(student, tmp_path / "dequant"))
    with torch.no_grad():
        assert difference(merged(input_ids=ids).logits, answers(student, ids)) < 1e-4
    export_adapter(student, tmp_path / "peft")
    assert "on the original weights" in (tmp_path / "peft/README.md").read_text()
    with pytest.raises(UserError, match="--merge-base dequant"):
        export_merged(student, tmp_path / "original", original=True)
    export_merged(student, tmp_path / "original", original=True, tolerance=99.0)
    assert "quantisation error" in (tmp_path / "original/README.md").read_text()
    dense = open_student(run(), "3")
    merged = library(tmp_path / "original")
    with torch.no_grad():
        assert difference(merged(input_ids=ids).logits, answers(dense, ids)) < 1e-4


def check_shards_and_a_narrower_dtype(run, tmp_path):
    student = open_student(run(), "3")
    export_merged(student, tmp_path / "out", "bfloat16", shard="40KB", tolerance=9.0)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    name = next(iter(student.model.layers))
    stack = dict(library(tmp_path / "out").named_parameters())[f"{name}.weight"]
    layer = student.model.layers[name]
    A, B = adapter.factors(layer, student.gates)
    assert torch.equal(stack, (layer.base.weight + B @ A).bfloat16().float())


@pytest.mark.parametrize("quant", ["none", "nf4"])
def check_a_bf16_student_is_compared_in_fp32(run, tmp_path, quant):
    """By default all of it is written, and exact to 1e-6 before it is rounded; what rounding its
    file costs is a share of what the student is. A delta that is 1 % off, which the noise of bf16
    would hide, is noticed."""
    folder = run(dtype="bfloat16", quant=quant)
    student = open_student(folder, "3")
    export_adapter(student, tmp_path / "peft")
    export_merged(student, tmp_path / "merged")
    export_merged(student, tmp_path / "wide", dtype="float32")
    text = (tmp_path / "merged/README.md").read_text()
    exact, rounded = [float(x) for x in re.findall(r"per token: mean ([^,]+),", text)]
    share = float(re.findall(r"([\d.e-]+) % of KL", text)[-1])
    assert exact < 1e-6 < rounded and 0 < share < 1 and "its bfloat16 files in fp32" in text
    ids = token_batch(2, 20)
    with torch.no_grad():
        wanted = answers(student, ids)
        base = answers(replace(student, gates=0 * student.gates), ids)
        wide = library(tmp_path / "wide")(input_ids=ids).logits
    assert wanted.dtype == torch.float32 and difference(wide, wanted) < 1e-4
    kl = (wanted.softmax(-1) * (wanted.log_softmax(-1) - base.log_softmax(-1))).sum(-1).mean()
    assert 0.3 < rounded / (share / 100) / kl < 3  # other texts, the same student


def check_the_bound_of_parity_sees_what_bf16_hides(run, tmp_path, monkeypatch):
    """A delta of a bf16 run that is 2 % too large: below the noise of a bf16 pass, and refused."""
    real = adapter.factors
    monkeypatch.setattr("steerloop.export.adapter.factors",
                        lambda layer, gates: (real(layer, gates)[0], 1.02 * real(layer, gates)[1]))
    student = open_student(run(dtype="bfloat16"), "3")
    with pytest.raises(UserError, match="not the student") as e:
        export_adapter(student, tmp_path / "peft")
    assert float(re.search(r"mean ([^,]+),", str(e.value))[1]) < 2e-3


def check_the_wide_student_multiplies_with_what_the_run_did(run):
    """Its weights are those of the bf16 run, bit for bit: nothing is rounded anew, nothing less."""
    for quant in ("none", "nf4"):
        folder = run(dtype="bfloat16", quant=quant)
        narrow, wide = open_student(folder, "3"), widened(open_student(folder, "3"))
        for name, layer in narrow.model.layers.items():
            now = wide.model.layers[name]
            assert now.base.weight.dtype == now.baked_A.dtype == torch.float32
            assert torch.equal(now.base.weight, layer.base.weight.float())
            assert torch.equal(now.baked_B, layer.baked_B.float())
        with torch.no_grad():
            gap = difference(answers(narrow, token_batch(2, 20)), answers(wide, token_batch(2, 20)))
        assert 0 < gap < 1.0


def check_a_truncated_bf16_student_does_not_pass_in_silence(run, tmp_path):
    """What it loses is said in norm and as a share of the student, and judged in fp32; its card has
    no measures, which are those of the whole student."""
    folder = shutil.copytree(run(dtype="bfloat16"), tmp_path / "run")
    change_json(folder / "summary.json", **SUMMARY)
    student = open_student(folder, "3")
    with pytest.raises(UserError, match=r"% of the delta's norm is lost.* % of KL.*larger"):
        export_adapter(student, tmp_path / "out", rank=2)
    export_adapter(student, tmp_path / "out", rank=2, tolerance=99.0)
    text = (tmp_path / "out/README.md").read_text()
    assert "steerloop.score THIS-FOLDER --like run" in text and "is lost" in text
    assert "coherence" not in text and "0.123" not in text
    export_adapter(student, tmp_path / "full", rank=12)  # by SVD, but nothing is lost
    export_adapter(student, tmp_path / "all")
    for name in ("full", "all"):
        assert "coherence: 0.123" in (tmp_path / name / "README.md").read_text()
    export_merged(student, tmp_path / "merged")
    assert "coherence: 0.123" in (tmp_path / "merged/README.md").read_text()
    for gates in ("0.5", "1,1,0"):
        export_adapter(open_student(folder, "3", gates), tmp_path / gates)
        assert "0.123" not in (tmp_path / gates / "README.md").read_text()


def check_rounding_that_eats_the_student_is_refused(run, tmp_path):
    """A delta far below the spacing of bf16: the file would be the base. In fp32 it is written."""
    folder = run(size=1e-5)
    with pytest.raises(UserError, match=r"not the student.*--dtype float32 rounds nothing"):
        export_merged(open_student(folder, "3"), tmp_path / "out", "bfloat16")
    assert not list(tmp_path.iterdir())
    export_merged(open_student(folder, "3"), tmp_path / "out")


FILES = ["tokenizer.model", "vocab.json", "merges.txt", "spiece.model", "source.spm",
         "qwen.tiktoken", "added_tokens.json", "special_tokens_map.json", "tekken.json",
         "chat_template.json", "additional_chat_templates/tool_use.jinja",
         "preprocessor_config.json"]
OTHERS = ["model_old.safetensors", "README.md", "pytorch_model.bin", "training_args.json",
          "config.json", "generation_config.json"]


def check_merged_has_all_files_of_the_tokenizer(run, saved, tmp_path, monkeypatch):
    """What saving leaves out is copied as it is; what saving wrote stays; nothing else comes."""
    source = shutil.copytree(saved("gemma3"), tmp_path / "source")
    out = tmp_path / "out"
    out.mkdir()
    for name in [*FILES, *OTHERS, "tokenizer_config.json"]:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(f"source {name}")
        (source / name).chmod(0o600)
    (out / "tokenizer_config.json").write_text("saved")
    copy_tokenizer(source, out)
    assert {str(x.relative_to(out)) for x in out.rglob("*") if x.is_file()} == {
        *FILES, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert all((out / x).read_text() == f"source {x}" for x in FILES)
    assert (out / "tokenizer_config.json").read_text() == "saved"
    place = saved("gemma3") / "tokenizer.model"
    place.write_bytes(b"\x0a\x0b")
    try:
        export_merged(open_student(run(), "3"), tmp_path / "merged")
    finally:
        place.unlink()
    assert (tmp_path / "merged/tokenizer.model").read_bytes() == b"\x0a\x0b"


def check_files_have_the_mode_of_any_new_file(run, tmp_path):
    before = os.umask(0o027)
    try:
        student = open_student(run(), "3")
        out = [export_adapter(student, tmp_path / "peft"),
               export_merged(student, tmp_path / "merged"),
               export_vector(student, tmp_path / "vector", gguf=False),
               export_vector(student, tmp_path / "gguf", gguf=True)]
        write_whole(tmp_path / "run.safetensors",
                    lambda path: save_file({"x": torch.ones(1)}, path))
    finally:
        os.umask(before)
    files = [x for folder in out for x in folder.rglob("*") if x.is_file()]
    assert len(files) > 10
    assert {x.stat().st_mode & 0o777 for x in [*files, tmp_path / "run.safetensors"]} == {0o640}


def check_a_vector_has_a_card_that_names_its_student(run, tmp_path):
    folder = run()
    for to, file in (("vector", "vector.safetensors"), ("gguf-vector", "vector.gguf")):
        for round in (1, 2, 3):
            main([str(folder), "--to", to, "--round", str(round), "--out", str(tmp_path / "out")])
            text = (tmp_path / "out/README.md").read_text()
            assert (f"the student after round {round - 1}" in text) is (round > 1)
            assert ("from the untouched base" in text) is (round == 1)
            assert file in text and f"round {round}" in text and "c\\* = " in text
            if to == "gguf-vector":
                said = GGUFReader(tmp_path / "out" / file).get_field("general.description")
                assert (f"after round {round - 1}" in said.contents()) is (round > 1)
                assert f"--control-vector-scaled {file}:1 " in text
            shutil.rmtree(tmp_path / "out")


def check_llama_cpps_flag_is_what_it_parses():
    """As common/arg.cpp reads it: commas part files unless quoted, a colon parts a file from its
    scale, and there may be one."""
    for name in ("v.gguf", "a b/v.gguf", "a,b/v.gguf", 'a"b,c/v.gguf', "a:b/v.gguf", "it's/v.gguf",
                 "a:b,c/v.gguf", "$HOME/`x`/v.gguf"):
        flag, value, layers, first, last = shlex.split(flags(Path(name), [1, 2]))
        (item,) = next(csv.reader([value]))
        scaled = flag == "--control-vector-scaled"
        assert scaled is (":" not in name) and (scaled or flag == "--control-vector")
        assert item.split(":") == [name, "1"] if scaled else item == name
        assert (layers, first, last) == ("--control-vector-layer-range", "1", "2")


@pytest.mark.parametrize(("flags", "said"), [
    (["--to", "peft", "--round", "4"], "rounds 1 to 3"),
    (["--to", "merged", "--round", "0"], "rounds 1 to 3"),
    (["--to", "merged", "--gates", "1,1,1"], "one a round"),
    (["--to", "vector", "--gates", "1,2"], "give one number"),
    (["--to", "peft", "--gates", "0"], "nothing to export"),
    (["--to", "peft", "--round", "3", "--rank", "13"], "the stack has rank 12"),
    (["--to", "peft", "--rank", "99"], "the stack has rank"),
    (["--to", "vector", "--out", "."], "exists: remove it"),
    (["--to", "bundle", "--out", "."], "exists: remove it"),
    (["--to", "gguf-vector"], "cannot steer block 0"),
    (["--to", "gguf-vector", "--round", "2"], "no architecture for a gemma3_other"),
])
def check_what_cannot_be_is_refused_before_a_model_is_loaded(run, tmp_path, flags, said,
                                                              monkeypatch):
    """Of all of these the run folder and the model's config tell; no weight is read."""
    folder = run(steer_blocks=[0, 2])
    if "architecture" in said:
        folder = run()
        monkeypatch.setitem(vectors.HINTS, "gemma3_text", "gemma3_other")
    monkeypatch.setattr("steerloop.export.__main__.open_student", None)
    with pytest.raises(SystemExit, match=said.replace("a gemma3_other", "a gemma3_text")):
        main([str(folder), *flags])


def check_gguf_holds_what_llama_cpp_reads(run):
    folder = run()
    main([str(folder), "--to", "gguf-vector", "--dose", "0.5"])
    reader = GGUFReader(folder / "exports/gguf-vector-round1/vector.gguf")
    said = {k: reader.get_field(k).contents() for k in (
        "general.architecture", "controlvector.model_hint", "controlvector.layer_count")}
    assert list(said.values()) == ["controlvector", "gemma3", 2]
    wanted = read_vector(folder, 1, torch.device("cpu"))
    assert [x.name for x in reader.tensors] == ["direction.1", "direction.2"]
    for x, v in zip(reader.tensors, wanted.values(), strict=True):
        assert x.tensor_type.name == "F32" and list(x.shape) == [32]
        assert torch.equal(torch.from_numpy(x.data.copy()), 0.5 * c_star(folder, 1) * v)


def check_a_vector_says_what_scale_1_is(run, tmp_path):
    folder = run(steer_blocks=[0, 2])
    with pytest.raises(UserError, match=r"cannot steer block 0.*--to vector"):
        export_vector(open_student(folder, "1"), tmp_path / "gguf", gguf=True)
    main([str(folder), "--to", "vector", "--round", "2"])
    found = load_file(folder / "exports/vector-round2/vector.safetensors")
    wanted = read_vector(folder, 2, torch.device("cpu"))
    assert set(found) == {"block.0", "block.2"}
    assert all(torch.equal(found[f"block.{b}"], 1.5 * v) for b, v in wanted.items())


def check_the_best_round_is_exported_unless_there_is_none(run, tmp_path):
    folder = shutil.copytree(run(), tmp_path / "run")
    assert open_student(folder).rounds == 2
    change_json(folder / "summary.json", best_round=None)
    with pytest.raises(UserError, match="coherence floor"):
        open_student(folder)


def check_a_missing_package_is_named(run, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'steerloop\[export\]'"):
        export_adapter(open_student(run(), "1"), tmp_path / "out")
