"""--track: what a run records and each step of its heals is told once, wherever the run was killed;
the run is the same to the last bit, and no library ends it. Libraries are stand-ins (tracked.py);
where a real one is installed it is asked as well."""

import dataclasses
import json
import os
import sys
import time
from collections import Counter

import polars as pl
import pytest
from loguru import logger

from steerloop import UserError, trackers
from steerloop.checks.digest import digests
from steerloop.checks.small import short_config, small_config
from steerloop.checks.tracked import NAMES, Store, absent, stand_in
from steerloop.config import TRACKERS, parse
from steerloop.healing.course import Course
from steerloop.ranks import ranks
from steerloop.report.arms import arms_of
from steerloop.runfolder.files import read_config, verify
from steerloop.runfolder.folder import Folder
from steerloop.runfolder.opening import packed
from steerloop.trackers.libraries import LIBRARIES
from steerloop.train import main, train

EVERY = ["tensorboard", "wandb", "trackio"]


class Killed(BaseException):
    """As SIGKILL: nothing that the library still holds arrives."""


@pytest.fixture(scope="module")
def cfg(folders, tmp_path_factory):
    """Two rounds and rivals, two epochs of two steps in every heal."""
    small = small_config(folders(), quant="none")
    return short_config(tmp_path_factory.mktemp("data"), small, epochs=2, step_rows=2, bootstrap=20,
                        tau_share=0.02, said_prompts=3, baselines=True)


@pytest.fixture(scope="module")
def whole(cfg, tmp_path_factory):
    """Folder of the run that nothing tracks; none of the libraries was imported for it."""
    others = {x for names in NAMES.values() for x in names}
    held = {x: sys.modules.pop(x) for x in others & sys.modules.keys()}
    run = train(dataclasses.replace(cfg, runs=str(tmp_path_factory.mktemp("whole"))))
    assert not others & sys.modules.keys()
    sys.modules.update(held)
    return run


@pytest.fixture
def said():
    """Warnings."""
    lines = []
    sink = logger.add(lambda x: lines.append(str(x)), level="WARNING", format="{message}")
    yield lines
    logger.remove(sink)


def points(run):
    """What a tracker has to have of the run's own: (name, at) → value."""
    found, before = {}, 0
    for line in (run / "events.jsonl").read_text().splitlines():
        x = json.loads(line)
        stage, at = x["stage"], x.get("round", 0)
        kept = x["measures"] if stage == "evaluate" else x
        name = f"{stage}/{x['state']}" if stage == "evaluate" else stage
        found |= {(f"{name}/{k}".replace(" ", "_"), at): v for k, v in kept.items()
                  if k not in ("round", "state", "dose") and type(v) in (int, float)}
        if stage == "evaluate" and x["dose"]:
            found[f"{name}/dose", at] = x["dose"]
        if stage == "sample":
            found["sample/rows", at] = n = sum(y["n"] for y in x["survival"])
            found["sample/kept", at] = sum(y["n"] * y["kept"] for y in x["survival"]) / n
        if stage == "heal":
            steps = pl.read_parquet(run / f"rounds/{at:02d}/steps.parquet")
            found |= {(f"heal_steps/{k}", before + row["step"]): v
                      for row in steps.iter_rows(named=True) for k, v in row.items()
                      if k != "step" and v is not None}
            before += len(steps)
    return found


def same(run, whole):
    """All records, and whatever was measured and trained."""
    records = [(x / "events.jsonl").read_bytes() for x in (run, whole)]
    return records[0] == records[1] and digests(run) == digests(whole)


def go(cfg, tmp_path, **fields):
    """The run, tracked, below `tmp_path`."""
    return train(dataclasses.replace(cfg, runs=str(tmp_path), **fields))


def cut(monkeypatch, store, cfg, tmp_path, step, **fields):
    """The run, killed after so many steps of this process. Returns its folder."""
    taken, advance = [], Course.advance

    def killing(self, losses, rows):
        advance(self, losses, rows)
        taken.append(0)
        if len(taken) == step:
            store.killed = True
            raise Killed

    with monkeypatch.context() as m:
        m.setattr(Course, "advance", killing)
        with pytest.raises(Killed):
            go(cfg, tmp_path, **fields)
    return next(x for x in tmp_path.iterdir() if x.is_dir())


def once(got, wanted):
    """Every point is there, as it is, and none is there twice. Returns what else is there."""
    there = {(k, at): x for k, at, x in got}
    assert len(there) == len(got) and {k: there.get(k) for k in wanted} == wanted
    return there.keys() - wanted.keys()


def check_the_names_are_those_of_the_knob():
    assert tuple(LIBRARIES) == TRACKERS == tuple(EVERY)


def check_a_killed_run_is_told_once_and_is_the_run_that_nobody_tracks(
    cfg, whole, tmp_path, monkeypatch
):
    """Killed in the second epoch of the first heal, at its last step, in a rival's heal."""
    stand_in(monkeypatch, "wandb", store := Store())
    run = cut(monkeypatch, store, cfg, tmp_path, 3, track="wandb")
    cut(monkeypatch, store, cfg, tmp_path, 2, resume=str(run), track="wandb")
    assert {at for k, at, _ in store.all() if k == "heal_steps/nll"} == {0, 1, 2, 3}  # as they came
    cut(monkeypatch, store, cfg, tmp_path, 9, resume=str(run), track="wandb")
    go(cfg, tmp_path, resume=str(run), track="wandb")
    assert same(run, whole) and store.closed[-1] == 0
    rest = once(store.all(), points(run))
    rivals = ("heal_nll_steps", "heal_taught_steps")
    assert {k for k in rest if k[0].endswith("/nll")} == {
        (f"{x}/nll", at) for x in rivals for at in range(8)}
    assert {k.partition("/")[0] for k, _ in rest} == {*rivals}
    assert store.config["r"] == cfg.r and "track" not in store.config
    assert len([k for k in store.words if k.startswith("verdict/")]) == 5
    assert store.words["u0/verdict"] == "off"
    verify(run)


def check_a_library_fails_and_another_has_the_run_from_its_beginning(
    cfg, whole, tmp_path, monkeypatch
):
    """The run goes on, and its next process tracks elsewhere, without --force."""
    stand_in(monkeypatch, "trackio", failing := Store(fails="row"))
    stand_in(monkeypatch, "tensorboard", store := Store())
    run = cut(monkeypatch, failing, cfg, tmp_path, 6, track="trackio")
    log = (run / "log.txt").read_text()
    assert log.count("WARNING --track trackio failed (Broken") == 1 and "Traceback" in log
    assert not failing.all() and not store.points and not (run / "tensorboard").exists()
    assert parse(["--resume", str(run)]).track == "trackio"
    assert parse(["--resume", str(run), "--track", "wandb"]).track == "wandb"
    assert parse(["--resume", str(run), "--track", ""]).track == ""
    go(cfg, tmp_path, resume=str(run), track="tensorboard")
    once(store.all(), points(run))
    assert same(run, whole) and read_config(run)["track"] == "tensorboard"
    with pytest.raises(UserError, match="same arm and loop seed"):
        arms_of([run, whole])
    verify(run)


def script(whole):
    """What a run tells, in its order: records, and (heal, round, row) for steps."""
    told = []
    for line in (whole / "events.jsonl").read_text().splitlines():
        record = {k: x for k, x in json.loads(line).items() if k != "crc"}
        heal, round = record["stage"], record.get("round")
        kept = whole / f"rounds/{round or 0:02d}/steps.parquet"
        if heal.startswith("heal"):
            told += [(heal, round, x) for x in pl.read_parquet(kept).iter_rows(named=True)]
        told.append(record)
    return told


def play(track, told, whole, path, cuts):
    """A run that is killed after so many of these, and again, and comes to its end. What came last
    is recorded then, and not mirrored any more."""
    for end in (*cuts, len(told)):
        folder = Folder(path, again=True)
        folder.event(**told[0])  # what the run is stands there before anything is tracked
        mirror = trackers.Mirror(folder, track)
        for i, x in enumerate(told[:end]):
            if isinstance(x, tuple):
                if (*x[:2], None) not in folder.known:  # else that heal is over
                    mirror.step(*x)
                continue
            if x["stage"] == "heal":
                name = f"rounds/{x['round']:02d}/steps.parquet"
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes((whole / name).read_bytes())
            if i == end - 1 < len(told) - 1:
                folder.mirror = lambda record: None
            folder.event(**x)
        if end == len(told):
            mirror.close(None)
        folder.close()


@pytest.mark.parametrize("track", EVERY)
def check_every_point_is_there_once_wherever_a_run_is_killed(whole, tmp_path, monkeypatch, track):
    told, wanted = script(whole), points(whole)
    for end in range(1, len(told) + 1):
        stand_in(monkeypatch, track, store := Store())
        (path := tmp_path / f"{end}").mkdir()
        play(track, told, whole, path, [end, min(end + 3, len(told))])
        once(store.all(), wanted)


def check_a_session_without_a_server_holds_all_that_came_before(whole, tmp_path, monkeypatch):
    """wandb offline: the last directory replaces the others. Rivals' steps are told as they come
    alone."""
    told, wanted = script(whole), points(whole)
    for end in range(1, len(told), 7):
        stand_in(monkeypatch, "wandb", store := Store(online=False))
        (path := tmp_path / f"{end}").mkdir()
        play("wandb", told, whole, path, [end])
        (sessions,) = store.points.values()
        once(sessions[-1], wanted)
        assert len(sessions) == 2


def check_a_note_says_what_a_server_of_trackio_has(whole, tmp_path, monkeypatch):
    """It lags: nothing is missing, and what is twice is of two rows."""
    monkeypatch.setenv("TRACKIO_SPACE_ID", "me/space")
    monkeypatch.setattr(trackers.libraries, "SENT", 0.0)
    told, wanted = script(whole), points(whole)
    for end in range(1, len(told), 5):
        stand_in(monkeypatch, "trackio", store := Store(online=False))
        (path := tmp_path / f"{end}").mkdir()
        play("trackio", told, whole, path, [end])
        there = Counter(x[:2] for x in store.all())
        assert there.keys() >= wanted.keys()
        twice = {x[1:2] for x in store.all() if there[x[:2]] > 1}
        assert len(twice) <= 2 and int((path / "trackio.rows").read_text()) > 8


@pytest.mark.parametrize(("track", "place"), [
    *((x, "open") for x in EVERY), *((x, "row") for x in EVERY), *((x, "close") for x in EVERY)])
def check_a_library_that_raises_does_not_end_a_run(tmp_path, monkeypatch, said, track, place):
    stand_in(monkeypatch, track, Store(fails=place))
    folder = forged(tmp_path)
    mirror = trackers.Mirror(folder, track)
    folder.event("evaluate", round=0, state="healed", dose=0.0, measures={"coherence": 0.5})
    mirror.step("heal", 1, STEP | {"step": 0})
    mirror.close(None)
    (line,) = said
    assert f"--track {track} failed (Broken: the network is down)" in line
    assert "resumed" in line and "\n" not in line.strip()


STEP = {"epoch": 0, "nll": 2.0, "a_row": None, "tau": 0.5, "active": 0.25, "grad_norm": 1.0,
        "lr": 1e-3}


def forged(path):
    """A folder with a few records, one heal of no steps among them."""
    folder = Folder(path / "run-é 1")
    folder.event("config", state=0, document={"config": {"r": 4, "betas": [0.9, 0.95]}})
    folder.event("axis", axis=["down", "up"])
    measures = {"coherence": 1.0, "social norms_nats": -1.5, "none": None}
    folder.event("evaluate", round=0, state="base", dose=0.0, measures=measures)
    folder.event("heal", round=0, nll=1.5, pull=None, steps=0)
    return folder


def told(folder, track):
    """Open a mirror, tell it a step and a record, close it."""
    mirror = trackers.Mirror(folder, track)
    mirror.step("heal", 1, STEP | {"step": 0})
    folder.event("drift", round=1, kl_base=0.25)
    mirror.close(None)


@pytest.mark.parametrize("track", EVERY)
def check_a_library_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys, track):
    absent(monkeypatch, track)
    runs = tmp_path / "runs"
    with pytest.raises(SystemExit) as e:
        main(["--track", track, "--runs", str(runs), "--model", str(tmp_path / "none")])
    line = str(e.value)
    assert f"pip install {track}" in line and "\n" not in line and not runs.exists()
    with pytest.raises(UserError, match="there are tensorboard, wandb, trackio"):
        parse(["--track", "other"])


def check_a_login_that_is_missing_is_one_line(monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    stand_in(monkeypatch, "wandb", Store(fails="login"))
    with pytest.raises(UserError, match="--track wandb: the network is down; mend"):
        trackers.usable("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackers.usable("wandb")


def check_a_step_is_told_in_its_turn_and_once(tmp_path, monkeypatch):
    """And none of a heal that is over."""
    stand_in(monkeypatch, "tensorboard", store := Store())
    mirror = trackers.Mirror(forged(tmp_path), "tensorboard")
    for heal, round, step in (("heal", 1, 0), ("heal", 1, 0), ("heal", 1, 2), ("heal", 0, 0),
                              ("heal_nll", 0, 0), ("heal", 1, 1)):
        mirror.step(heal, round, STEP | {"step": step})
    assert [(k, at) for k, at, _ in store.all() if k.endswith("_steps/nll")] == [
        ("heal_steps/nll", 0), ("heal_nll_steps/nll", 0), ("heal_steps/nll", 1)]


def check_rank_0_alone_tells(tmp_path, monkeypatch):
    stand_in(monkeypatch, "tensorboard", store := Store())
    monkeypatch.setattr(ranks, "own", 1)
    told(folder := forged(tmp_path), "tensorboard")
    assert not store.points
    for name in ("tensorboard/events", "wandb/latest"):
        (folder.path / name).parent.mkdir()
        (folder.path / name).symlink_to("/dev/null")
    assert b"latest" not in packed(folder.path) and b"events.jsonl" in packed(folder.path)


WANTED = {("evaluate/base/coherence", 0): 1.0, ("evaluate/base/social_norms_nats", 0): -1.5,
          ("heal/nll", 0): 1.5, ("heal/steps", 0): 0.0, ("drift/kl_base", 1): 0.25,
          **{(f"heal_steps/{k}", 0): x for k, x in STEP.items() if x is not None}}


def check_the_real_tensorboard_has_it_once(tmp_path):
    read = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = forged(tmp_path)
    for _ in range(2):
        told(folder, "tensorboard")
        (file, *_) = sorted((folder.path / "tensorboard").iterdir())
        file.write_bytes(file.read_bytes()[:-9])  # as a kill may leave it
    told(folder, "tensorboard")
    kept = read.EventAccumulator(str(folder.path / "tensorboard"), {"scalars": 0}).Reload()
    got = [(k, x.step, x.value) for k in kept.Tags()["scalars"] for x in kept.Scalars(k)]
    assert {x[:2]: pytest.approx(x[2]) for x in got} == WANTED and len(got) == len(WANTED)


def check_the_real_trackio_has_it_once(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setenv("TRACKIO_PROJECT", f"check-{os.getpid()}")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path)
    folder = forged(tmp_path)
    told(folder, "trackio")
    told(folder, "trackio")
    name = trackers.libraries.label(folder.path, [folder.known["config", None, 0]["document"]])
    rows = SQLiteStorage.get_logs(os.environ["TRACKIO_PROJECT"], name)
    got = [(k, x["step"], v) for x in rows for k, v in x.items() if type(v) in (int, float)
           and k != "step"]
    assert {x[:2]: x[2] for x in got} == WANTED and len(got) == len(WANTED)


def check_the_real_wandb_has_it(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    told(folder := forged(tmp_path), "wandb")
    (file,) = (folder.path / "wandb").glob("offline-run-*/run-*.wandb")
    for _ in range(300):  # a process of its own writes it
        if not (missing := [k for k, _ in WANTED if k.encode() not in file.read_bytes()]):
            return
        time.sleep(0.1)
    raise AssertionError(missing)
