"""Models that are not there, not whole or not fit, full disks and Ctrl-C: one clear line, a
non-zero exit status, and whatever was on the disk stays whole."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from safetensors.torch import load_file, save_file

from steerloop import train
from steerloop.checks.families import save_family
from steerloop.checks.small import data_files, save_small, small_config
from steerloop.loading import hub
from steerloop.loading.hub import ALIASES, SHORT, locate
from steerloop.model import load

MODEL = "model.safetensors"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Folders of sound models: one file, several shards, a gemma, another architecture."""
    root = tmp_path_factory.mktemp("good")
    return {
        "llama3": save_family(root / "llama3", "llama3"),
        "shards": save_family(root / "shards", "qwen3", max_shard_size="40KB"),
        "gemma3": save_small(root / "gemma3"),
        "olmo2": save_family(root / "olmo2", "olmo2"),
    }


def cut(file, size):
    file.write_bytes(file.read_bytes()[:size])


def configure(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def without(folder, pattern):
    for file in folder.glob(pattern):
        file.unlink()


def weights(folder, change):
    found = load_file(folder / MODEL)
    change(found)
    save_file(found, folder / MODEL, {"format": "pt"})


BROKEN = {  # sound folder, what is done to it, what the line says
    "no weights": ("llama3", lambda f: without(f, "*.safetensors"), "no weights .model.safetens"),
    "pickled weights": ("llama3", lambda f: (f / MODEL).rename(f / "pytorch_model.bin"), "no weig"),
    "no config": ("llama3", lambda f: without(f, "config.json"), "no config.json"),
    "no tokenizer": ("llama3", lambda f: without(f, "tokenizer*"), "no tokenizer"),
    "no template": ("llama3", lambda f: without(f, "chat_template*"), "no chat template"),
    "cut file": ("llama3", lambda f: cut(f / MODEL, 20_000), "file not fully covered"),
    "cut header": ("llama3", lambda f: cut(f / MODEL, 100), "header"),
    "cut shard": ("shards", lambda f: cut(sorted(f.glob("*.safetensors"))[1], 999), "header|cover"),
    "lost shard": ("shards", lambda f: sorted(f.glob("*.safetensors"))[1].unlink(), "00002-of"),
    "no head": ("llama3", lambda f: weights(f, lambda w: w.pop("lm_head.weight")), "lm_head"),
    "not a number": (
        "llama3",
        lambda f: weights(f, lambda w: w["model.norm.weight"].fill_(float("nan"))),
        "not finite",
    ),
    "other shape": ("llama3", lambda f: configure(f, intermediate_size=64), "mlp.down_proj.weight"),
    "unknown architecture": ("llama3", lambda f: configure(f, model_type="none"), "architecture"),
    "no language model": ("llama3", lambda f: configure(f, model_type="t5"), "no causal language"),
    "foreign code": (
        "llama3",
        lambda f: configure(f, model_type="x", auto_map={"AutoConfig": "x.C"}),
        "custom code",
    ),
    "quantised already": (
        "llama3",
        lambda f: configure(f, quantization_config={"quant_method": "gptq", "bits": 4}),
        "quantised already",
    ),
    "a negative depth": ("gemma3", lambda f: configure(f, num_hidden_layers=-1), "num_hidden"),
    "no heads": ("gemma3", lambda f: configure(f, num_attention_heads=0), "cannot load"),
    "a width in words": ("gemma3", lambda f: configure(f, hidden_size="wide"), "hidden_size"),
    "gemma stored in fp16": ("gemma3", lambda f: configure(f, dtype="float16"), "float16"),
}


def accepted(cfg, device):
    raise AssertionError(f"{cfg.model} was accepted")


def refused(*argv):
    """The one line with which `train.main` ends on these options, before any run folder."""
    with pytest.raises(SystemExit) as stopped, pytest.MonkeyPatch.context() as patch:
        patch.setattr("steerloop.evidence.journal.open_run", accepted)
        train.main(["--device", "cpu", *map(str, argv)])
    assert isinstance(stopped.value.code, str) and stopped.value.code.startswith("error: ")
    assert "\n" not in stopped.value.code and "AssertionError" not in stopped.value.code
    return stopped.value.code


@pytest.mark.parametrize("quant", ["none", "nf4"])
@pytest.mark.parametrize("name", BROKEN)
def check_a_broken_model_is_one_clear_line(good, tmp_path, name, quant):
    source, spoil, says = BROKEN[name]
    folder = shutil.copytree(good[source], tmp_path / "model")
    spoil(folder)
    if name == "foreign code":
        (folder / "x.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    line = refused("--model", folder, "--quant", quant, "--runs", tmp_path / "runs")
    assert re.search(says, line), line
    assert str(folder) in line or name == "no template"
    assert not (tmp_path / "runs").exists() and not (tmp_path / "ran").exists()


def check_another_architectures_weights_are_refused(good, tmp_path):
    folder = shutil.copytree(good["llama3"], tmp_path / "model")
    shutil.copy(good["olmo2"] / MODEL, folder / MODEL)
    line = refused("--model", folder, "--quant", "none")
    assert "are not in its files" in line and "another architecture" in line


def check_dropout_is_said_before_a_run_that_would_switch_it_on(good, tmp_path):
    folder = shutil.copytree(good["llama3"], tmp_path / "model")
    configure(folder, attention_dropout=0.1)
    line = refused("--model", folder, "--quant", "none", "--checkpointing", "--steer_blocks", "1",
                   "--lora_blocks", "1")
    assert "--checkpointing" in line and "attention_dropout" in line


def check_nothing_is_run_in_fp16(good, capsys):
    """Gemma overflows there, and the gradient of long completions underflows for everyone."""
    with pytest.raises(SystemExit) as stopped:
        train.main(["--model", str(good["gemma3"]), "--dtype", "float16"])
    said = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and "bfloat16" in said and "\n" not in said


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def check_a_device_that_is_not_there(device):
    with pytest.raises(SystemExit, match=f"--device {device}"):
        train.main(["--device", device])


def check_what_is_not_on_this_machine_says_where_to_get_it():
    line = refused("--model", "gemma-3-1b-it")
    assert "hf download google/gemma-3-1b-it" in line and "huggingface.co/google/gemma" in line
    assert "cache" in line
    assert "no such directory" in refused("--model", "./nothing/here")


def check_short_names_are_hub_ids():
    assert SHORT["gemma-3-1b-it"] == "google/gemma-3-1b-it"
    assert SHORT["qwen3-4b"] == "Qwen/Qwen3-4B"
    assert SHORT["llama-3.2-1b-instruct"] == "meta-llama/Llama-3.2-1B-Instruct"
    assert SHORT["smollm2-135m"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    last = {name: hub.rpartition("/")[2].lower() for name, hub in SHORT.items()}
    assert all(last[name] == ALIASES.get(name, name) for name in SHORT)


def check_where_a_model_is_looked_for(good, tmp_path, monkeypatch):
    """A directory of that name, else the cache by hub id or short name; offline, as the gate is."""
    commit, cache = "0" * 40, tmp_path / "cache"
    kept = cache / "models--google--gemma-3-1b-it"
    shutil.copytree(good["gemma3"], kept / "snapshots" / commit)
    (kept / "refs").mkdir()
    (kept / "refs/main").write_text(commit)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    for name in ("gemma-3-1b-it", "Gemma-3-1B-it", "google/gemma-3-1b-it"):
        assert locate(name) == kept / "snapshots" / commit
        assert load(small_config(Path(name), quant="nf4")).layers
    shutil.copytree(good["llama3"], tmp_path / "gemma-3-1b-it")
    assert locate("gemma-3-1b-it").resolve() == tmp_path / "gemma-3-1b-it"


def start(good, tmp_path, **limits):
    """A run of the small gemma in a process of its own, that would take minutes."""
    options = {**data_files(tmp_path), "model": good["gemma3"], "runs": tmp_path / "runs",
               "rounds": 50, "n_keep": 8, "walk_rows": 4, "max_new_tokens": 12, "min_tokens": 1,
               "dose_tokens": 8, "dose_prompts": 2, "think_tokens": 0, "epochs": 1, "threads": 1,
               "bootstrap": 50, "dtype": "float32", "target_kl": 0.5, "coh_drop": 1.0}
    argv = [x for k, v in options.items() for x in (f"--{k}", str(v))]
    return subprocess.Popen(
        [sys.executable, "-m", "steerloop.train", "--no_filter", *argv, "--quant", "none",
         "--device", "cpu", "--steer_blocks", "2", "3"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"STEERLOOP_TYPECHECK": "0", "HF_HUB_OFFLINE": "1"}, **limits)


def last_line(process):
    """What the run said last; it has to have failed, and without a traceback."""
    _, err = process.communicate(timeout=120)
    assert process.returncode not in (0, None) and "Traceback" not in err, err
    return err.strip().splitlines()[-1]


def whole_files(runs):
    """Every file below a run folder, each read back."""
    (folder,) = (x for x in runs.iterdir() if x.is_dir())
    found = [x for x in folder.rglob("*") if x.is_file()]
    readers = {".parquet": pl.read_parquet, ".safetensors": load_file,
               ".json": lambda x: json.loads(x.read_text()),
               ".jsonl": lambda x: [json.loads(line) for line in x.read_text().splitlines()]}
    assert not [x for x in found if x.suffix == ".part"]
    for file in found:
        readers.get(file.suffix, lambda x: x.read_text())(file)
    return [str(x.relative_to(folder)) for x in found]


def check_a_hangup_is_one_line_and_loses_nothing(good, tmp_path):
    process, deadline = start(good, tmp_path), time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/rounds/00/healed.eval.parquet")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGHUP)
    (run,) = (x for x in (tmp_path / "runs").iterdir() if x.is_dir())
    assert last_line(process) == f"interrupted; --resume {run} goes on"
    assert process.returncode == 130
    assert "rounds/00/adapter.safetensors" in whole_files(tmp_path / "runs")


@pytest.mark.long
def check_a_full_disk_is_one_line_and_loses_nothing(good, tmp_path):
    """No file may grow past 16 kB: the adapter of the first round is the first that does."""
    limit = (16_000, 16_000)
    process = start(good, tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE,
                                                                          limit))
    line = last_line(process)
    assert line.startswith("error: cannot write") and "adapter.safetensors" in line
    found = whole_files(tmp_path / "runs")
    assert "rounds/00/completions.parquet" in found and "rounds/00/adapter.safetensors" not in found
