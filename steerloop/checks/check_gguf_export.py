"""What llama.cpp loads is the student: every file is read back by rules that the writer does not
share, and what llama.cpp would run otherwise is not written."""

import json

import pytest
import torch
from gguf import GGUFReader, quants
from transformers import AutoConfig, Gemma2Config, Gemma3TextConfig

from steerloop import UserError
from steerloop.checks.exported import difference, made_run
from steerloop.checks.families import save_family
from steerloop.checks.ggufs import converted, name_of
from steerloop.checks.ggufs import small as small_gguf
from steerloop.checks.ggufs import write_gguf as write_reference
from steerloop.checks.small import small_config, token_batch
from steerloop.export import adapter, export_gguf, export_lora
from steerloop.export.__main__ import main
from steerloop.export.llamacpp import described, family
from steerloop.export.lora_gguf import load_lora
from steerloop.export.merged import delta
from steerloop.export.student import open_student
from steerloop.export.vocabulary import vocabulary
from steerloop.loading.gguf import attended
from steerloop.loading.hub import locate
from steerloop.loading.weights import load_weights

WRITTEN = {"gemma3": "gemma3", "gemma3-multimodal": "gemma3", "gemma2": "gemma2", "qwen3": "qwen3",
           "qwen2": "qwen2", "llama3": "llama", "smollm2": "llama"}
REFUSED = {"gemma": "gemma model are not written", "olmo2": "olmo2 model are not",
           "smollm3": "smollm3 model are not", "mistral": "its attention slides",
           "qwen3-moe": "qwen3_moe model are not", "qwen3.5": "qwen3_5_text model are not"}
CPU = torch.device("cpu")


def merging(folder):
    """Bytes that are in no text make room for two merges: a file holds no empty list of them."""
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text("utf-8"))
    known = whole["model"]["vocab"]
    for letter, word in (("þ", "th"), ("ÿ", "the")):
        known[word] = known.pop(letter)
    whole["model"]["merges"] = [["t", "h"], ["th", "e"]]
    path.write_text(json.dumps(whole), "utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(family, config fields) → a run folder of three random rounds, made once."""
    root, known = tmp_path_factory.mktemp("families"), {}

    def make(family="gemma3", **fields):
        if (key := repr((family, fields))) not in known:
            if family == "qwen3-moe":
                fields |= {"targets": ["q_proj", "v_proj"]}
            folder = root / family
            if not folder.exists():
                merging(save_family(folder, family))
            cfg = small_config(folder, **{"quant": "none", **fields})
            known[key] = made_run(tmp_path_factory.mktemp("run"), cfg)
        return known[key]

    return make


@pytest.fixture(autouse=True)
def short(monkeypatch, tmp_path_factory):
    monkeypatch.setattr("steerloop.export.parity.ROWS", 2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def answers(student, ids):
    with torch.no_grad(), student.model.gates(student.gates):
        return student.model.hf(input_ids=ids).logits


@pytest.mark.parametrize("family", WRITTEN)
def check_a_lora_adds_to_llama_cpps_weights_what_the_student_adds(run, tmp_path, family):
    """By the converter's rules spelled out, gates folded in, at the scale that llama.cpp takes."""
    student = open_student(run(family), "3", "1,0.5,-0.25")
    deltas = load_lora(export_lora(student, tmp_path / "out") / "adapter.gguf")
    config, arch = student.model.hf.config, WRITTEN[family]
    assert len(deltas) == len(student.model.layers)
    for name in student.model.layers:
        there = name_of(arch, config.num_hidden_layers, f"{name}.weight")
        wanted = converted(arch, f"{name}.weight", delta(student, name).numpy(), config)
        assert difference(deltas[there], torch.from_numpy(wanted)) < 1e-5
    fields = {k: x.contents() for k, x in GGUFReader(tmp_path / "out/adapter.gguf").fields.items()}
    assert {k: x for k, x in fields.items() if "." in k and not k.startswith("GGUF")} == {
        "general.architecture": arch, "general.type": "adapter", "adapter.type": "lora",
        "adapter.lora.alpha": 12.0}


@pytest.mark.parametrize("family", WRITTEN)
def check_a_gguf_is_read_as_the_student(run, tmp_path, family):
    """A model file that `--model` takes, tokens and ends with it."""
    student = open_student(run(family), "3", "1,0.5,-0.25")
    ids = token_batch(2, 20)
    wanted = answers(student, ids)
    out = export_gguf(student, tmp_path / "out")
    tokenizer, hf = load_weights(str(out / "model.gguf"), "float32", "auto", "none", CPU)
    with torch.no_grad():
        assert difference(hf(input_ids=ids).logits, wanted) < 1e-4
    assert tokenizer.chat_template == student.model.tokenizer.chat_template


@pytest.mark.parametrize("arch", ["llama", "gemma3", "gemma2", "qwen2", "qwen3"])
def check_a_base_is_written_as_the_converter_writes_it(tmp_path, arch):
    """Gates 0: the base, tensor by tensor and key by key what the reference writes of it."""
    hf = small_gguf(arch, tie_word_embeddings=arch.startswith("gemma"))
    write_reference(tmp_path / "a.gguf", arch, hf, **{
        "tokenizer.ggml.pre": "qwen2" if arch.startswith("qwen") else "smollm"})
    cfg = small_config(tmp_path / "a.gguf", quant="none", lora_blocks=[1, 2], steer_blocks=[1])
    folder = made_run(tmp_path, cfg)
    main([str(folder), "--to", "gguf", "--gates", "0", "--round", "1", "--out",
          str(tmp_path / "out")])
    ours, theirs = (GGUFReader(tmp_path / x) for x in ("out/model.gguf", "a.gguf"))
    assert {x.name: (x.tensor_type, x.data.tobytes()) for x in ours.tensors} == {
        x.name: (x.tensor_type, x.data.tobytes()) for x in theirs.tensors}
    fields = [{k: x.contents() for k, x in f.fields.items()} for f in (ours, theirs)]
    for key, value in fields[1].items():
        if not key.startswith(("GGUF", "general.name")):
            assert fields[0][key] == value, key


@pytest.mark.parametrize("family", REFUSED)
@pytest.mark.parametrize("to", ["gguf-lora", "gguf"])
def check_another_family_is_refused_before_a_model_is_loaded(run, family, to, monkeypatch):
    folder = run(family)
    monkeypatch.setattr("steerloop.export.__main__.open_student", None)
    with pytest.raises(SystemExit, match=f"{REFUSED[family]}.*--to peft and --to merged"):
        main([str(folder), "--to", to, "--round", "3"])


def check_rounding_is_said_and_bounded(run, tmp_path):
    """8 bits and 16: the file differs by what rounding costs and no more; what does not fit into
    whole blocks has 16."""
    folder = run("llama3")
    for dtype, kinds in (("q8_0", {"Q8_0", "F16", "F32"}), ("float16", {"F16", "F32"}),
                         ("bfloat16", {"BF16", "F32"})):
        main([str(folder), "--to", "gguf", "--round", "3", "--dtype", dtype, "--out",
              str(tmp_path / dtype), "--tolerance", "9"])
        reader = GGUFReader(tmp_path / dtype / "model.gguf")
        assert {x.tensor_type.name for x in reader.tensors} == kinds
        x = next(x for x in reader.tensors if x.name == "blk.1.attn_v.weight")
        student = open_student(folder, "3")
        layer = student.model.layers["model.layers.1.self_attn.v_proj"]
        whole = layer.base.weight + delta(student, "model.layers.1.self_attn.v_proj")
        found = torch.from_numpy(quants.dequantize(x.data, x.tensor_type))
        assert 0 < difference(found, whole) < 0.01 * whole.abs().max()
        assert "read back as --model reads it" in (tmp_path / dtype / "README.md").read_text()
    with pytest.raises(SystemExit, match="--dtype q8_0 is for --to gguf"):
        main([str(folder), "--to", "merged", "--dtype", "q8_0"])


@pytest.mark.parametrize("to", ["gguf-lora", "gguf"])
def check_what_is_not_the_student_is_removed(run, tmp_path, to, monkeypatch):
    """Rows of q and k that lie as the library has them: it would load, and be wrong."""
    real = "steerloop.export.llamacpp.rearrange"
    monkeypatch.setattr(real, lambda x, *_, **__: x)
    with pytest.raises(SystemExit, match="is not the student, and was removed"):
        main([str(run("llama3")), "--to", to, "--round", "3", "--out", str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    monkeypatch.setattr("steerloop.export.parity.ROWS", 2)
    factors = adapter.factors
    for place in ("adapter", "merged"):
        monkeypatch.setattr(f"steerloop.export.{place}.factors",
                            lambda layer, gates: (factors(layer, gates)[0],
                                                  1.01 * factors(layer, gates)[1]))
    with pytest.raises(SystemExit, match="is not the student, and was removed"):
        main([str(run("qwen3")), "--to", to, "--round", "3", "--out", str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())


def check_rank_is_as_for_peft(run, tmp_path):
    folder = run()
    with pytest.raises(SystemExit, match=r"% of the delta's norm is lost.*larger --rank"):
        main([str(folder), "--to", "gguf-lora", "--round", "3", "--rank", "3"])
    main([str(folder), "--to", "gguf-lora", "--round", "3", "--rank", "12", "--out",
          str(tmp_path / "full")])
    reader = GGUFReader(tmp_path / "full/adapter.gguf")
    assert {x.shape[1] for x in reader.tensors if x.name.endswith("lora_a")} == {12}
    assert "--lora adapter.gguf" in (tmp_path / "full/README.md").read_text()
    for flags, said in ((["--rank", "13"], "the stack has rank 12"),
                        (["--gates", "0"], "nothing to export")):
        with pytest.raises(SystemExit, match=said):
            main([str(folder), "--to", "gguf-lora", "--round", "3", *flags])


def check_the_order_of_blocks_is_in_the_file_or_it_is_refused(run, tmp_path):
    """The embedded model's sixth block is not global, though its third is: a gemma3 file says so of
    every block, a gemma2 file cannot."""
    own = AutoConfig.from_pretrained(locate("embedded"))
    said = described(own)["gemma3.attention.sliding_window_pattern"]
    assert said == [True, True, False, True, True, True]
    assert attended(6, said) == own.layer_types
    assert attended(12, 6) == Gemma3TextConfig(num_hidden_layers=12).layer_types
    assert not any("pattern" in x for x in described(Gemma3TextConfig(num_hidden_layers=12)))
    with pytest.raises(ValueError, match="of 6 blocks whether they slide, and has 7"):
        attended(7, said)
    two = Gemma2Config(num_hidden_layers=4)
    assert family(two) == "gemma2"
    two.layer_types = ["sliding_attention"] * 4
    with pytest.raises(UserError, match="order of this gemma2's sliding and global blocks"):
        family(two)


def check_a_tokenizer_that_a_file_cannot_say_is_refused(run):
    student = open_student(run("llama3"), "1")
    tokenizer = student.model.tokenizer
    assert vocabulary(tokenizer, 262, [1])["tokenizer.ggml.pre"] == "gpt-2"
    with pytest.raises(UserError, match="end in 3 tokens, and a GGUF file names two"):
        vocabulary(tokenizer, 262, [1, 4, 5])
    tokenizer.backend_tokenizer.pre_tokenizer = None
    with pytest.raises(UserError, match="cuts text in a way for which GGUF files have no name"):
        vocabulary(tokenizer, 262, [1])


def check_other_tokens_are_noticed(run, tmp_path, monkeypatch):
    """A file that says another way to cut text, a template that is lost, other ends."""
    folder = run("llama3")

    def refused(said, **changed):
        with monkeypatch.context() as m:
            m.setattr("steerloop.export.merged_gguf.vocabulary",
                      lambda *args: vocabulary(*args) | changed)
            with pytest.raises(UserError, match=said):
                export_gguf(open_student(folder, "3"), tmp_path / "out")
        assert not list(tmp_path.iterdir())

    refused("cuts .* otherwise", **{"tokenizer.ggml.merges": ["t h"]})
    refused("chat template", **{"tokenizer.chat_template": "{{ messages }}"})
    refused("answers end in", **{"tokenizer.ggml.eot_token_id": 9})
