"""A run knows what it read: every input by path and content. Whoever takes a run folder compares
what it needs, and refuses another in one line; which files are a model's weights is the library's
rule."""

import dataclasses
import json
import os
import tarfile
import time
from pathlib import Path
from random import Random
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.modeling_utils import _get_resolved_checkpoint_files

from steerloop import UserError
from steerloop.checks.cut import cut_off
from steerloop.checks.exported import measured_run
from steerloop.checks.families import save_family
from steerloop.checks.small import Small, data_files, short_config, small_config
from steerloop.cli.parsing import parse, preset
from steerloop.config import Config
from steerloop.export import export_adapter, export_lora, export_merged, export_vector
from steerloop.export.bundle import compare_bundle, write_bundle
from steerloop.export.student import config_of, open_student
from steerloop.loading import hub
from steerloop.loading.files import model_files, weight_files
from steerloop.loading.hub import locate, public_name
from steerloop.loading.weights import stored as stored_in
from steerloop.runfolder import inputs
from steerloop.runfolder.inputs import compared, hashes, record
from steerloop.runfolder.layout import contents, located
from steerloop.score import base_of, find_adapter
from steerloop.train import train

MODEL = "model.safetensors"


def stored(folder):
    """Name → weight."""
    return stored_in(folder, torch.float32)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    return save_family(tmp_path_factory.mktemp("sharded"), "qwen3", max_shard_size="40KB")


@pytest.fixture
def run(folders, tmp_path):
    """A run folder that says what it read, and a model of its own."""
    copytree(folders(), tmp_path / "llama")
    cfg = small_config(tmp_path / "llama", quant="none", **data_files(tmp_path))
    path = measured_run(tmp_path, cfg)
    document = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(document | {"inputs": record(cfg)}))
    return path


def zero_a_layer(folder):
    weights = load_file(folder / MODEL)
    weights["model.layers.3.mlp.down_proj.weight"].zero_()
    save_file(weights, folder / MODEL, {"format": "pt"})


def grow_tokenizer(folder):
    (folder / "added_tokens.json").write_text("{}")


def other_template(folder):
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text() + " ")


CHANGES = {"weights": (zero_a_layer, r"model/model.safetensors: \w{12} → \w{12}"),
           "tokenizer": (grow_tokenizer, r"model/added_tokens.json: none → \w{12}"),
           "template": (other_template, r"model/chat_template.jinja"),
           "stop tokens": (lambda f: (f / "generation_config.json").unlink(),
                           r"model/generation_config.json: \w{12} → none")}


@pytest.mark.parametrize("what", CHANGES)
def check_a_base_that_changed_is_refused_by_every_consumer(run, tmp_path, what):
    change, says = CHANGES[what]
    open_student(run, "1")
    change(tmp_path / "llama")
    with pytest.raises(UserError, match=says) as refused:
        open_student(run, "1")
    assert "--force" in str(refused.value) and str(tmp_path / "llama") in str(refused.value)
    forced = open_student(run, "1", force=True)
    assert list(forced.forced) == [x.split(":")[0].strip("\\") for x in [says]]


def check_what_is_no_input_may_come_and_go(run, tmp_path):
    (tmp_path / "llama/README.md").write_text("mine")
    (tmp_path / "llama/trainer_state.json").write_text("{}")
    (tmp_path / "llama/model_old.safetensors").write_bytes(b"not read")
    assert not open_student(run, "1").forced


def check_a_model_that_moved_is_found_by_name_and_known_by_content(run, tmp_path):
    (tmp_path / "llama").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="llama"):
        open_student(run, "1")
    assert not open_student(run, "1", model=str(tmp_path / "elsewhere")).forced
    zero_a_layer(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="other inputs"):
        open_student(run, "1", model=str(tmp_path / "elsewhere"))


@pytest.mark.long
def check_names_mean_what_they_meant_where_the_run_began(folders, tmp_path, monkeypatch):
    """Relative names, a folder that hides a preset, another working directory on resume."""
    copytree(folders(), tmp_path / "here/tiny")
    monkeypatch.chdir(tmp_path / "here")
    files = {k: Path(x).name for k, x in data_files(tmp_path / "here").items()}
    cfg = short_config(tmp_path / "here", small_config(Path("tiny"), quant="none", bootstrap=20))
    cfg = dataclasses.replace(cfg, **files, rounds=1)
    (tmp_path / "cut").mkdir()
    cut, *_ = cut_off(cfg, tmp_path / "cut", 20)
    text = (cut / "log.txt").read_text()
    assert all(f"{k}: {tmp_path}/here/{x}" in text for k, x in (
        ("model", "tiny"), ("prompts", "prompts.txt")))
    begun = (cut / "events.jsonl").read_bytes()
    monkeypatch.chdir(tmp_path)
    again = parse(Config, ["--resume", str(cut)], "")
    assert Path(again.model) == tmp_path / "here/tiny"
    train(again)
    document = json.loads((cut / "config.json").read_text())
    assert document["config"]["model"] == "tiny" and document["config"]["prompts"] == "prompts.txt"
    assert contents(document["inputs"]) == contents(record(again))
    assert (cut / "events.jsonl").read_bytes().startswith(begun)
    Path(again.prompts).write_text("Other?\n")
    with pytest.raises(UserError, match=r"prompts: \w+ → \w+.*--force"):
        train(dataclasses.replace(again, rounds=2))


def check_a_folder_has_no_preset(tmp_path, monkeypatch, folders):
    monkeypatch.chdir(tmp_path)
    copytree(folders(), tmp_path / "tiny")
    (tmp_path / "foo.toml").write_text("rounds = 3\n")
    plain = parse(Config, ["--model", "nothing"], "")
    for name in ("tiny", "./tiny", str(tmp_path / "foo"), "../foo", f"{tmp_path}/tiny"):
        assert dataclasses.replace(parse(Config, ["--model", name], ""), model="nothing") == plain
    assert preset("embedded") and not preset(str(tmp_path / "foo"))


@pytest.mark.parametrize("split", ["dev", "test"])
def check_a_split_stays_a_choice(tmp_path, split, monkeypatch):
    """A path that was found keeps the {split} of the name it came from."""
    monkeypatch.chdir(tmp_path)
    Path("v.test.jsonl").touch()
    document = {"config": {"vignettes": "v.{split}.jsonl", "split": "test"},
                "inputs": {"vignettes": {"path": str(tmp_path / "v.test.jsonl"), "sha256": ""}}}
    assert located(document)["vignettes"] == str(tmp_path / "v.{split}.jsonl")


def check_an_edit_that_hides_itself_is_seen(tmp_path, monkeypatch):
    """The middle of a large file, size and time of change put back."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(inputs, "LARGE", 2**10)
    monkeypatch.setattr(inputs, "SETTLED", 0)
    file = tmp_path / "large"
    file.write_bytes(b"x" * 2**20)
    was, times = hashes([file])[0], (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    read = []
    monkeypatch.setattr(inputs, "sha256", lambda x: read.append(x) or "made anew")
    assert hashes([file]) == [was] and not read, "it has not changed: it is not read again"
    with file.open("rb+") as f:
        f.seek(2**19)
        f.write(b"y")
    os.utime(file, ns=times)
    assert hashes([file]) == ["made anew"]
    inputs.kept_hashes().write_text("{damaged")
    assert hashes([file]) == ["made anew"]


def check_a_hash_is_kept_once_the_file_has_settled(tmp_path, monkeypatch):
    """What is written twice within a tick of the clock has one stamp and two contents."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(inputs, "LARGE", 2**10)
    file = tmp_path / "large"
    file.write_bytes(b"x" * 2**11)
    hashes([file])
    assert not inputs.kept_hashes().exists()
    monkeypatch.setattr(time, "time_ns", lambda: file.stat().st_ctime_ns + 10**10)
    hashes([file])
    assert inputs.kept_hashes().exists()


def check_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch, capsys):
    (tmp_path / "cache").write_text("a file in its place")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(inputs, "LARGE", 0)
    monkeypatch.setattr(inputs, "SETTLED", -10**12)
    file = tmp_path / "x"
    file.write_bytes(b"x")
    said = []
    monkeypatch.setattr(inputs.logger, "warning", said.append)
    assert len(hashes([file])[0]) == 64 and "not kept" in said[0]


NAMES = [MODEL, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
         "model_old.safetensors", "ema.safetensors", "model.fp16.safetensors"]


def check_which_files_are_the_weights_is_the_librarys_rule(tmp_path):
    """Generated folders: what lies there, with indexes that are stale, left behind, or named."""
    rng, compared_folders = Random(0), 0
    for i in range(1500):
        folder = tmp_path / f"{i}"
        folder.mkdir()
        for name in NAMES:
            if rng.random() < 0.5:
                (folder / name).touch()
        if rng.random() < 0.6:
            shards = rng.sample(NAMES, rng.randint(1, 3))
            (folder / f"{MODEL}.index.json").write_text(json.dumps(
                {"metadata": {}, "weight_map": {f"w{j}": x for j, x in enumerate(shards)}}))
        named = rng.choice([None, None, None, "ema.safetensors", "absent.safetensors"])
        (folder / "config.json").write_text(json.dumps({"transformers_weights": named}))
        try:
            found, _ = _get_resolved_checkpoint_files(
                str(folder), None, None, True, None, False, named)
        except OSError:
            found = []
        there = [str(x) for x in weight_files(folder) if x.suffix == ".safetensors"]
        if not found or all(Path(x).exists() for x in found):
            assert sorted(there) == sorted(found), sorted(os.listdir(folder))
            compared_folders += 1
    assert compared_folders > 750


def check_a_backup_beside_the_weights_is_not_read(sharded, folders, tmp_path):
    copytree(folders(), whole := tmp_path / "whole")
    before = {k: x[:] for k, x in stored(whole).items()}
    save_file({k: x / 2 for k, x in before.items()}, whole / "model_old.safetensors")
    save_file({k: x / 2 for k, x in before.items()}, whole / "ema.safetensors")
    (whole / f"{MODEL}.index.json").write_text(json.dumps(
        {"weight_map": dict.fromkeys(before, "ema.safetensors")}))  # stale
    assert all(torch.equal(x[:], before[k]) for k, x in stored(whole).items())
    copytree(sharded, left := tmp_path / "left")
    save_file({k: x[:] for k, x in stored(left).items()}, left / MODEL, {"format": "pt"})
    for shard in left.glob("model-*"):
        shard.unlink()
    assert stored(left).keys() == stored(sharded).keys(), "an index without its shards is passed by"


@pytest.mark.parametrize("text, says", [
    ('{"weight_map": {"a": "../model.safetensors"}}', "no safetensors file in its folder"),
    ('{"weight_map": {"a": "/etc/passwd"}}', "no safetensors file in its folder"),
    ('{"weight_map": {"a": "weights.bin"}}', "no safetensors file in its folder"),
    ('{"weight_map": []}', "no index of weights"), ("[1]", "no JSON object"),
    ('{"weight_map": ', "is damaged"), ("{}", "no index of weights")])
def check_an_index_that_is_none_is_one_line(sharded, tmp_path, text, says):
    copytree(sharded, tmp_path / "m")
    (tmp_path / f"m/{MODEL}.index.json").write_text(text)
    with pytest.raises(UserError, match=says) as refused:
        locate(str(tmp_path / "m"))
    assert "\n" not in str(refused.value)


def check_a_weight_that_two_shards_have_is_refused(sharded, tmp_path):
    copytree(sharded, tmp_path / "m")
    first, second = (x for x in weight_files(tmp_path / "m")[1:3])
    save_file(load_file(second) | load_file(first), second, {"format": "pt"})
    with pytest.raises(ValueError, match=f"is in {second.name} and in another"):
        stored(tmp_path / "m")


def check_an_empty_name_is_no_model(tmp_path, folders, monkeypatch):
    """The working directory is a model; an empty name, or an adapter that names none, is not it."""
    copytree(folders(), tmp_path / "m")
    monkeypatch.chdir(tmp_path / "m")
    with pytest.raises(UserError, match="--model is empty"):
        locate("")
    (tmp_path / "adapter").mkdir()
    save_file({}, tmp_path / "adapter/adapter_model.safetensors")
    for base in (None, "", ".", "./", "not-there"):
        (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(
            {"peft_type": "LORA", "base_model_name_or_path": base, "target_modules": ["q_proj"]}))
        with pytest.raises(UserError, match="--base") as refused:
            base_of("adapter", find_adapter(str(tmp_path / "adapter")))
        assert "\n" not in str(refused.value)


def check_a_revision_is_pinned(folders, tmp_path, monkeypatch):
    cache = tmp_path / "cache/models--google--gemma-3-1b-it"
    for commit in ("0" * 40, "1" * 40):
        copytree(folders(), cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("0" * 40)
    (cache / "refs/v2").write_text("1" * 40)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert locate("gemma-3-1b-it").name == "0" * 40
    for name in (f"google/gemma-3-1b-it@{'1' * 40}", "gemma-3-1b-it@v2"):
        assert locate(name).name == "1" * 40
        assert public_name(locate(name)) == ("google/gemma-3-1b-it", "1" * 40)
    copytree(folders(), tmp_path / "snapshots/step100")
    assert public_name(tmp_path / "snapshots/step100") == ("step100", None)
    assert public_name(locate("embedded")) == ("embedded", None)


def check_settings_taken_from_a_run_come_with_its_data(run, tmp_path):
    cfg = config_of(run)
    assert not compared(run, cfg, ["vignettes", "mundane", "persona"], False)
    Path(cfg.vignettes).write_text(Path(cfg.vignettes).read_text().replace("blow", "kick"))
    with pytest.raises(UserError, match=r"vignettes: \w{12} → \w{12}.*--force"):
        compared(run, cfg, ["vignettes", "mundane"], False)
    assert set(compared(run, cfg, ["vignettes", "mundane"], True)) == {"vignettes"}
    assert not compared(run, cfg, ["mundane"], False), "what is not needed is not compared"


def check_every_file_that_loading_reads_is_recorded(folders, monkeypatch):
    """Opened by the library and by us, of a model's folder: all of it, weights by their mapping."""
    folder, opened = folders(), set()
    real = open

    def watched(file, *args, **kwargs):
        if isinstance(file, str | os.PathLike) and Path(file).parent == folder:
            opened.add(Path(file).name)
        return real(file, *args, **kwargs)

    monkeypatch.setattr("builtins.open", watched)
    monkeypatch.setattr("io.open", watched)
    Small(small_config(folder, quant="none"))
    known = {x.name for x in model_files(folder)}
    assert opened <= known and MODEL in known and len(opened) >= 3


@pytest.mark.long
def check_what_leaves_the_folder_does_not_say_where_it_lay(folders, tmp_path):
    """Exports of every kind, their cards, bundles, unpacked: no path of this machine in any byte,
    and hashes in the place of paths."""
    copytree(folders(), tmp_path / "secret-place/llama")
    files = data_files(tmp_path / "secret-place")
    cfg = small_config(tmp_path / "secret-place/llama", quant="none", **files, rounds=1)
    cfg = short_config(tmp_path / "secret-place", cfg, rounds=1, n_keep=3, coh_drop=1.0)
    path = train(cfg)
    student = open_student(path, "1")
    export_adapter(student, tmp_path / "out/peft")
    export_merged(student, tmp_path / "out/merged")
    export_lora(student, tmp_path / "out/lora")
    export_vector(student, tmp_path / "out/gguf", True)
    export_vector(student, tmp_path / "out/vector", False)
    write_bundle(path, tmp_path / "out/bundle.tar.gz")
    with tarfile.open(tmp_path / "out/bundle.tar.gz") as tar:
        tar.extractall(tmp_path / "out/bundle", filter="data")
    found = [x for x in (tmp_path / "out").rglob("*") if x.is_file()]
    assert len(found) > 30
    for file in found:
        for word in (b"secret-place", str(tmp_path).encode(), str(Path.home()).encode() + b"/"):
            assert word not in file.read_bytes(), file
    cards = [x.read_text() for x in (tmp_path / "out").glob("*/README.md")]
    assert len(cards) == 5 and all("sha256" in x for x in cards)
    document = json.loads((tmp_path / "out/bundle/config.json").read_text())
    assert contents(document["inputs"]) == contents(json.loads(
        (path / "config.json").read_text())["inputs"])
    assert all(x.same is not False for x in compare_bundle(
        tmp_path / "out/bundle.tar.gz", model=cfg.model))
    zero_a_layer(Path(cfg.model))
    with pytest.raises(UserError, match="other inputs"):
        write_bundle(path, tmp_path / "out/again.tar.gz")
