"""Points that keep their items: they are those of a run, arms share what they say they share, two
arms are measured where they are equal, and the tables pair them by seed and item."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from steerloop import UserError
from steerloop.checks.small import plain_trait
from steerloop.config import Config
from steerloop.healing.threshold import threshold
from steerloop.report.arms import pooled, steps_of
from steerloop.sweep import points
from steerloop.sweep.arms import EQUAL, REAL, SWEEPS, VECTOR, Arm, Sweep, arms_in
from steerloop.sweep.climb import climb
from steerloop.sweep.equal import further, setting, turned_down
from steerloop.sweep.paired import NONE, held, real
from steerloop.sweep.points import Group, config, missing, read_rows, run
from steerloop.texts.data import read_data
from steerloop.train import train

ITEMS = Sweep([], 1, (), items=True)
SLOW = {"teacher": "base", "lr": 5e-3}


@pytest.fixture(scope="module")
def climbed(folders, tmp_path_factory):
    """Config, data, what is shared, and the points of a vector and of the base, slow to learn."""
    cfg = replace(plain_trait(tmp_path_factory.mktemp("real"), folders()), rounds=1)
    data, shared = read_data(cfg), {}
    rows = [climb(data, cfg, x, ITEMS, shared)[0] | {"arm": x.family, "setting": "", "seed": 0}
            for x in (Arm(VECTOR, ""), Arm("base", "", SLOW, source="base"))]
    return cfg, data, shared, rows


def check_items_are_those_of_a_run(climbed):
    cfg, data, _, (vector, _) = climbed
    done = train(replace(cfg, u0=False))
    for name, steps in steps_of(done, "said", [data.down, data.up]).items():
        assert vector["items"][name] == pytest.approx(steps.tolist(), abs=1e-4)
    said = pl.read_parquet(done / "rounds/00/healed.said.parquet").sort("prompt_id")
    assert vector["answers"] == said["text"].to_list() and vector["shift"] == pytest.approx(
        np.mean(vector["items"]["said"]), abs=1e-4)


def check_arms_share_what_they_say_they_share(climbed):
    """Another teacher's completions are its own; its vector and dose only where it has another."""
    cfg, data, shared, _ = climbed
    made = set(shared)
    climb(data, cfg, Arm("nll", "", {"barrier": "nll"}), ITEMS, shared)
    assert set(shared) - made == {"delta nll"}
    assert {x.split(" ")[0] for x in made if " base " in x} == {"sample", "filter"}
    climb(data, cfg, Arm("null", "", {"teacher": "null"}, source="null", vector="null"), ITEMS,
          shared)
    own = {x.split(" ")[0] for x in shared if " null " in x}
    assert own == {"extract", "dose", "sample", "filter"}
    for name in ("extract", "sample"):
        one, other = (next(x for k, x in shared.items() if k.startswith(f"{name} {who} 0"))
                      for who in ("", "null"))
        same = one.equals(other) if name == "sample" else all((one[k] == other[k]).all()
                                                              for k in one)
        assert not same


@pytest.mark.parametrize("at", ["kl", "shift"])
def check_the_one_that_went_further_is_turned_down(climbed, at):
    """Whether its Δ is at hand or made again. (What three short answers say is a staircase
    over strengths: the nearest step counts.)"""
    cfg, data, shared, rows = climbed
    far, near = further(*rows, at)
    column = "kl_own" if at == "kl" else "shift"
    arm = {VECTOR: Arm(VECTOR, ""), "base": Arm("base", "", SLOW, source="base")}[far["arm"]]
    assert 0 < near[column] < far[column]
    found = turned_down(data, cfg, arm, ITEMS, shared, near, at)
    off = abs(found[column] - near[column])
    if at == "kl":
        assert 0 < found["strength"] < 1 and off < 0.15 * near[column]
    assert off <= far[column] - near[column]
    again = turned_down(data, cfg, arm, ITEMS, {}, near, at)
    assert again == found


def check_one_that_did_not_move_has_no_equal():
    one, other = ({"items": {}, "shift": x, "kl_own": 0.1} for x in (0.5, -0.1))
    assert further(one, other, "shift") is None and further(one, other, "kl") is not None
    assert further(one, {"ended": "starved", "shift": 0.3}, "shift") is None


def check_a_group_does_its_arms_then_what_is_equal(tmp_path, monkeypatch):
    """Every arm but the trait's own pack; what is there is not done again; cut off, it goes on."""
    ran = []

    def climb(data, cfg, arm, sweep, shared):
        ran.append(arm.family)
        value = 0.1 * len(ran)
        return [{"round": 1, "ended": "", "items": {"said": [value]}, "shift": value,
                 "kl_own": value, "read_by": "said"}]

    def turned(data, cfg, arm, sweep, shared, other, at):
        if len(ran) == len(REAL):
            raise KeyboardInterrupt
        return {"round": 1, "ended": "", "items": {}, "shift": 1.0, "kl_own": 1.0}

    group = Group("real", "embedded", "test", "register", 0, tmp_path)
    monkeypatch.setattr(points, "climb", climb)
    monkeypatch.setattr(points, "turned_down", turned)
    monkeypatch.setattr("torch.set_num_threads", lambda n: None)
    ran.append("")  # so that the first interruption comes when all arms are done
    with pytest.raises(KeyboardInterrupt):
        run(group)
    assert ran[1:] == [x.family for x in REAL if x.family != "register"]
    rows = read_rows(tmp_path / "real.jsonl")
    assert [x[2] for x in missing(group, rows)] == [at for _, _, at in EQUAL]
    ran.append("")
    run(group)
    run(group)
    rows = read_rows(tmp_path / "real.jsonl")
    assert len(rows) == len(REAL) - 1 + len(EQUAL) and not missing(group, rows)
    assert [x["setting"] for x in rows[-len(EQUAL):]] == [  # later ones came further
        setting(at, x if ran.index(x) < ran.index(y) else y) for x, y, at in EQUAL]


def check_only_the_arms_that_are_named(tmp_path, monkeypatch):
    """And of what is equal, those pairs that have both; a name that is none is said."""
    ran = []

    def climb(data, cfg, arm, sweep, shared):
        ran.append(arm.family)
        return [{"round": 1, "ended": "", "items": {}, "shift": 1.0, "kl_own": 1.0 / len(ran)}]

    monkeypatch.setattr(points, "climb", climb)
    monkeypatch.setattr(points, "turned_down", lambda *_: {"round": 1, "ended": "", "items": {}})
    monkeypatch.setattr("torch.set_num_threads", lambda n: None)
    for only in (["nll"], ["prompt", VECTOR]):
        run(Group("real", "embedded", "test", "register", 0, tmp_path, only))
    assert ran == ["nll", VECTOR, "prompt"]
    rows = read_rows(tmp_path / "real.jsonl")
    assert [x["setting"] for x in rows if x["setting"]] == [setting("kl", "prompt")]
    with pytest.raises(UserError, match="no arm nul; it has vector, base"):
        Group("real", "embedded", "test", "filtered", 0, tmp_path, ["nul", VECTOR]).check()


def check_a_trait_is_a_regime_under_the_preset_of_the_model(tmp_path):
    cfg = config(Group("real", "smollm2-135m", "test", "mood", 3, tmp_path))
    assert (cfg.trait.endswith("mood"), cfg.seed, cfg.n_keep, cfg.rounds) == (True, 3, 32, 1)
    assert cfg.model == "smollm2-135m" and not cfg.probes and cfg.said_pairs == 6
    assert "mood" not in {x.family for x in arms_in(SWEEPS["real"], "mood")}
    with pytest.raises(UserError, match="--models"):
        Group("real", "embedded", "test", "mood", 0, tmp_path).check()


def check_the_barrier_of_dirty_data_is_that_of_a_run():
    """By overdoses τ would be more than five times as large, and never reached."""
    (arm,) = (x for x in REAL if x.family == "kl_rev, dirty")
    assert arm.changes["tau"] == pytest.approx(threshold(Config()), abs=1e-3)
    assert threshold(Config(multiples=arm.changes["multiples"])) > 5 * arm.changes["tau"]


def point(arm, seed, said, where=""):
    return {"arm": arm, "setting": where, "seed": seed, "kl_own": 0.1, "coherence": 1.0,
            "kept": 0.5, "shift": float(np.mean(said)), "items": {"said": said, "other": None}}


def check_tables_pair_by_seed_and_item():
    """The first arm less the others over the seeds in common; equal ones, whichever was turned."""
    ours = {0: [0.1, 0.3], 1: [0.25, 0.5], 2: [9.0, 9.0]}
    theirs = {1: [0.1, 0.2], 0: [0.0, 0.1]}  # in the order in which they were run
    rows = [point(VECTOR, k, x) for k, x in ours.items()]
    rows += [point("nll", k, x) for k, x in theirs.items()]
    rows += [point(VECTOR, 0, [0.05, 0.1], setting("shift", "nll")),
             point("nll", 1, [0.15, 0.45], setting("shift", VECTOR)),
             {"arm": "null", "setting": "", "seed": 0, "ended": "starved", "items": None}]
    tables = {k: [[x.strip() for x in line.strip("|").split("|")] for line in v.splitlines()]
              for k, v in real(pl.DataFrame(rows, infer_schema_length=None)).items()}
    assert [x[:2] for x in tables["arms"][2:]] == [[VECTOR, "0 1 2"], ["nll", "0 1"]]
    mean, low, high = pooled(np.array([[0.1, 0.2], [0.15, 0.3]]))
    assert tables["paired"][2] == ["nll", "0 1", f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"]
    mean, low, high = pooled(np.array([[0.05, 0.0], [0.1, 0.05]]))
    assert tables["equal"][2] == ["vector, less nll", "shift, 0.212", "0 1",
                                  f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"]
    assert set(real(pl.DataFrame(rows[-1:])).values()) == {NONE}
    for x in rows[:-1]:
        x.pop("coherence")
    assert "coherence" in real(pl.DataFrame(rows, infer_schema_length=None))["arms"]


def check_a_row_a_round():
    """Of the seeds that came so far, and what ended an arm early."""
    rows = [point(VECTOR, 0, [0.1]) | {"round": 1, "ended": "", "active": 0.5},
            point(VECTOR, 1, [0.3]) | {"round": 1, "ended": "", "active": None},
            point(VECTOR, 0, [0.5]) | {"round": 2, "ended": "", "active": 1.0},
            {"arm": VECTOR, "setting": "", "seed": 1, "round": 2, "ended": "budget spent"}]
    table = [[x.strip() for x in line.strip("|").split("|")] for line in held(
        pl.DataFrame(rows, infer_schema_length=None))["rounds"].splitlines()]
    found = [dict(zip(table[0], x, strict=True)) for x in table[2:]]
    assert [(x["after round"], x["seeds"], x["rows over τ"]) for x in found] == [
        ("1", "0 1", "0.500"), ("2", "0", "1.000")]
    assert found[0]["Δsaid"].startswith("+0.200") and found[1]["ended early"] == "budget spent"


def check_rows_are_plain_json(climbed):
    *_, rows = climbed
    assert json.loads(json.dumps(rows)) == rows
