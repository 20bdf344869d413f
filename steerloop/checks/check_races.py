"""The bench runs as a user would run it, and its figures add up."""

import json
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from steerloop.bench import measure, races, readouts, round, shapes, student, work
from steerloop.bench.__main__ import main, options
from steerloop.checks.digest import digests
from steerloop.checks.small import data_files, short_config
from steerloop.evidence.journal import Journal
from steerloop.runfolder.events import read_events
from steerloop.texts.data import read_data
from steerloop.train import loop

SIZE = work.Size(rows=2, twin_rows=1, tokens=4, prompt=5, think=0, repeats=1)


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probes take longer than all the rest."""
    for probe in ("matmul_peak", "bandwidth"):
        monkeypatch.setattr(work, probe, lambda dtype, device: 1e15)


@pytest.mark.parametrize("small", ["none"], indirect=True)
@pytest.mark.parametrize("what", races.MODELS)
def check_every_race_runs(small, what, tmp_path):
    ours = small(**data_files(tmp_path), dose_prompts=1)
    found = races.MODELS[what](ours.model, ours.cfg, SIZE)
    runners, step = found["runners"], what == "heal"
    mine, twin = runners.pop("ours"), next(iter(runners.values()))
    assert twin["ours_times_faster"] == pytest.approx(
        twin["seconds"] / twin["units"] * mine["units"] / mine["seconds"])
    assert (mine["units"], twin["units"]) == ((1, 1) if step else (2, 1))
    assert 0 < min(x for name, x in found["limit"].items() if "share" in name) < 1
    if step:
        assert mine["seconds"] == pytest.approx(
            mine["step_alone_seconds"] + mine["reference_seconds"] / ours.cfg.epochs)


def check_a_round_on_random_weights_is_timed_by_stage(small, tmp_path):
    cfg = replace(small().cfg, **data_files(tmp_path), dose_prompts=1)
    found = round.alone(cfg, 4, 5, 1)
    stages = found["ours"]["stages"]
    assert set(stages) == {*round.STAGES, "rest"}
    assert sum(x["share"] for x in stages.values()) == pytest.approx(1)
    assert found["tokens_sampled"] <= 5 * found["rows_sampled"] and found["rows_sampled"] >= 4
    assert 0 < found["ours"]["seconds"] < found["run_of_one_round_seconds"]


@pytest.mark.parametrize("small", ["none"], indirect=True)
def check_a_student_is_raced_against_its_merged_self(small, tmp_path):
    cfg = replace(small().cfg, **data_files(tmp_path), dtype="bfloat16")
    found = student.run(cfg, SIZE)["rounds_heard"]
    for name, heard in product(("sample", "evaluate"), student.HEARD):
        assert set(found[name][heard]) == {"ours", "merged"}


@pytest.mark.parametrize("small", ["none"], indirect=True)
def check_readouts_of_text_are_raced_against_the_rest(small, tmp_path):
    found = readouts.run(small(**data_files(tmp_path)).cfg, 1)
    *parts, rest = (x["seconds"] for x in found["runners"].values())
    assert list(found["runners"])[:-1] == ["reasons", "contrast", "said"]
    assert found["share"]["seconds"] == pytest.approx(sum(parts) / rest)
    assert found["vignettes"] == found["contrasted"] == found["answers"] == 3


def check_figures_are_printed_and_written(capsys, tmp_path):
    main(["loss", "--shape", "tiny", "--rows", "2", "--tokens", "3", "--repeats", "1",
          "--json", str(file := tmp_path / "found.json")])
    found = json.loads(capsys.readouterr().out)
    assert json.loads(file.read_text()) == found
    assert found["positions"] == 6 and found["runners"]["dense"]["units"] == 6


def check_a_shape_can_be_cut():
    assert shapes.config("gemma-3-270m", 6).num_hidden_layers == 6
    assert shapes.config("gemma-3-270m").num_hidden_layers == 18
    encode = shapes.tokenizer().encode
    assert len(encode("Which rule does this break most? 17")) < 14
    assert encode("17")[0] == encode("12")[0] != encode("27")[0]  # a digit is a token


def check_peaks_and_medians():
    held = []

    def large():
        ones = torch.ones(2**24)
        time.sleep(0.2)  # memory is read by a thread, which a busy machine may keep waiting
        return ones.sum()

    work = {"ours": measure.Runner(lambda: torch.ones(2**22).sum(), 2),
            "twin": measure.Runner(large)}
    found = measure.against(measure.race(work, 2, cuda=False))
    assert 60 < found["twin"]["peak_mb"] < 80  # 64 MB of ones
    assert sum(found["twin"]["all_seconds"]) == pytest.approx(2 * found["twin"]["seconds"])
    assert found["twin"]["ours_share_of_peak_memory"] < 0.5
    keeps = measure.Runner(lambda: held or held.append(torch.ones(2**24)), forget=held.clear)
    assert measure.race({"ours": keeps}, 1, cuda=False)["ours"]["peak_mb"] > 60
    held.clear()
    measure.keep_freed(False)  # else what other checks freed may be used again
    with measure.watched(False) as seen:
        held.append(torch.ones(2**23))
        time.sleep(0.3)
    assert 30 < seen["anon"] < 40 and seen["seconds"] >= 0.3 > seen["cpu_seconds"]


def check_a_round_is_cut_out_of_a_run():
    """Stages inside the round count, those before and after do not."""
    moment = [round.Moment(float(i), i / 2) for i in range(20)]
    calls = [round.Call("evaluate", moment[0], moment[3], None),
             round.Call("extract", moment[4], moment[5], "v"),
             round.Call("sample", moment[5], moment[8], None),
             round.Call("filter", moment[8], moment[9], None),
             round.Call("evaluate", moment[9], moment[10], None),
             round.Call("evaluate", moment[11], moment[12], None),
             round.Call(round.PAGES, moment[13], moment[14], None),
             round.Call("evaluate", moment[14], moment[19], None)]
    found = round.shares(round.first_round(calls))
    assert found["seconds"] == 10 and found["cpu_seconds"] == 5
    assert {k: x["seconds"] for k, x in found["stages"].items()} == {
        "extract": 1, "dose": 0, "sample": 3, "filter": 1, "evaluate": 2, "heal": 0, "rest": 3}
    assert sum(x["share"] for x in found["stages"].values()) == pytest.approx(1)


@pytest.mark.long
@pytest.mark.parametrize("small", ["none"], indirect=True)
def check_the_clock_leaves_no_trace(small, tmp_path):
    """What a run keeps and records is the same under it, and what fails is not noted."""
    found = []
    for recorder in (Journal, round.Clocked):
        cfg = short_config(tmp_path, (s := small()).cfg, recorder.__name__)
        data = read_data(cfg)
        run = recorder(s.model, data, cfg)
        loop(s.model, data, cfg, run)
        found.append((read_events(run.path), digests(run.path)))
    assert found[0] == found[1] and len(found[0][0]) > 10 and len(found[0][1]) > 10
    names = [x.name for x in run.calls]
    assert {*round.STAGES, round.PAGES} <= set(names) and names.count("heal") == cfg.rounds
    assert all(x.start <= x.end for x in run.calls)

    def extract(*_):
        raise KeyError

    run.folder.sums.clear()  # else it were read
    with pytest.raises(KeyError):
        run.call(extract, s.model, data, cfg)
    assert [x.name for x in run.calls] == names


@pytest.mark.parametrize("wrong", [["loss", "--shape", "embedded"], ["nothing"],
                                   ["sample", "--repeats", "0"]])
def check_wrong_options_are_refused(wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        options(wrong)
    assert stop.value.code == 2 and "error:" in capsys.readouterr().err


def check_named_sizes_are_the_defaults():
    found = options(["sample", "--tokens", "7"])
    assert (found.rows, found.tokens, found.prompt) == (48, 7, 100)
    assert Path("x") == options(["load", "--json", "x"]).json
