"""Sweeps: an arm climbs as train.py does, what is there is not run again, tables interpolate only
between settings that bracket the target, and go to their places on a page of words."""

import json
import re
from dataclasses import replace
from importlib import import_module

import polars as pl
import pytest

from steerloop import UserError, train
from steerloop.checks.small import short_config, small_config
from steerloop.sweep import points
from steerloop.sweep.arms import FRONTIER, SWEEPS, Arm, Sweep
from steerloop.sweep.climb import climb
from steerloop.sweep.page import write_results
from steerloop.sweep.points import Group, read_rows, run
from steerloop.sweep.tables import SHOWN, at, frontier, mean
from steerloop.sweep.tables import rows as read_points
from steerloop.texts.data import read_data


@pytest.mark.long
def check_an_arm_climbs_as_train_does(folders, tmp_path):
    cfg = short_config(tmp_path, small_config(folders(), quant="none"), lr=3e-2)
    events = map(json.loads, (train.train(cfg) / "events.jsonl").read_text().splitlines())
    states = {(e["state"], e["round"]): e["measures"] for e in events if e["stage"] == "evaluate"}
    data = read_data(cfg)
    rows = climb(data, cfg, Arm("as it is", ""), Sweep([], 2, ()), {})
    assert [x["round"] for x in rows] == [1, 2] and abs(rows[1]["shift"]) > 1e-3
    for x in rows:
        wanted = states["healed", x["round"] - 1]
        assert x["coherence"] == wanted["coherence"] and x["Δauthority"] == pytest.approx(
            wanted["authority_nats"] - states["base", 0]["authority_nats"], abs=1e-6)
        assert x["shift"] == -x["Δauthority"] and x["read_by"] == "digits"


@pytest.mark.long
def check_a_fixed_dose_is_kept_and_a_budget_ends_a_climb(folders, tmp_path):
    cfg = short_config(tmp_path, small_config(folders(), quant="none"), rounds=3, lr=3e-2,
                       coh_drop=1.0)
    data = read_data(cfg)
    shared, sweep = {}, Sweep([], 3, ())
    fixed = climb(data, cfg, Arm("fixed", "", {}, fixed_dose=True), sweep, shared)
    assert len({x["c_star"] * x["kappa"] for x in fixed}) == 1 and len(fixed) == 3
    made = dict(shared)
    anew = climb(data, cfg, Arm("anew", ""), sweep, shared)
    assert shared.keys() == made.keys()  # nothing of the first round is made twice
    assert len({x["c_star"] for x in anew}) == 3
    held = climb(data, cfg, Arm("held", "", {"kl_budget": 0.02}), sweep, shared)
    assert held[-1]["ended"] == "budget spent" and held[0]["kl_base"] > 0 and len(held) < 4
    assert held[0]["kappa"] < anew[0]["kappa"]


def check_a_pilot_is_plain_training_on_the_same_rows(folders, tmp_path):
    cfg = short_config(tmp_path, small_config(folders(), quant="none"), rounds=1, lr=3e-2, lam=20.0,
                       tau_share=0.0, epochs=3)
    data, shared, sweep = read_data(cfg), {}, Sweep([], 1, ())
    (free,) = climb(data, cfg, Arm("free", "", {"lam": 0.0}), sweep, shared)
    (piloted,) = climb(data, cfg, Arm("piloted", "", pilot=0.5), sweep, shared)
    fixed = Arm("fixed", "", {"tau": 0.5 * free["operating_kl"]})
    assert climb(data, cfg, fixed, sweep, shared) == [piloted] and 0 < piloted["active"] < 1


def check_a_group_that_cannot_begin_says_why(folders, tmp_path):
    cfg = short_config(tmp_path, small_config(folders(), quant="none"))
    data = read_data(cfg)
    for changes, message in (({"model": str(tmp_path / "none")}, "no such directory"),
                             ({"lora_blocks": [99]}, "--lora_blocks")):
        with pytest.raises(UserError, match=message):
            climb(data, cfg, Arm("x", "", changes), Sweep([], 2, ()), {})
    rows = climb(data, cfg, Arm("x", "", {"target_kl": 1e9}), Sweep([], 2, ()), {})
    assert rows == [{"round": 1, "ended": rows[0]["ended"]}] and "not crossed" in rows[0]["ended"]


def check_what_is_there_is_not_run_again(tmp_path, monkeypatch):
    ran = []

    def climbed(data, cfg, arm, sweep, shared):
        ran.append(arm)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return [{"round": sweep.rounds, "ended": ""}]

    monkeypatch.setattr(points, "climb", climbed)
    monkeypatch.setattr("torch.set_num_threads", lambda n: None)
    group = Group("frontier", "embedded", "dev", "filtered", 0, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(group)
    assert len(read_rows(tmp_path / "frontier.jsonl")) == 2
    run(group)
    assert len(ran) == len(FRONTIER) + 1 and ran[2] == ran[3]
    run(replace(group, seed=1))
    run(group)
    assert len(ran) == 2 * len(FRONTIER) + 1
    assert {(x["seed"], x["setting"]) for x in read_rows(tmp_path / "frontier.jsonl")} == {
        (seed, arm.setting) for seed in (0, 1) for arm in FRONTIER}


def check_rows_of_another_model_of_that_name_are_refused(tmp_path, folders):
    group, path = Group("frontier", str(folders()), "dev", "dirty", 0, tmp_path), (
        tmp_path / "frontier.jsonl")
    for weights in ({}, {"weights": group.weights}):
        path.write_text(json.dumps(group.key | weights) + "\n")
        group.check()
    path.write_text(json.dumps(group.key | {"weights": "0123"}) + "\n")
    with pytest.raises(UserError, match="another model"):
        group.check()
    command = ["frontier", "--points", str(tmp_path), "--models", group.model]
    with pytest.raises(SystemExit, match="another model"), pytest.MonkeyPatch.context() as m:
        m.setattr("sys.argv", ["sweep", *command])
        m.setenv("TQDM_DISABLE", "1")  # and as it was afterwards: the module sets it
        import_module("steerloop.sweep.__main__").main()


def check_every_sweep_has_arms_of_their_own():
    for sweep in SWEEPS.values():
        assert len({(x.family, x.setting) for x in sweep.arms}) == len(sweep.arms)


def point(shift, value):
    return {"shift": shift, "Δauthority": -shift, "read_by": "digits", "opening_mass": value,
            "ppl": 1 + value, "coherence": 1.0}


def check_interpolation_needs_a_near_bracket():
    line = [point(x, 1 - x / 10) for x in (0.2, 0.9, 1.2, 1.7, 2.5)]
    found = at(line, 1.0)
    assert found["opening_mass"] == pytest.approx(0.9) and found["ppl"] == pytest.approx(1.9)
    assert at(line, 1.2)["opening_mass"] == pytest.approx(0.88)
    assert at(line, 0.5) is not None and at(line, 0.55) is not None  # .3 to .4 to either side
    assert at(line, 0.65) is None  # the weaker one is .45 away
    assert at(line, 2.0) is None and at(line, 3.0) is None and at([], 1.0) is None


def check_frontier_pairs_families_by_seed():
    """The barrier costs half as much per nat as plain training does, on every seed."""
    rows = []
    for seed in range(3):
        for family, price in ((FRONTIER[1].family, 0.05), ("nll, learning rate", 0.1)):
            rows += [{"family": family, "seed": seed, "regime": "dirty"}
                     | point(x, 1 - price * x + 0.01 * seed) for x in (0.4, 0.8, 1.1)]
        rows.append({"family": "nll", "seed": seed, "regime": "dirty"} | point(3.0, 0.1))
    table = frontier(pl.DataFrame(rows))["opening_mass"].splitlines()
    cells = [[x.strip() for x in line.strip("|").split("|")] for line in table]
    assert cells[0][0] == "opening mass, dirty" and cells[2][0] == FRONTIER[1].family
    assert cells[2][2].startswith("0.960") and cells[3][2].startswith("0.910")
    assert cells[3][5].startswith("0.050 [0.050, 0.050] (3)") and cells[3][3] == ""


KEY = {"model": "m", "split": "test", "regime": "dirty", "code": "c"}
SAME = {"ended": "", "opening_mass_base": 1.0, "coherence_base": 1.0, "active": None}


def arm_rows(sweep, arms, seed):
    """A made-up row for each of these arms, each arm a bit further than the one before."""
    return [KEY | SAME | {"arm": a.family, "family": a.family, "setting": a.setting, "seed": seed,
                          "round": sweep.rounds} | point(0.4 + 0.3 * i, 0.9)
            for i, a in enumerate(arms)]


def check_a_failed_arm_leaves_a_hole_and_not_a_wreck(tmp_path):
    """Rows without measures (starved, not finite) are counted as ended, in every table."""
    for name, sweep in SWEEPS.items():
        if sweep.whole:
            continue
        rows = [row for s in (0, 1) for row in arm_rows(sweep, sweep.arms[:5], s)]
        lost = {"round": 2, "ended": "the filter is starved"}
        rows += [KEY | {"arm": a.family, "family": a.family, "setting": a.setting, "seed": 0} | lost
                 for a in sweep.arms[5:7]]
        (tmp_path / f"{name}.jsonl").write_text("".join(
            json.dumps(x) + "\n" for x in rows + rows[:3]))  # some of them twice
        assert len(read_points(tmp_path, name)) == len(rows)
    write_results(tmp_path, tmp_path / "results.md")
    text = (tmp_path / "results.md").read_text()
    assert "the filter is starved 1" in text and "12 of" in text
    assert "steerloop.sweep rounds --models runs/m --split test --regimes dirty --seeds 0 1" in text


def check_means_have_t_intervals():
    assert mean([1.0, 2.0, 3.0], 2) == "2.00 [-0.48, 4.48] (3)"
    assert mean([1.0], 1) == "1.0 (1)" == mean([float("nan"), 1.0], 1) and mean([]) == ""
    assert mean([1.0] * 20, 1).endswith("(20)")


PAGE = """# Results

My words.

## Is the barrier more than a smaller step?

Yes.

<!-- table: frontier m test dirty opening_mass ppl -->
an old table
<!-- end -->

But not everywhere. <!-- a remark -->

## What does coherence say?

<!-- table: frontier m test dirty coherence -->
<!-- end -->
<!-- table: barrier m test filtered -->
<!-- end -->
Last words.
"""


@pytest.fixture
def points_of_two_sweeps(tmp_path):
    for name in ("frontier", "barrier"):
        rows = arm_rows(SWEEPS[name], SWEEPS[name].arms[:3], 0)
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    return tmp_path


def check_tables_go_to_their_places_and_words_stay(points_of_two_sweeps):
    path = points_of_two_sweeps / "results.md"
    path.write_text(PAGE)
    write_results(points_of_two_sweeps, path)
    text = path.read_text()
    places, words = re.split(r"(?s)<!-- table: .*?<!-- end -->", PAGE), text
    for each in places[:-1]:
        found, _, words = words.partition("<!-- table: ")
        assert found == each
        words = words.partition("<!-- end -->")[2]
    assert words.startswith(places[-1]) and "an old table" not in text
    first, second, third = (x.partition("<!-- end -->")[0] for x in text.split("<!-- table: ")[1:4])
    assert "| opening mass, dirty" in first and "| mundane ppl ×, dirty" in first
    assert "| coherence, dirty" in second and "coherence" not in first.partition("\n")[2]
    assert "No points yet." in third
    for each in (first, second):
        assert "3 of 26 points, code c: `python -m steerloop.sweep frontier --models" in each
    write_results(points_of_two_sweeps, path)
    assert path.read_text() == text


def check_tables_without_a_place_are_at_the_end_until_they_have_one(points_of_two_sweeps):
    path = points_of_two_sweeps / "results.md"
    path.write_text(PAGE)
    assert write_results(points_of_two_sweeps, path) == {"barrier m test dirty": ["all"]}
    words, _, end = path.read_text().partition("## Not placed yet")
    assert "| slope per nat" in end and "| slope per nat" not in words
    assert path.read_text().count("do not edit") == 1

    path.write_text(path.read_text().replace("dirty coherence -->", "dirty opening_mass -->", 1))
    left = write_results(points_of_two_sweeps, path)
    assert left == {"frontier m test dirty": ["coherence"], "barrier m test dirty": ["all"]}
    assert "| coherence, dirty" in path.read_text().partition("## Not placed yet")[2]

    path.write_text(PAGE.replace("barrier m test filtered", "barrier m test dirty"))
    assert write_results(points_of_two_sweeps, path) == {}
    assert "Not placed" not in path.read_text() and path.read_text().endswith("Last words.\n")


def check_a_page_without_places_keeps_its_words(points_of_two_sweeps):
    path = points_of_two_sweeps / "results.md"
    path.write_text("# Results\n\nMy words.\n")
    for _ in range(2):
        left = write_results(points_of_two_sweeps, path)
        text = path.read_text()
        assert text.startswith("# Results\n\nMy words.\n") and text.count("do not edit") == 1
        assert left == {"frontier m test dirty": list(SHOWN), "barrier m test dirty": ["all"]}
        assert "**Ablation of the barrier" in text and text.count("<!-- end -->") == 2
    path.unlink()
    write_results(points_of_two_sweeps, path)
    assert path.read_text() == text.replace("\n\nMy words.", "")


@pytest.mark.parametrize("old, new, message", [
    ("an old table\n<!-- end -->", "an old table", "no '<!-- end -->'"),
    ("<!-- table: frontier m test dirty coherence -->\n", "", "without its '<!-- table"),
    ("dirty coherence", "dirty coherency", "no table of coherency; there are opening_mass"),
    ("barrier m test", "barriers m test", "is no place"),
    ("barrier m test filtered", "barrier m test", "is no place"),
])
def check_a_page_that_cannot_be_filled_stays_as_it_was(points_of_two_sweeps, old, new, message):
    path, page = points_of_two_sweeps / "results.md", PAGE.replace(old, new, 1)
    assert page != PAGE
    path.write_text(page)
    with pytest.raises(UserError, match=message):
        write_results(points_of_two_sweeps, path)
    assert path.read_text() == page
