"""A run of several ranks comes to what one rank comes to; whichever of them fails ends all, in one
line, and the run goes on from there with as many ranks as one likes. See checks/launched.py."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from steerloop.checks.launched import MIDDLE, MOST, STAGES, WAIT, Strike, surveyed
from steerloop.checks.small import short_config
from steerloop.config import parse
from steerloop.ranks import off_the_device, packed, unpacked
from steerloop.texts.data import PACKAGE

CLOSE = 1e-5  # of an adapter as a whole, relative; of measures relative to 1 + their size
ENTRY = 1e-4  # of one of its entries: AdamW divides by the size of its gradient, also of a tiny one
TIES = "worst.parquet"  # the order of tokens whose KL is the same but for rounding


def short(tmp_path, **fields):
    cfg = parse(["--tiny", "--device", "cpu", "--labelled", "", "--no_u0"])
    return short_config(tmp_path, cfg, **{"epochs": 2, "rounds": 1, "bootstrap": 20, "every": 1,
                                       "batch": 1} | fields)


def alike(one, other):
    """Rows and tokens are the same, numbers up to rounding."""
    files = sorted(x.relative_to(one) for x in one.rglob("*") if x.suffix in (
        ".parquet", ".safetensors"))
    assert files == sorted(x.relative_to(other) for x in other.rglob("*") if x.suffix in (
        ".parquet", ".safetensors"))
    for name in files:
        if name.suffix == ".safetensors":
            a, b = load_file(one / name), load_file(other / name)
            off, size = ([x[k].flatten() for k in sorted(a)] for x in (
                {k: a[k] - b[k] for k in a}, a))
            assert torch.cat(off).norm() <= CLOSE * torch.cat(size).norm(), name
            assert torch.cat(off).abs().max() <= ENTRY, name
        elif name.name != TIES:
            same(pl.read_parquet(one / name), pl.read_parquet(other / name), name)


def same(a, b, name):
    assert a.schema == b.schema and len(a) == len(b), name
    for column in a.columns:
        one, other = a[column], b[column]
        if one.dtype == pl.List(pl.Float64):
            assert one.list.len().equals(other.list.len()), (name, column)
            one, other = one.explode(), other.explode()
        if one.dtype.is_float():
            off = (one - other).abs() / (1 + one.abs())
            assert (off.max() or 0) <= CLOSE, (name, column)
        else:
            assert one.to_list() == other.to_list(), (name, column)


def well(launches):
    """The run of the last of some launches, which came to its end."""

    last = launches[-1]
    assert not any(last["said"]) and not any(last["status"]), last
    return Path(last["run"])


def ended_together(launch, strike):
    """All ended by themselves, in one line that says how to go on; but for those that hang."""
    struck = set(strike.ranks)
    assert set(launch["hung"]) == (struck if strike.how == "hang" else set()), launch
    assert launch["seconds"] < MOST + WAIT, launch
    lines = [(rank, x) for rank, x in enumerate(launch["said"]) if x not in ("", "1", "killed")]
    if len(struck) == len(launch["said"]) and strike.how == "kill":
        assert not lines and set(launch["status"]) == {-9}
        return
    assert len(lines) == 1, launch
    (rank, line), = lines
    assert line.startswith(f"rank {rank}: error: ") and "\n" not in line
    assert f"--resume runs/{Path(launch['run']).name} goes on" in line
    if rank not in struck:
        assert f"rank {', '.join(map(str, sorted(struck)))} did not come" in line, line


GATE = {
    "alone": [(1, None)],
    "two": [(2, None)],
    "killed": [(2, Strike("kill", MIDDLE)), (1, None)],
    "hangs": [(2, Strike("hang", "extract"))],
}


def tried(found, cases):
    """Every launch that was struck ended together; every run that was let come to its end came to
    that of one rank alone."""
    whole = well(found["alone"])
    for name, launches in cases.items():
        for launch, (_, strike) in zip(found[name], launches, strict=True):
            if strike:
                ended_together(launch, strike)
        if launches[-1][1] is None:
            alike(whole, well(found[name]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def check_rows_are_sent_without_what_they_are_views_of(dtype):
    """Rows of a batch, which is as much as all of them together."""
    rows = [*torch.randn(200, 3, 64).to(dtype).split([1] * 200)]
    sent = pickle.dumps(packed(rows))
    assert len(sent) < 1.1 * sum(x.nbytes for x in rows) + 64 * len(rows)
    back = unpacked(pickle.loads(sent), gpu=False)
    assert [x.shape for x in back] == [x.shape for x in rows]
    assert torch.equal(torch.cat(back), torch.cat(rows))
    told = pickle.dumps(off_the_device(rows[0]))
    assert len(told) < rows[0].nbytes + 2000
    for other in ([], [[1, 2], []], ["a", "b"]):
        assert unpacked(pickle.loads(pickle.dumps(packed(other))), gpu=False) == other


def check_two_ranks_are_one_and_end_together(tmp_path):
    tried(surveyed(short(tmp_path), tmp_path / "ranks", GATE), GATE)


@pytest.mark.long
def check_three_ranks_are_one_over_two_rounds(tmp_path):
    cases = {"alone": [(1, None)], "two": [(2, None)], "three": [(3, None)]}
    tried(surveyed(short(tmp_path, rounds=2), tmp_path / "ranks", cases), cases)


@pytest.mark.long
def check_wherever_ranks_are_killed_the_run_goes_on_with_any_number(tmp_path):
    """One of them, or all at once, in each stage."""
    cases = {"alone": [(1, None)]}
    for stage in (*STAGES, MIDDLE):
        cases[f"one, {stage}"] = [(2, Strike("kill", stage)), (3, None)]
        cases[f"first, {stage}"] = [(3, Strike("kill", stage, (0,))), (2, None)]
        cases[f"all, {stage}"] = [(2, Strike("kill", stage, (0, 1))), (1, None)]
    tried(surveyed(short(tmp_path), tmp_path / "ranks", cases), cases)


@pytest.mark.long
def check_whatever_befalls_one_rank_ends_all_in_one_line(tmp_path):
    cases = {f"{how}, {stage}": [(2, Strike(how, stage))]
             for how in ("exception", "exit", "memory", "hang") for stage in (*STAGES, MIDDLE)}
    found = surveyed(short(tmp_path), tmp_path / "ranks", cases)
    for name, launches in cases.items():
        ended_together(found[name][0], launches[0][1])


def launched(tmp_path, said, act, *flags):
    """A real launch of two ranks by torchrun; at the first line with `said` something is done to
    it, its watcher and the ranks. Its status, and its lines."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
               "2", *flags, "-m", "steerloop.train", "--tiny", "--no_u0", "--rounds", "1",
               "--every", "56", "--runs", str(tmp_path / "runs")]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "STEERLOOP_WAIT": "30"}
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          env=env, encoding="utf-8", errors="replace") as watcher:
        for line in watcher.stdout:
            if said in line and not any(said in x for x in lines):
                found = subprocess.run(["pgrep", "-P", str(watcher.pid)], capture_output=True,
                                       text=True, check=True).stdout.split()
                act(watcher, [int(x) for x in found])
            lines.append(line)
    return watcher.returncode, lines


@pytest.mark.long
def check_torchrun_starts_them_again_and_they_go_on(tmp_path):
    status, lines = launched(tmp_path, "dose solved", lambda _, ranks: os.kill(
        ranks[-1], signal.SIGKILL), "--max-restarts", "2")
    assert status == 0, lines
    assert sum("run folder" in x for x in lines) == 2 and len([*tmp_path.glob("runs/2*")]) == 1
    assert sum("vector extracted" in x for x in lines) == 1  # what was done is not done again


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def check_a_signal_reaches_every_rank(number, tmp_path):
    start = time.monotonic()
    status, lines = launched(tmp_path, "dose solved", lambda x, _: x.send_signal(number))
    assert status and time.monotonic() - start < 120
    said = [x for x in lines if x.startswith("rank ")]
    assert len(said) == 1 and "interrupted" in said[0] and "--resume" in said[0], lines


def check_job_files_are_shell():
    for file in sorted((PACKAGE.parent / "docs" / "scale").glob("*.sbatch")):
        subprocess.run(["bash", "-n", str(file)], check=True)
