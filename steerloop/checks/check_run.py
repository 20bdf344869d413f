"""End to end: `train.main` on the embedded model, offline, types checked; the folder it leaves is
complete, can be read without this package, and is the run. The same seed gives the same bits."""

import json
import math
import os
import socket

import polars as pl
import pytest
import torch
from jaxtyping import TypeCheckError
from safetensors.torch import load_file

from steerloop import lora, report, train
from steerloop.checks.many import nf4_is_long
from steerloop.checks.small import short_run, small_config, token_batch
from steerloop.config import Config
from steerloop.model import load
from steerloop.readouts.forced_choice import choices
from steerloop.texts.data import read_data
from steerloop.texts.foundations import FOUNDATIONS


def no_network(*_):
    raise AssertionError("a run on the embedded model must not open a connection")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a finished `--tiny` run, two rounds of all stages."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", no_network)
        patch.setattr(socket, "create_connection", no_network)
        assert os.environ["STEERLOOP_TYPECHECK"] == "1"
        train.main(["--tiny", "--runs", str(runs), "--device", "cpu"])
    (folder,) = (x for x in runs.iterdir() if x.is_dir())
    return folder


@pytest.fixture(scope="module")
def events(run):
    """Its records in order."""
    return [json.loads(x) for x in (run / "events.jsonl").read_text().splitlines()]


def config_of(run):
    """The resolved config, read back from the folder."""
    return Config(**json.loads((run / "config.json").read_text())["config"])


def check_types_are_checked_in_this_run(world):
    with pytest.raises(TypeCheckError):
        world.model.head(torch.zeros(3, dtype=torch.int64))


def check_the_folder_is_complete(run):
    per_round = ["vector.safetensors", "adapter.safetensors", "completions.parquet",
                 "diary.parquet", "steps.parquet", "worst.parquet", "histogram.parquet",
                 "rollouts.parquet"]
    measured = {"rounds/00/base", "rounds/01/matched"}
    wanted = {"config.json", "events.jsonl", "summary.json", "log.txt", "verdicts.md", "diary.md",
              "map.html", "report.html", "planted.parquet"}
    for round in ("00", "01"):
        wanted |= {f"rounds/{round}/{name}" for name in per_round}
        measured |= {f"rounds/{round}/{state}" for state in ("steered", "healed")}
    wanted |= {f"{state}.{kind}.parquet" for state in measured for kind in ("eval", "items")}
    found = {str(x.relative_to(run)) for x in run.rglob("*") if x.is_file()}
    assert wanted <= found
    assert not [x for x in found if x.endswith(".part")]


def check_config_says_what_ran(run):
    found = json.loads((run / "config.json").read_text())
    assert found["config"]["tiny"] is True and found["config"]["rounds"] == 2
    assert set(found["packages"]) >= {"torch", "transformers"}
    assert run.name.endswith("_embedded_kl_rev_s0")


def check_events_tell_the_loop_in_order(events):
    stages = [(e["stage"], e.get("round"), e.get("state")) for e in events]
    one = [("sample", None), ("evaluate", "steered"), ("heal", None), ("drift", None),
           ("evaluate", "healed")]
    assert stages == [("config", None, 0), ("axis", None, None), ("evaluate", 0, "base"),
                      ("start", None, None), ("u0", None, None),
                      *[(s, r, state) for r in (0, 1) for s, state in one],
                      ("evaluate", 1, "matched")]
    for event in events:
        if event["stage"] == "evaluate":
            assert all(math.isfinite(x) for x in event["measures"].values())
            assert {"opening_mass", "sentence_validity", "coherence"} <= set(event["measures"])
        if event["stage"] == "sample":
            assert event["c_star"] > 0 and 0.2 <= event["kappa"] <= 1
            assert event["cos_first"] == pytest.approx(1, abs=1e-5) or event["round"] > 0
        if event["stage"] == "heal":
            assert event["nll"] > 0 and event["steps"] > 0 and event["operating_kl"] >= 0


def check_tables_hold_every_row(run):
    cfg = config_of(run)
    data = read_data(cfg)
    for round in (0, 1):
        folder = run / f"rounds/{round:02d}"
        table = pl.read_parquet(folder / "completions.parquet")
        assert table["train"].sum() == cfg.n_keep
        assert (table["keep"] == table["drop_reason"].is_null()).all()
        assert table.filter("train")["keep"].all()
        assert {"prompt", "text", "completion_ids", "ppl", "repeat", "copy"} <= set(table.columns)
        steps, worst = (pl.read_parquet(folder / f"{x}.parquet") for x in ("steps", "worst"))
        heal = json.loads((folder / "heal.json").read_text())["value"]
        assert len(steps) == heal["steps"] and steps["nll"][0] == heal["nll_first"]
        ids = dict(table.filter("train").select("row", "completion_ids").rows())
        assert len(worst) == min(200, sum(map(len, ids.values())))
        assert all(ids[row][at] == token
                   for row, at, token in worst.select("row", "position", "token_id").rows())
        for state in ("steered", "healed"):
            rows = pl.read_parquet(folder / f"{state}.eval.parquet")
            assert rows["vignette"].to_list() == data.vignettes["text"].to_list()
            total = rows.select(pl.sum_horizontal(f"p_{f}" for f in FOUNDATIONS)).to_series()
            assert (total - 1).abs().max() < 1e-5


def check_summary_and_ledger_agree_with_the_tables(run, events):
    summary = json.loads((run / "summary.json").read_text())
    assert len(summary["healed"]) == 2 and summary["axis"] == ["authority", "care"]
    for round, event in enumerate(summary["healed"]):
        folder = run / f"rounds/{round:02d}"
        frames, own = ([pl.read_parquet(f"{state}.{x}.parquet") for x in ("eval", "items", "said")]
                       for state in (folder / "healed", run / "rounds/00/base"))
        factor = config_of(run).ppl_factor
        assert event["measures"] == pytest.approx(report.measures(frames, own, factor))
        now = math.log(frames[0]["p_authority"].mean() / own[0]["p_authority"].mean())
        assert event["shift"]["authority"]["nats"][0] == pytest.approx(now)
    (row,) = pl.read_parquet(run.parent / "ledger.parquet").to_dicts()
    assert row["run"] == run.name and row["healed_rounds"] == 2
    assert row["down"] == pytest.approx(now)


def check_reloaded_adapters_are_the_student_that_was_measured(run):
    """A fresh process knows the student from the folder alone: same answers, to the last digits."""
    cfg = config_of(run)
    model, data = load(cfg), read_data(cfg)
    before, ids = model.hf(input_ids=token_batch(2, 12)).logits, token_batch(2, 12)
    measured = []
    for round in (0, 1):
        saved = load_file(run / f"rounds/{round:02d}/adapter.safetensors")
        assert all(x.norm() > 0 for x in saved.values())
        lora.fold(model.layers, model.gates, saved)
        rows = choices(model, data.vignettes, cfg, free=False)
        table = pl.read_parquet(run / f"rounds/{round:02d}/healed.eval.parquet")
        for f in FOUNDATIONS:
            assert rows[f"p_{f}"].to_list() == pytest.approx(table[f"p_{f}"].to_list(), rel=1e-4)
        measured.append(rows["p_authority"].to_list())
    assert measured[0] != pytest.approx(measured[1], rel=1e-3)
    with torch.no_grad(), model.gates(model.gates.before(0)):
        assert torch.equal(model.hf(input_ids=ids).logits, before)


def check_the_vector_is_that_of_the_steered_blocks(run):
    cfg = config_of(run)
    for round in (0, 1):
        found = load_file(run / f"rounds/{round:02d}/vector.safetensors")
        assert set(found) == {f"block.{b}" for b in cfg.steer_blocks}
        assert all(x.norm() > 0 and x.dtype == torch.float32 for x in found.values())


def check_reports_read_the_folder(run):
    states, rivals, verdicts, *_ = report.run_table(run).split("\n\n")
    assert states.count("\n") == 1 + 6  # base, two rounds of two states, matched
    assert rivals.count("\n") == 2 and "steering" in rivals
    assert [x.split("|")[1].split(":")[0].strip() for x in verdicts.splitlines()[2:]] == [
        "U0", "U1", "U2", "U3", "Dose"]
    assert run.name in report.ledger_table(run.parent)


@pytest.mark.long  # the gate has check_resume.py
def check_the_same_seed_gives_the_same_bits(folders, tmp_path):
    cfg = small_config(folders(), quant="none")  # 4 bits: check_healing_twice_gives_the_same_bits
    runs = [short_run(tmp_path, cfg, runs="a"), short_run(tmp_path, cfg, runs="b"),
            short_run(tmp_path, cfg, runs="c", seed=1)]
    for round in ("00", "01"):
        for name in ("adapter", "vector"):
            a, b, c = (load_file(x / f"rounds/{round}/{name}.safetensors") for x in runs)
            assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
            if name == "adapter":
                assert not any(torch.equal(a[k], c[k]) for k in a)
        a, b, _ = (pl.read_parquet(x / f"rounds/{round}/completions.parquet") for x in runs)
        assert a.equals(b)


@nf4_is_long
def check_losing_coherence_stops_the_loop(small, tmp_path):
    folder = short_run(tmp_path, small().cfg, coh_drop=0.0, bootstrap=10)
    summary = json.loads((folder / "summary.json").read_text())
    healed = summary["healed"]
    stopped = bool(healed[0]["coherence"]) and healed[0]["coherence"][2] < 1
    assert summary["coherence_floor"] == 1
    assert summary["stopped_early"] is stopped and len(healed) == (1 if stopped else 2)
