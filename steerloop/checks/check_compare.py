"""Runs side by side: paired where they can be, said where they cannot, by their slow twins."""

import math
import statistics

import numpy as np
import polars as pl
import pytest

from steerloop.checks.synthetic import P, answers, compare, tilted, write_run
from steerloop.report import finish, ledger_table
from steerloop.report.compare import apart, compare_runs, gained, tables

CFG = {"seed": 0, "bootstrap": 60, "ppl_factor": 3.0}
AXIS = ["authority", "care"]


def noisy(nats, seed):
    """Probabilities tilted, each by its own noise."""
    def change(table):
        noise = np.exp(np.random.default_rng(seed).normal(0, 0.3, (len(table), 7)))
        table = tilted(nats)(table)
        p = table.select(P).to_numpy() * noise
        p = p / p.sum(1, keepdims=True)
        return table.with_columns(**{k: pl.Series(p[:, i]) for i, k in enumerate(P)})
    return change


@pytest.fixture
def pair(tmp_path):
    """Two runs on the same base; the second moved authority half a nat further."""
    write_run(tmp_path / "a", [noisy({"authority": -0.5}, 1)], [tilted({})])
    write_run(tmp_path / "b", [noisy({"authority": -1.2}, 2)], [tilted({})], lam=0.9)
    return tmp_path / "a", tmp_path / "b"


def check_runs_on_one_base_differ_as_their_students_do(pair):
    """With the same base, what it contributes cancels: the paired comparison of the students."""
    a, b = map(tables, pair)
    direct = compare(b["now eval"], a["now eval"], AXIS, 0, 60)["shift"]
    for f in AXIS:
        assert apart(b, a, f, 0, 60) == pytest.approx(direct[f]["nats"], abs=1e-9)
        back = apart(a, b, f, 0, 60)
        assert back[0] == pytest.approx(-direct[f]["nats"][0], abs=1e-9)
    assert apart(b, a, "authority", 0, 60)[2] < 0
    assert apart(a, a, "care", 0, 60) == [0, 0, 0]


def check_other_bases_and_other_vignettes_are_said(tmp_path, pair):
    """On another base each run is against its own; on other vignettes nothing is paired."""
    a, _ = pair
    for name, base, note in (
            ("c", tilted({"loyalty": 0.4})(answers()), "bases differ"),
            ("d", answers(per_label=15, seed=3).with_columns("other " + pl.col("vignette")),
             "vignettes differ")):
        write_run(tmp_path / name, [noisy({"authority": -1.0}, 2)], [tilted({})], base=base)
        ours, theirs = tables(tmp_path / name), tables(a)
        found = apart(ours, theirs, "authority", 0, 200)
        own = [math.log(t["now eval"]["p_authority"].mean() / t["base eval"]["p_authority"].mean())
               for t in (ours, theirs)]
        assert found[0] == pytest.approx(own[0] - own[1]) and found[1] < found[0] < found[2]
        text = compare_runs([a, tmp_path / name])
        assert f"note: {note}" in text and ("coherence, better by" in text) is (name == "c")
    assert "note:" not in compare_runs([*pair])


def check_verdicts_are_words(tmp_path, pair):
    a, b = pair
    text = compare_runs([a, b])
    further = apart(tables(b), tables(a), "authority", 0, 60)[0]
    assert f"B against A is ahead: moves the trait further by {-further:.2f} nats" in text
    assert "A against" not in text and "| lam " in text.splitlines()[0]
    assert "B against A is behind" in compare_runs([b, a])
    assert "B against A: no difference beyond noise" in compare_runs([a, a])
    broken = noisy({"authority": -1.0}, 2)
    write_run(tmp_path / "c", [lambda t: broken(t).with_columns(json_is_valid=0.5)], [tilted({})])
    said = compare_runs([a, tmp_path / "c"])
    assert "a trade" in said and "worse in coherence" in said
    worse = gained(tables(tmp_path / "c"), tables(a), CFG)["coherence"]
    assert worse[0] == pytest.approx(-0.5) and worse[2] < -0.3


def check_the_ledger_is_grouped_by_arm(tmp_path):
    """Two arms, one of three seeds: settings in the heading, the mean with its t-interval."""
    shifts = (-0.8, -1.0, -1.1)
    for seed, shift in enumerate(shifts):
        write_run(tmp_path / f"a{seed}", [tilted({"authority": shift})], [tilted({})], seed=seed)
    write_run(tmp_path / "b", [tilted({"authority": -0.3})], [tilted({})], lam=0.9)
    for path in sorted(tmp_path.glob("*")):
        finish(path)
    head, *parts = ledger_table(tmp_path).split("\n\n")
    assert "4 finished" in head and "2 arms" in head and "barrier kl_rev" in head
    assert "lam" not in head.replace("lam_pow", "") and "seed" not in head
    found = dict(zip(parts[::2], parts[1::2], strict=True))
    assert set(found) == {"## lam 0.3", "## lam 0.9"}
    rows = [[x.strip() for x in line.strip("|").split("|")]
            for line in found["## lam 0.3"].splitlines()]
    assert [r[0] for r in rows[2:]] == ["0", "1", "2", "mean"] and len(rows[0]) == len(rows[2])
    values = pl.read_parquet(tmp_path / "ledger.parquet").sort("seed").filter(lam=0.3)["down"]
    half = 4.303 * statistics.stdev(values) / 3**0.5
    middle = statistics.fmean(values)
    assert rows[-1][3] == f"{middle:+.2f} [{middle - half:+.2f}, {middle + half:+.2f}]"
    assert "mean" not in found["## lam 0.9"]
