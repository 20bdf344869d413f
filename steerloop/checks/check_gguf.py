"""GGUF files are models like any other: the same weights, tokens and ends as the folder they were
made from, and one line for every file that would not be."""

import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time

import pytest
import regex
import torch
from transformers import AutoModelForCausalLM

from steerloop import UserError
from steerloop.checks.ggufs import (
    F16,
    F32,
    Q4_1,
    Q8_0,
    SENTENCEPIECE,
    VOCABULARY,
    merged,
    pieced,
    small,
    write_gguf,
)
from steerloop.checks.small import SPECIALS, TEMPLATES, short_run, small_config, token_batch
from steerloop.export.__main__ import main as export_main
from steerloop.export.bundle import verify, write_bundle
from steerloop.export.parity import student_logits
from steerloop.export.student import open_student
from steerloop.loading import gguf
from steerloop.loading.files import INDEX, model_files, source
from steerloop.loading.gguf import CONFIGS, origin, unpacked
from steerloop.loading.hub import locate, public_name
from steerloop.loading.packed import packed
from steerloop.loading.tokens import SPLITS
from steerloop.loading.weights import load_weights
from steerloop.runfolder.inputs import model_record
from steerloop.score import find_adapter

CPU = torch.device("cpu")
KINDS = {"f32": F32, "f16": F16, "q8_0": Q8_0, "q4_1": Q4_1}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A sound file, for checks that damage copies of it."""
    file = tmp_path_factory.mktemp("gguf") / "llama.gguf"
    write_gguf(file, "llama", small("llama"), Q8_0)
    return file


def loaded(model, quant="none", dtype="float32"):
    return load_weights(str(model), dtype, "auto", quant, CPU)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", CONFIGS)
def check_weights_are_those_of_the_folder_it_was_made_from(tmp_path, arch, kind):
    hf = small(arch, tie_word_embeddings=arch.startswith("gemma"))
    worth = write_gguf(tmp_path / "a.gguf", arch, hf, KINDS[kind])
    hf.load_state_dict(worth, strict=False)
    hf.save_pretrained(tmp_path / "folder")
    tokenizer, ours = loaded(tmp_path / "a.gguf")
    tokenizer.save_pretrained(tmp_path / "folder")
    ids = torch.randint(len(SPECIALS), len(VOCABULARY), (2, 40))
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, hf.eval()(ids).logits)
    for quant, dtype in (("none", "bfloat16"), ("nf4", "float32"), ("nf4", "bfloat16")):
        a, b = (loaded(x, quant, dtype)[1].state_dict() for x in (tmp_path / "a.gguf",
                                                                  tmp_path / "folder"))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a), (quant, dtype)


@pytest.mark.parametrize("arch", CONFIGS)
def check_the_configuration_is_that_of_the_folder(tmp_path, arch):
    hf = small(arch)
    write_gguf(tmp_path / "a.gguf", arch, hf)
    theirs, ours = hf.config.to_dict(), loaded(tmp_path / "a.gguf")[1].config.to_dict()
    free = {"dtype", "architectures", "initializer_range", "_name_or_path", "transformers_version",
            "head_dim"}
    assert {k: x for k, x in ours.items() if k not in free} == {
        k: x for k, x in theirs.items() if k not in free}


def check_rows_are_read_in_chunks(llama, monkeypatch):
    weights = packed(unpacked(llama), torch.float32)
    whole = {k: x[...] for k, x in weights.items()}
    monkeypatch.setattr("steerloop.loading.packed.CHUNK", 100)
    assert all(torch.equal(x[...], whole[k]) for k, x in weights.items())


CUT = {"gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"} | {
    x: SPLITS[x] for x in ("llama-bpe", "qwen2", "tekken")}


def words_of(way, text):
    """Text → what is merged apart, by the rules that the vocabularies were made with."""
    if way == "smollm":
        return [x for part in regex.findall(r"\p{N}|[^\p{N}]+", text)
                for x in regex.findall(CUT["gpt-2"], part)]
    return regex.findall(CUT[way], text)


@pytest.mark.parametrize("way", ["smollm", *CUT])
def check_tokens_are_those_that_the_file_says(tmp_path, way):
    write_gguf(tmp_path / "a.gguf", "llama", small("llama"), **{"tokenizer.ggml.pre": way})
    tokenizer = loaded(tmp_path / "a.gguf")[0]
    draw = random.Random(0)
    pieces = ["the", " the", "  ", " ", "\n", "\t", "12", " 12", "3", "in", "it's", "IT'S", "é",
              "北", "!", "...", " a", "Th", "²", "\r\n", "_", "日 12"]
    for _ in range(600):
        text = "".join(draw.choices(pieces, k=draw.randint(1, 9)))
        tokens = merged(words_of(way, text))
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.convert_ids_to_tokens(ids) == tokens, (way, text)
        assert tokenizer.decode(ids) == text
    assert tokenizer("a<end>", add_special_tokens=False).input_ids[-1] == SPECIALS.index("<end>")


@pytest.mark.parametrize(("arch", "prefix"), [("llama", True), ("llama", False), ("gemma3", False)])
def check_tokens_are_those_of_sentencepiece(tmp_path, arch, prefix):
    hf = small(arch, vocab_size=len(SENTENCEPIECE["tokenizer.ggml.tokens"]))
    flag = {"tokenizer.ggml.add_space_prefix": prefix}
    write_gguf(tmp_path / "a.gguf", arch, hf, **SENTENCEPIECE | ({} if prefix else flag))
    tokenizer = loaded(tmp_path / "a.gguf")[0]
    draw, pieces = random.Random(0), ["the", " ", "  ", "12", "3", "in", "an", "T", "é", "北", "\n"]
    for _ in range(600):
        text = "".join(draw.choices(pieces, k=draw.randint(1, 9)))
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.convert_ids_to_tokens(ids) == pieced(text, prefix), text
    ids = tokenizer("<bos>the<end>", add_special_tokens=False).input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["<bos>", *pieced("the", prefix), "<end>"]


def check_stop_tokens_and_template_come_from_the_file(llama):
    tokenizer, hf = loaded(llama)
    assert hf.generation_config.eos_token_id == [1, SPECIALS.index("<end>")]
    assert "<turn>" in tokenizer.chat_template and tokenizer.bos_token == "<bos>"


def check_llama_3_scaling_is_recognised(tmp_path):
    own = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, **gguf.LLAMA3}
    hf = small("llama", rope_parameters=own).eval()
    plain = small("llama", rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    factors = plain.model.rotary_emb.inv_freq / hf.model.rotary_emb.inv_freq
    assert factors.max() == 8
    write_gguf(tmp_path / "a.gguf", "llama", hf, extra={"rope_freqs.weight": factors.numpy()})
    ids = torch.randint(6, 260, (1, 300))
    with torch.no_grad():
        assert torch.equal(loaded(tmp_path / "a.gguf")[1](ids).logits, hf(ids).logits)
        assert not torch.equal(plain.eval()(ids).logits, hf(ids).logits)
    write_gguf(tmp_path / "b.gguf", "llama", hf, extra={"rope_freqs.weight": 1.1 * factors.numpy()})
    with pytest.raises(UserError, match="not those of Llama"):
        locate(str(tmp_path / "b.gguf"))


def check_linear_scaling_is_that_of_global_blocks(tmp_path):
    scaled = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    local = {"rope_type": "default", "rope_theta": 1e4}
    hf = small("gemma3", rope_parameters={"full_attention": scaled, "sliding_attention": local})
    write_gguf(tmp_path / "a.gguf", "gemma3", hf, **{"gemma3.rope.scaling.type": "linear",
                                                     "gemma3.rope.scaling.factor": 8.0})
    ids = torch.randint(6, 260, (1, 60))
    with torch.no_grad():
        assert torch.equal(loaded(tmp_path / "a.gguf")[1](ids).logits, hf.eval()(ids).logits)


@pytest.mark.parametrize(("arch", "blocks", "scalar"), [
    ("gemma2", 46, 8), ("gemma2", 42, 16), ("gemma3", 62, 8), ("gemma3", 34, 16)])
def check_the_largest_gemmas_scale_attention_by_their_width(arch, blocks, scalar, tmp_path):
    hf = small(arch, num_hidden_layers=2, head_dim=16)
    write_gguf(tmp_path / "a.gguf", arch, hf, **{f"{arch}.attention.key_length": 16})
    facts = {k: x.contents() for k, x in gguf.Reader(tmp_path / "a.gguf").fields.items()}
    tensors = {x.name: x for x in gguf.Reader(tmp_path / "a.gguf").tensors}
    made = gguf.config_of(facts | {f"{arch}.block_count": blocks}, tensors)
    assert made.query_pre_attn_scalar == scalar


WRONG = {  # metadata → what is said of it
    "architecture": ({"general.architecture": "mamba"}, "architecture mamba are not read"),
    "split": ({"split.count": 3}, "one of 3 parts.*llama-gguf-split --merge"),
    "lacks": ({"llama.block_count": None}, "lacks llama.block_count"),
    "yarn": ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, "yarn"),
    "slides": ({"llama.attention.sliding_window": 8}, "slides"),
    "partly": ({"llama.rope.dimension_count": 4}, "rotated in part"),
    "values": ({"llama.attention.value_length": 4}, "another width"),
    "per block": ({"llama.attention.head_count_kv": [2, 2, 2]}, "differs from block to block"),
    "cut": ({"tokenizer.ggml.pre": "hieroglyphs"}, "'hieroglyphs', which is not known"),
    "no cut": ({"tokenizer.ggml.pre": None}, "''.*not known"),
    "tokenizer": ({"tokenizer.ggml.model": "rwkv"}, "rwkv"),
    "no tokens": ({"tokenizer.ggml.tokens": None}, "'tokens'.*KeyError.*download it again"),
    "heads": ({"llama.attention.head_count": 3}, "not a multiple"),
    "blocks": ({"llama.block_count": 2}, "blk.2.* has no place"),
    "more": ({"llama.block_count": 4}, "blk.3|not in its files|lacks"),
}  # fmt: skip


def one_line(folder, model):
    with pytest.raises(UserError) as e:
        loaded(model)
    assert "\n" not in str(e.value) and len(str(e.value)) < 700
    assert not list(folder.glob("steerloop/gguf/*.part"))
    return str(e.value)


@pytest.mark.parametrize("name", WRONG)
def check_a_file_that_would_be_another_model_is_refused(tmp_path, name, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    facts, says = WRONG[name]
    write_gguf(tmp_path / "a.gguf", "llama", small("llama"), **facts)
    assert regex.search(says, one_line(tmp_path, tmp_path / "a.gguf"))


def check_a_tensor_without_a_place_is_refused(tmp_path):
    hf = small("llama")
    write_gguf(tmp_path / "a.gguf", "llama", hf,
               extra={"blk.0.attn_q.bias": torch.zeros(32).numpy()})
    assert "blk.0.attn_q.bias has no place" in one_line(tmp_path, tmp_path / "a.gguf")


def check_a_file_cut_short_or_damaged_is_one_line(llama, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    whole, draw, refused = llama.read_bytes(), random.Random(0), 0
    header = whole.index(b"blk.0")
    bad = tmp_path / "bad.gguf"
    cuts = [0, 3, 4, 20, *(draw.randrange(len(whole)) for _ in range(16))]
    broken = [whole[:x] for x in cuts]
    for _ in range(60):  # of the metadata and the table of tensors
        part = bytearray(whole)
        for _ in range(draw.choice((1, 1, 8))):
            at = draw.choice([draw.randrange(200), draw.randrange(header + 2000)])
            part[at] = draw.choice([0, 255, draw.randrange(256)])
        broken.append(bytes(part))
    for number, content in enumerate(broken):
        bad.write_bytes(content)
        start = time.monotonic()
        try:
            loaded(bad)
            assert number >= len(cuts), "it was cut"
        except UserError as e:
            refused += 1
            assert "\n" not in str(e) and "\0" not in str(e)
        assert time.monotonic() - start < 60
    assert refused > 40


def check_a_list_without_an_end_ends(llama, tmp_path):
    content = bytearray(llama.read_bytes())
    at = content.index(b"tokenizer.ggml.token_type") + len(b"tokenizer.ggml.token_type") + 8
    content[at : at + 8] = (2**61).to_bytes(8, "little")
    (tmp_path / "a.gguf").write_bytes(content)
    assert "cut short" in one_line(tmp_path, tmp_path / "a.gguf")


def check_what_a_name_of_a_model_may_be(llama, tmp_path, monkeypatch):
    shutil.copy(llama, tmp_path / "one.GGUF")
    assert locate(str(tmp_path)) == locate(str(tmp_path / "one.GGUF"))
    assert source(locate(str(tmp_path))) == tmp_path / "one.GGUF"
    assert public_name(locate(str(tmp_path))) == ("one.GGUF", None)
    (tmp_path / "link").mkdir()
    (tmp_path / "link/named.gguf").symlink_to(tmp_path / "one.GGUF")
    assert public_name(locate(str(tmp_path / "link"))) == ("named.gguf", None)
    shutil.copy(llama, tmp_path / "two.gguf")
    with pytest.raises(UserError, match=r"several models, one\.GGUF, two\.gguf: name one"):
        locate(str(tmp_path))
    with pytest.raises(UserError, match="no such file"):
        locate(str(tmp_path / "three.gguf"))
    with pytest.raises(UserError, match="magic"):
        (tmp_path / "four.gguf").write_text("hello, I am no model")
        locate(str(tmp_path / "four.gguf"))


def check_it_is_unpacked_once_and_anew_where_it_changed(llama, tmp_path):
    file = tmp_path / "a.gguf"
    shutil.copy(llama, file)
    folder = unpacked(file)
    made = (folder / INDEX).stat().st_mtime_ns
    assert unpacked(file) == folder and (folder / INDEX).stat().st_mtime_ns == made
    before = model_record(str(file))
    assert before["path"] == str(file) and before["name"] == "a.gguf"
    assert list(before["sha256"]) == ["a.gguf"] and model_files(folder) == [file]
    write_gguf(file, "llama", small("llama", num_hidden_layers=2), Q8_0)
    assert unpacked(file) != folder and loaded(file)[1].config.num_hidden_layers == 2
    assert model_record(str(file)) != before


def unpack_at(file, barrier, results):
    barrier.wait()
    results.put(str(unpacked(file)))


@pytest.mark.long
def check_two_at_once_and_one_killed(llama, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    several = [context.Process(target=unpack_at, args=(llama, barrier, results)) for _ in range(3)]
    for x in several:
        x.start()
    assert len({results.get(timeout=60) for _ in several}) == 1
    for x in several:
        x.join()
    (folder,) = (tmp_path / "steerloop/gguf").iterdir()
    shutil.rmtree(folder)
    killed = ("import os, sys\nfrom steerloop.loading import gguf\n"
              "gguf.tokenizer_of = lambda *_: os.kill(os.getpid(), 9)\n"
              "gguf.unpacked(gguf.Path(sys.argv[1]))")
    assert subprocess.run([sys.executable, "-c", killed, str(llama)]).returncode == -9
    (part,) = folder.parent.glob("*.part")
    assert loaded(llama) and (folder / INDEX).is_file() and part.exists(), "another may be at it"
    os.utime(part, (0, 0))
    shutil.rmtree(folder)
    assert unpacked(llama) == folder and not part.exists()


def check_a_file_is_no_adapter_on_the_hub(llama, monkeypatch):
    monkeypatch.chdir(llama.parent.parent)
    monkeypatch.setattr("steerloop.score.snapshot_download", lambda *_, **__: pytest.fail("asked"))
    assert find_adapter(f"{llama.parent.name}/{llama.name}") is None


def check_a_cache_that_cannot_be_written(llama, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="XDG_CACHE_HOME"):
        unpacked(llama)


def check_the_base_that_a_file_names():
    repo = "https://huggingface.co/meta-llama/Llama-3.2-1B-Instruct"
    named = "meta-llama/Llama-3.2-1B-Instruct"
    assert origin({"general.source.repo_url": repo}) == named
    assert origin({"general.source.huggingface.repository": named}) == named
    parent = {"general.base_model.count": 1, "general.base_model.0.repo_url": repo}
    assert origin(parent) == "", "that of an instruct model is the pretrained one"
    assert origin(parent | {"general.quantized_by": "somebody"}) == named
    assert origin({"general.source.repo_url": "https://example.com/a/b/c"}) == ""


@pytest.mark.long
def check_a_run_on_a_file_its_exports_and_its_end(llama, tmp_path):
    model = tmp_path / "m" / "a.gguf"
    model.parent.mkdir()
    shutil.copy(llama, model)
    own = tmp_path / "own.jinja"
    own.write_text(TEMPLATES["folds"])
    cfg = small_config(model.parent, lora_blocks=[1, 2], template=str(own))
    run = short_run(tmp_path, cfg, steer_blocks=[1], r=4)
    inputs = json.loads((run / "config.json").read_text())["inputs"]
    assert inputs["model"]["path"] == str(model) and inputs["template"]["path"] == str(own)
    verify(write_bundle(run, tmp_path / "run.tar.gz"), model=str(model))
    assert export_main([str(run), "--to", "peft", "--out", str(tmp_path / "peft")]) is None
    assert export_main([str(run), "--to", "merged", "--out", str(tmp_path / "merged")]) is None
    settings = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "a.gguf"
    student = open_student(run, device="cpu")
    hf = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    logits, ids = student_logits(student, student.gates), token_batch(2, 12)
    with torch.no_grad():
        assert torch.allclose(hf(ids).logits, logits(ids), atol=1e-4)
    assert loaded(tmp_path / "merged")[0].chat_template == student.model.tokenizer.chat_template
    own.write_text(TEMPLATES["folds"] + "{# changed #}")
    with pytest.raises(UserError, match=r"other inputs.*template"):
        open_student(run, device="cpu")
    write_gguf(model, "llama", small("llama", initializer_range=0.2), Q8_0)
    with pytest.raises(UserError, match=r"other inputs.*model/a\.gguf"):
        open_student(run, device="cpu")
