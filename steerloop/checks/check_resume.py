"""A run that was cut off goes on, and ends in the very bits of one that was not; what was damaged,
changed or is in use is refused in one line that says what to do."""

import dataclasses
import itertools
import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from datetime import datetime
from functools import wraps
from pathlib import Path
from random import Random
from shutil import copytree

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from steerloop import UserError
from steerloop.checks.cut import cut_off
from steerloop.checks.small import short_config, small_config
from steerloop.cli.entry import command
from steerloop.cli.parsing import parse
from steerloop.export.bundle import write_bundle
from steerloop.export.student import open_student
from steerloop.report import finish
from steerloop.report.__main__ import main as report
from steerloop.runfolder import identity, opening
from steerloop.runfolder.files import checksums
from steerloop.runfolder.folder import Folder
from steerloop.train import STAGES, Config, train


def flipped(data):
    """One bit in the middle is another."""
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


HOW = {"truncated": lambda x: x[: len(x) // 2], "flipped": flipped}


@pytest.fixture(scope="module")
def cfg(folders, tmp_path_factory):
    """Two short rounds of two epochs: a checkpoint in each."""
    small = small_config(folders(), quant="none")
    return short_config(tmp_path_factory.mktemp("data"), small, epochs=2, bootstrap=20)


@pytest.fixture(scope="module")
def whole(cfg, tmp_path_factory):
    """Folder of the run that nobody interrupted."""
    return train(dataclasses.replace(cfg, runs=str(tmp_path_factory.mktemp("whole"))))


def same(run, whole):
    """Every kept tensor and table bit for bit, events, summary; nothing of what was on the way.

    The library writes metadata of tensors in any order, so their files are compared by content.
    """
    kept = []
    for folder in (run, whole):
        summary = json.loads((folder / "summary.json").read_text())
        kept.append((summary | {"run": "", "crc": ""}, (folder / "events.jsonl").read_text(), [
            (name, "" if name.endswith(".safetensors") else digest)
            for name, digest in checksums(folder).items()]))
    for name in (name for name, digest in kept[0][2] if not digest):
        a, b = load_file(run / name), load_file(whole / name)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), name
    left = [x.name for x in run.rglob("*") if x.name == "work" or x.suffix == ".part"]
    return kept[0] == kept[1] and not left


def resumed(run, cfg, **changes):
    """Go on with it, in this process."""
    return train(dataclasses.replace(cfg, runs=str(run.parent), resume=str(run), **changes))


def writes(whole):
    """About how many files a run writes, sums included."""
    return 2 * len(checksums(whole))


@pytest.mark.long
@pytest.mark.parametrize("share", [0.2, 0.55, 0.9])
def check_a_killed_run_ends_in_the_same_bits(cfg, whole, tmp_path, share):
    run, status, _ = cut_off(cfg, tmp_path, int(share * writes(whole)))
    assert status == -signal.SIGKILL and not (run / "summary.json").exists()
    assert same(resumed(run, cfg), whole)


@pytest.fixture(scope="module")
def rich(cfg):
    """With a rival that is trained, and a barrier that fires."""
    return dataclasses.replace(cfg, tau_share=0.02, baselines=True)


@pytest.fixture(scope="module")
def rich_whole(rich, tmp_path_factory):
    return train(dataclasses.replace(rich, runs=str(tmp_path_factory.mktemp("rich"))))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(25))
def check_a_run_killed_anywhere_ends_in_the_same_bits(rich, rich_whole, tmp_path, seed):
    """Killed, killed again while it was resumed, and resumed."""
    rng = Random(seed)
    run, *_ = cut_off(rich, tmp_path, rng.randrange(1, writes(rich_whole)))
    again = dataclasses.replace(rich, resume=str(run))
    _, status, said = cut_off(again, tmp_path, seconds=rng.uniform(3, 25))
    assert status in (0, -signal.SIGKILL), said
    if status:
        resumed(run, rich)
    assert same(run, rich_whole)


def check_what_is_done_is_not_done_again(cfg, tmp_path, monkeypatch):
    """A run that ends after the first round's sampling samples the second round alone when it goes
    on, and a third one alone when it is given more rounds; nothing before it is made anew."""
    calls, stop = Counter(), ["choose"]

    def counted(stage):
        @wraps(stage)
        def run(*args, **kwargs):
            if stage.__name__ in stop:
                raise RuntimeError("stopped here")
            calls[stage.__name__] += 1
            return stage(*args, **kwargs)

        return run

    monkeypatch.setattr("steerloop.train.STAGES", tuple(map(counted, STAGES)))
    with pytest.raises(RuntimeError, match="stopped here"):
        train(dataclasses.replace(cfg, runs=str(tmp_path / "runs")))
    assert calls["sample"] == calls["filter"] > 0 and calls["heal"] == 0
    (first,) = (tmp_path / "runs").iterdir()
    copytree(first, run := tmp_path / "again")  # the process that was stopped has the first one
    calls.clear()
    stop.clear()
    resumed(run, cfg)
    batches = pl.read_parquet(run / "rounds/01/completions.parquet")["copy"].n_unique()
    assert calls.pop("short") > batches
    assert calls == {"extract": 1, "dose": 1, "sample": batches, "filter": batches, "choose": 2,
                     "heal": 2, "drift": 2}
    calls.clear()
    resumed(run, cfg, rounds=3)
    batches = pl.read_parquet(run / "rounds/02/completions.parquet")["copy"].n_unique()
    assert calls.pop("short") > batches
    assert calls == {"extract": 1, "dose": 1, "sample": batches, "filter": batches, "choose": 1,
                     "heal": 1, "drift": 1}


@pytest.mark.parametrize("how", [signal.SIGINT,
                                 pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def check_an_interrupted_run_says_how_to_go_on(cfg, whole, tmp_path, how):
    run, status, said = cut_off(cfg, tmp_path, writes(whole) // 2, how)
    assert status == 3 and said.startswith("interrupted") and f"--resume {run}" in said
    with (run / "events.jsonl").open("a") as file:  # and what was being written is cut off
        file.write('{"stage": "heal", "rou')
    assert same(resumed(run, cfg), whole)


@pytest.mark.long
@pytest.mark.parametrize("how", ["flipped", "truncated"])
def check_damage_is_named_and_mended(cfg, whole, tmp_path, how):
    run, *_ = cut_off(cfg, tmp_path, writes(whole) - 9)
    for name in ("rounds/00/adapter.safetensors", "rounds/01/vector.safetensors", "events.jsonl",
                 "rounds/00/base.eval.parquet", "rounds/00/completions.parquet"):
        (run / name).write_bytes(HOW[how]((run / name).read_bytes()))
        if name == "events.jsonl" and how == "truncated":
            continue  # the end of a file that is appended to may be missing: it is written again
        with pytest.raises(UserError, match=f"{name}.*delete"):
            resumed(run, cfg)
        (run / name).unlink()
    assert same(resumed(run, cfg), whole)
    last = run / "rounds/01/adapter.safetensors"  # of a finished run: whoever reads it says so
    last.write_bytes(HOW[how](last.read_bytes()))
    with pytest.raises(UserError, match=r"adapter.*damaged"):
        open_student(run, "2")
    with pytest.raises(SystemExit, match=r"adapter.*damaged"):
        report([str(run)])
    with pytest.raises(UserError, match=r"adapter.*damaged"):
        write_bundle(run, tmp_path / "b.tar.gz")
    last.unlink()
    assert same(resumed(run, cfg), whole)


def check_a_finished_run_whose_records_were_cut_says_so(cfg, whole, tmp_path):
    """Between two lines: every line that is left is whole."""
    run = tmp_path / "run"
    copytree(whole, run)
    lines = (run / "events.jsonl").read_text().splitlines(keepends=True)
    (run / "events.jsonl").write_text("".join(lines[:-3]))
    with pytest.raises(SystemExit, match=r"events.*3 records are gone: delete it"):
        report([str(run)])
    (run / "events.jsonl").unlink()
    (run / "summary.json").write_bytes((run / "summary.json").read_bytes()[:99])
    with pytest.raises(UserError, match=r"summary.json is damaged: delete it"):
        resumed(run, cfg)
    (run / "summary.json").unlink()
    assert same(resumed(run, cfg), whole)


@pytest.mark.long
def check_another_run_is_refused_with_what_changed(cfg, whole, tmp_path):
    run, *_ = cut_off(cfg, tmp_path, writes(whole) // 3)
    with pytest.raises(UserError, match=r"config\.lr: 0\.01 → 0\.02.*--force"):
        resumed(run, cfg, lr=0.02)
    with pytest.raises(UserError, match=r"rounds: 2 → 1"):
        resumed(run, cfg, rounds=1)
    Path(cfg.prompts).write_text((before := Path(cfg.prompts).read_text()) + "And now?\n")
    with pytest.raises(UserError, match=r"prompts: \w{12} → \w{12}"):
        resumed(run, cfg)
    Path(cfg.prompts).write_text(before)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(identity, "source", lambda: "another")
        with pytest.raises(UserError, match=r"source: \w+ → another"):
            resumed(run, cfg)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(identity, "code_version", lambda: "another commit, the same code")
        assert identity.accepted(run, {"config": identity.resolved(cfg, "cpu"),
                                       **identity.identity(cfg, "cpu")}, False)
    resumed(run, cfg, lr=0.02, force=True)
    found = json.loads((run / "config.json").read_text())
    assert found["resumed"] == [{"config.lr": "0.01 → 0.02"}] and found["config"]["lr"] == 0.02
    assert found["config"]["resume"] == "" and found["config"]["force"] is False


@pytest.mark.parametrize("changes", [
    {"batch_rows": 5}, *(pytest.param(x, marks=pytest.mark.long) for x in (
        {"multiples": [0.5]}, {"walk_rows": 2}, {"n_keep": 6},
        {"survival": 0.1, "kappa_min": 0.9}))])
def check_forced_changes_leave_what_is_done_as_it_is(whole, cfg, tmp_path, changes):
    """Rounds that are over keep their rows, whatever is sampled otherwise from now on."""
    copytree(whole, run := tmp_path / "run")
    resumed(run, cfg, rounds=3, force=True, **changes)
    for name in ("completions.parquet", "healed.eval.parquet"):
        for at in ("rounds/00", "rounds/01"):
            assert (run / at / name).read_bytes() == (whole / at / name).read_bytes()
    rows = pl.read_parquet(run / "rounds/02/completions.parquet")
    assert rows["train"].sum() == changes.get("n_keep", cfg.n_keep)
    assert len(json.loads((run / "summary.json").read_text())["healed"]) == 3


@pytest.mark.long
def check_a_finished_run_says_so_and_takes_more_rounds(cfg, tmp_path):
    run = train(dataclasses.replace(cfg, runs=str(tmp_path), rounds=1))
    first = (run / "rounds/00/adapter.safetensors").read_bytes()
    with pytest.raises(UserError, match="is finished; --rounds"):
        resumed(run, cfg, rounds=1)
    resumed(run, cfg)
    summary = json.loads((run / "summary.json").read_text())
    assert len(summary["healed"]) == 2 and summary["matched"]["round"] == 1
    assert (run / "rounds/00/adapter.safetensors").read_bytes() == first
    assert json.loads((run / "config.json").read_text())["resumed"] == [{"config.rounds": 2}]


def check_asking_for_the_commit_writes_nothing(tmp_path, monkeypatch):
    """A run that is killed while it asks would leave the user's repository locked."""
    def git(*argv):
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x",
                        *argv], check=True, capture_output=True)

    monkeypatch.setattr(identity, "PACKAGE", tmp_path)
    assert identity.code_version() == ""
    (tmp_path / "file").write_text("one")
    git("init")
    git("add", "file")
    git("commit", "-m", "first")
    os.utime(tmp_path / "file", (1, 1))  # git would like to note that it looked
    before = (tmp_path / ".git/index").read_bytes()
    assert re.fullmatch(r"[0-9a-f]{7,}", identity.code_version())
    assert (tmp_path / ".git/index").read_bytes() == before
    (tmp_path / "file").write_text("two")
    assert re.fullmatch(r"[0-9a-f]{7,}\+", identity.code_version())


def check_one_process_at_a_time(tmp_path):
    first = Folder(tmp_path / "run")
    with pytest.raises(UserError, match="in use by another process"):
        Folder(first.path, again=True)
    first.lock.close()
    Folder(first.path, again=True)


@pytest.mark.long
def check_a_clock_that_goes_back_changes_nothing(cfg, whole, tmp_path, monkeypatch):
    class Before(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(1999, 1, 1, tzinfo=tz)

    (tmp_path / "first").mkdir()
    run, *_ = cut_off(cfg, tmp_path / "first", writes(whole) // 2)
    monkeypatch.setattr(opening, "datetime", Before)
    seconds = itertools.count(10**9, -7)
    monkeypatch.setattr(time, "time", lambda: float(next(seconds)))
    assert same(resumed(run, cfg), whole)
    again = train(dataclasses.replace(cfg, runs=str(tmp_path / "second")))
    assert again.name.startswith("19990101") and same(again, whole)


def check_the_command_line_takes_the_config_of_the_folder(cfg, whole):
    found = parse(Config, ["--resume", str(whole), "--rounds", "5"], "")
    kept = json.loads((whole / "config.json").read_text())["config"]
    assert dataclasses.asdict(found) == kept | {"resume": str(whole), "rounds": 5}
    with pytest.raises(UserError, match="no run folder"):
        parse(Config, ["--resume", "nowhere"], "")


def check_what_is_kept_comes_back_as_it_was(tmp_path):
    values = {"frame": pl.DataFrame({"a": [[1, 2], []], "b": [0.1, None]}), "number": 0.1 + 0.2,
              "vector": {3: torch.randn(4), 11: torch.randn(4)}, "stats": {"x": 1e-9, "y": None},
              "tensors": {"layer.A": torch.randn(2, 3).bfloat16()}}
    folder, calls = Folder(tmp_path / "run"), []

    def make(name):
        calls.append(name)
        return values[name]

    for _ in range(2):
        for name, value in values.items():
            found = folder.once(name, make, name)
            if isinstance(value, dict) and name in ("vector", "tensors"):
                assert found.keys() == value.keys()
                assert all(torch.equal(found[k], value[k]) for k in value)
            else:
                assert found.equals(value) if name == "frame" else found == value
        folder.lock.close()
        folder = Folder(tmp_path / "run", again=True)
    assert calls == list(values)  # the second time nothing was made
    ran = subprocess.run(["sha256sum", "-c", "checksums.txt"], cwd=folder.path,
                         capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.count("OK") == len(values)


@pytest.mark.long
@pytest.mark.parametrize("size", ["700k", "1500k", "2200k"])
def check_a_full_disk_is_one_line_and_the_run_goes_on_elsewhere(cfg, whole, tmp_path, size):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here: root is needed")
    try:
        with pytest.raises((UserError, OSError), match=r"No space left|cannot write"):
            train(dataclasses.replace(cfg, runs=str(disk), n_keep=24, max_new_tokens=40))
    finally:
        run = next(x for x in disk.iterdir() if x.is_dir())
        subprocess.run(["cp", "-r", str(run), str(tmp_path / "run")], check=True)
        subprocess.run(["umount", "-l", str(disk)], check=True)
    assert not list((tmp_path / "run").rglob("*.part"))
    resumed(tmp_path / "run", cfg, n_keep=24, max_new_tokens=40)
    assert (tmp_path / "run/summary.json").exists()


def check_a_folder_that_cannot_be_written_is_one_line(cfg, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"error: cannot write below .*file.*--runs"):
        command(lambda _: dataclasses.replace(cfg, runs=str(tmp_path / "file")), train, [])


@pytest.mark.long
def check_a_folder_that_became_read_only_says_so(cfg, whole, tmp_path):
    """A new run, one to resume, its report and its export: one line each, and it is as it was."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=50m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a disk cannot be mounted here: root is needed")
    try:
        copytree(whole, run := disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for work in (lambda: train(dataclasses.replace(cfg, runs=str(disk))),
                     lambda: resumed(run, cfg, rounds=3), lambda: finish(run),
                     lambda: write_bundle(run, run / "b.tar.gz")):
            with pytest.raises(UserError, match=r"cannot write.*writable"):
                work()
        assert same(run, whole)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
