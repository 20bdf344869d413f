"""A run of several ranks comes to what one rank comes to; whichever of them fails ends all, in one
line, and the run goes on from there with as many ranks as one likes. See checks/launched.py."""

from pathlib import Path

import polars as pl
from safetensors.torch import load_file

from steerloop.checks.launched import MIDDLE, MOST, WAIT, Strike, surveyed
from steerloop.checks.small import short_config
from steerloop.config import parse

CLOSE = 1e-5  # of weights, and of measures relative to 1 + their size
TIES = "worst.parquet"  # the order of tokens whose KL is the same but for rounding
HOW = ("exception", "exit", "memory", "hang", "kill")


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
            assert all((a[k] - b[k]).abs().max() <= CLOSE for k in a), name
        elif name.name != TIES:
            same(pl.read_parquet(one / name), pl.read_parquet(other / name), name)


def same(a, b, name):
    assert a.schema == b.schema and len(a) == len(b), name
    for column in a.columns:
        if a[column].dtype.is_float():
            off = (a[column] - b[column]).abs() / (1 + a[column].abs())
            assert (off.max() or 0) <= CLOSE, (name, column)
        else:
            assert a[column].to_list() == b[column].to_list(), (name, column)


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
    assert len(lines) == 1, launch
    (rank, line), = lines
    assert line.startswith(f"rank {rank}: error: ") and "\n" not in line
    assert f"--resume runs/{Path(launch['run']).name} goes on" in line
    if rank not in struck:
        assert f"rank {', '.join(map(str, sorted(struck)))} did not come" in line, line


CASES = {
    "alone": [(1, None)],
    "two": [(2, None)],
    "killed": [(2, Strike("kill", MIDDLE)), (1, None)],
    "hangs": [(2, Strike("hang", "sample")), (2, None)],
}


def check_two_ranks_are_one_and_end_together(tmp_path):
    found = surveyed(short(tmp_path), tmp_path / "ranks", CASES)
    whole = well(found["alone"])
    for name, launches in CASES.items():
        for launch, (_, strike) in zip(found[name], launches, strict=True):
            if strike:
                ended_together(launch, strike)
        alike(whole, well(found[name]))
