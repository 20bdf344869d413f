"""Arms with several loop seeds: pooled by seed and item, with intervals that cover."""

import json
import shutil
from argparse import Namespace

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

from steerloop import UserError
from steerloop.checks.small import plain_trait
from steerloop.report.__main__ import show
from steerloop.report.arms import across_seeds, pooled, repeated
from steerloop.report.compare import Compared
from steerloop.report.published import figures
from steerloop.report.published import main as published
from steerloop.report.run import beaten, headline_of, states
from steerloop.report.stats import t95
from steerloop.runfolder.events import event_line, read_events
from steerloop.train import train


@pytest.mark.parametrize("seeds, items", [(0.0, 1.0), (1.0, 0.0), (0.5, 0.5), (0.0, 0.0)])
def check_pooled_intervals_cover(seeds, items):
    """Five seeds, 24 items: a mean of 0 is within 95 % and more of them, whatever varies."""
    rng, hits, widths = np.random.default_rng(0), 0, []
    for _ in range(400):
        steps = (seeds * rng.normal(size=(5, 1)) + items * rng.normal(size=(1, 24))
                 + rng.normal(size=(5, 24)))
        mean, low, high = pooled(steps)
        assert mean == pytest.approx(steps.mean())
        hits += low <= 0 <= high
        widths.append(high - low)
    assert hits >= 0.94 * 400
    assert np.mean(widths) < 2.4 * 2 * 2.0 * np.sqrt(seeds**2 / 5 + items**2 / 24 + 1 / 120)


def check_quantiles_of_t():
    assert t95(4.0) == 2.776 and t95(0.0) == np.inf and t95(1 - 1e-12) == t95(1.0) == 12.706
    grid = np.linspace(-4000, 4000, 8_000_001)
    for freedom in (1.3, 1.5, 2.4, 6.7):  # no less than the true one, by its density
        p = (1 + grid**2 / freedom) ** (-(freedom + 1) / 2)
        inside = p[np.abs(grid) <= t95(freedom)].sum() / p.sum()
        assert 0.95 <= inside < 0.965
    assert t95(12.0) == pytest.approx(2.1788, abs=2e-3)
    assert t95(1e9) == pytest.approx(1.96, abs=1e-3)
    assert pooled(np.ones((1, 1)))[1:] == [-np.inf, np.inf]
    assert pooled(np.array([[1.0, 3.0]]))[1:] == pytest.approx([2 - 12.706, 2 + 12.706])


@pytest.fixture(scope="module")
def run(folders, tmp_path_factory):
    """A short run of a trait without vignettes."""
    return train(plain_trait(tmp_path_factory.mktemp("arms"), folders()))


def like(run, folder, seed, teacher, by):
    """A copy of it, as if of that seed and teacher, whose student says `by` more of the trait."""
    shutil.copytree(run, folder)
    document = json.loads((folder / "config.json").read_text())
    document.pop("crc")
    document["config"] |= {"seed": seed, "teacher": teacher}
    (folder / "config.json").write_text(json.dumps(document))
    records = read_events(folder)
    for record in records:
        if record["stage"] == "config":
            record["document"]["config"] |= {"seed": seed, "teacher": teacher}
    (folder / "events.jsonl").write_text("".join(map(event_line, records)))
    path = folder / "rounds/00/healed.said.parquet"
    pl.read_parquet(path).with_columns(pl.col("said_1") + by, pl.col("said_2") + by).write_parquet(
        path)
    return folder


def check_the_first_arm_is_held_against_the_others(run, tmp_path, capsys, monkeypatch):
    runs = [like(run, tmp_path / f"{teacher}{seed}", seed, teacher, by)
            for seed in (0, 1, 2) for teacher, by in (("vector", 0.5 + 0.1 * seed), ("base", 0.1))]
    assert repeated(runs) and not repeated(runs[:2])
    own, less = across_seeds(runs).split("\n\n")
    cells = [[x.strip() for x in line.strip("|").split("|")] for line in less.splitlines()]
    assert cells[0][:3] == ["teacher vector, less", "seeds", "Δsaid"]
    assert cells[2][:2] == ["teacher base", "0 1 2"]
    assert cells[2][2].startswith("+0.500 [+0.")  # the mean of .4, .5, .6
    assert [x.split()[0] for x in cells[2][3:]] == ["+0.000", "+0.000"]
    assert "| teacher vector | 0 1 2 |" in own and "KL to base" in own
    monkeypatch.setattr("steerloop.report.__main__.compared", lambda _: Compared([], [], "nats"))
    monkeypatch.setattr(Compared, "text", "B against A")
    for name in ("rebuild", "healed", "write_comparison"):
        monkeypatch.setattr(f"steerloop.report.__main__.{name}", lambda *_: "page")
    for some, said in ((runs, less), (runs[:2], "B against A")):  # one seed: run against run
        show(Namespace(runs=some, single_file=False, scores=[]))
        assert said in capsys.readouterr().out
    with pytest.raises(UserError, match="same arm and loop seed"):
        across_seeds([*runs, like(run, tmp_path / "again", 0, "base", 0.0)])


def check_shifts_per_token_are_matched_on_their_own_scale(run, monkeypatch):
    """.03 nats are no shift of digits, and half of one of what is said."""
    def found(by):
        measured = states(run)
        for event in measured:
            if event["state"] in ("healed", "matched"):
                shift = 0.06 + by * (event["state"] == "matched")
                event |= {"headline": [shift, 0, 0], "dose": 0.0}
        return beaten(run, measured)[0]["beaten"]

    assert headline_of(run) == "said" and found(0.03) == "no match" != found(0.005)
    monkeypatch.setattr("steerloop.report.rivals.DIGITS", "said")
    assert found(0.03) != "no match"


def check_a_first_run_is_shown_beside_what_was_published(run, tmp_path, capsys):
    """Each figure is the run's own; what it did not measure is called that."""
    rows = {name: here for name, here, _ in figures(run)}
    (sample,) = (e for e in read_events(run) if e["stage"] == "sample")
    blocks = load_file(run / "rounds/00/vector.safetensors").values()
    mean = np.mean([np.linalg.norm(x) for x in blocks])
    (length,) = (float(x) for name, x in rows.items() if name.startswith("length of the vector"))
    assert length == pytest.approx(mean * sample["c_star"], abs=0.06)
    base = next(e for e in read_events(run) if e.get("state") == "base")["measures"]
    assert float(rows["probability of authority, base"]) == pytest.approx(
        np.exp(base["authority_nats"]), abs=6e-4)
    assert rows["shift of plain distillation"] == "not measured"
    healed = json.loads((run / "summary.json").read_text())["healed"][-1]
    assert rows["coherence: student"] == f"{healed['measures']['coherence']:.3f}"
    (shift,) = (x for name, x in rows.items() if name.startswith("student's shift (said"))
    assert shift.startswith(f"{healed['headline'][0]:+.3f} [")
    published([str(run)])
    assert ".722 (1B), by its own measure" in capsys.readouterr().out
    shutil.copytree(run, other := tmp_path / "cut")
    kept = [x for x in (other / "events.jsonl").read_text().splitlines() if '"healed"' not in x]
    (other / "events.jsonl").write_text("\n".join([*kept, ""]))
    with pytest.raises(UserError, match="no healed first round"):
        figures(other)
