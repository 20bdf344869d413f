"""verdicts.md calls a run what it is: made-up evaluations of known kinds, each with its verdict."""

import json
import math

import numpy as np
import polars as pl
import pytest

from steerloop.checks.synthetic import (
    answers,
    compare,
    judged,
    questions,
    replaced,
    tilted,
    write_run,
)
from steerloop.report import finish
from steerloop.report.__main__ import main
from steerloop.report.estimates import information
from steerloop.report.pages.site import judged as on_pages
from steerloop.report.rivals import PPL
from steerloop.report.run import beaten, gains, states
from steerloop.report.stats import averages
from steerloop.report.verdicts import NAMES, named, write_verdicts
from steerloop.texts.foundations import FOUNDATIONS

STEERED = [tilted({"authority": -1.6, "care": 0.4})] * 2
GOOD = [tilted({"authority": -0.8, "care": 0.2}), tilted({"authority": -1.3, "care": 0.3})]


def noise(table):
    """Answers that have nothing to do with their vignettes."""
    return replaced(table, np.random.default_rng(1).dirichlet(np.ones(7), len(table)))


def one_answer(table):
    """The same sure answer to everything, whatever was asked."""
    return replaced(table, np.full((len(table), 7), 0.02) + np.eye(7)[6])


def level(table):
    """One in seven for everything."""
    return replaced(table, np.ones((len(table), 7)))


def alike(table):
    """Every moral foundation loses the same share, to "no moral wrong"."""
    return tilted(dict.fromkeys(FOUNDATIONS[:-1], -3.0))(table)


def broken(table):
    """A trait, and one free answer in five that does not parse."""
    return GOOD[1](table).with_columns(
        json_is_valid=pl.Series([float(i % 5 > 0) for i in range(len(table))]))


def words(found):
    return [verdict.said for verdict in found]


def check_a_sound_run_passes_and_goes_by_no_name(tmp_path):
    worse = {"nll": lambda t: GOOD[1](t).with_columns(pl.col("json_is_valid") * 0.9)}
    worse["matched"] = worse["nll_turned"] = worse["nll"]
    found = questions(write_run(tmp_path / "run", GOOD, STEERED, worse))
    assert words(found) == ["PASS"] * 4 and named(found) == []


def check_without_baselines_the_second_verdict_is_open(tmp_path):
    found = questions(write_run(tmp_path / "run", GOOD, STEERED))
    assert words(found) == ["PASS", "OPEN", "PASS", "PASS"]
    assert "--baselines" in found[1].missing
    rival = questions(write_run(tmp_path / "nll", GOOD, STEERED, barrier="nll"))
    assert words(rival) == ["PASS", "OPEN", "PASS", "PASS"]
    assert "plain training" in rival[1].missing
    far = {"nll": tilted({"authority": -0.2}), "matched": GOOD[1]}
    met = questions(write_run(tmp_path / "far", GOOD, STEERED, far))
    assert met[1].said == "OPEN" and "one shift" in met[1].missing


ALMOST = pl.col("p_ans_any") * (1 - 2e-4)  # less coherent beyond doubt, and by less than matters


@pytest.mark.parametrize(("sharp", "word", "said"), [
    (False, "tie", "OPEN"),  # two items of ordinary text exclude nothing
    (True, "tie", "FAIL"),  # eighty do: there is no gain of the size that is asked for
    (True, "no", "FAIL"),
])
def check_beating_plain_training_is_part_of_the_second_verdict(tmp_path, sharp, word, said):
    """At one shift, with equal coherence, nothing is beaten, and whether that is known depends on
    the rows. A student that is worse has lost."""
    rival = {"tie": lambda t: GOOD[1](t).with_columns(ALMOST), "no": GOOD[1]}[word]
    ours = GOOD[1] if word == "tie" else lambda t: GOOD[1](t).with_columns(
        pl.col("p_ans_any") * 0.98)
    run = write_run(tmp_path / "run", [GOOD[0], ours], STEERED,
                    {"nll": rival, "nll_turned": rival, "matched": rival})
    for state in ("healed", "nll_turned", "matched") if sharp else ():
        noise = np.random.default_rng(len(state)).normal(0, 1e-4, 80)
        pl.DataFrame({"measure": "mundane_nll", "item": range(80), "value": 0.3 + noise}
                     ).write_parquet(run / f"rounds/01/{state}.items.parquet")
    verdict = questions(run)[1]
    (line,) = [x for x in verdict.lines if "plain distillation" in x["number"]]
    assert f"({word})" in line["number"]
    assert (line["verdict"], verdict.said) == (said, said)


@pytest.mark.parametrize(("step", "word", "said"), [(-0.2, "mixed", "FAIL"), (0.2, "yes", "PASS")])
def check_a_better_measure_does_not_make_up_for_a_worse_one(tmp_path, step, word, said):
    """More coherent than plain distillation; with worse ordinary text that is no win."""
    rival = {"nll": lambda t: GOOD[1](t).with_columns(pl.col("json_is_valid") * 0.9)}
    rival["matched"] = rival["nll_turned"] = rival["nll"]
    run = write_run(tmp_path / "run", GOOD, STEERED, rival)
    for state in ("healed", "nll_turned", "matched"):
        nll = np.linspace(0.3, 0.3 + len(state) / 1e3, 80) + step * (state != "healed")
        pl.DataFrame({"measure": "mundane_nll", "item": range(80), "value": nll}
                     ).write_parquet(run / f"rounds/01/{state}.items.parquet")
    (line,) = [x for x in questions(run)[1].lines if "plain distillation" in x["number"]]
    assert f"({word})" in line["number"] and line["verdict"] == said


UNDONE = [tilted({"authority": -0.05}), tilted({"authority": -0.02})]
CASES = {
    "undone": (UNDONE, {}, 1),
    "undoing": (GOOD[::-1], {}, 2),
    "reversed": ([tilted({"authority": 0.5})] * 2, {}, 1),
    "alike": ([alike] * 2, {}, 1),
    "inert barrier": (GOOD, {"heal": {"active": 0.004}}, 1),
    "incoherent": ([GOOD[0], broken], {}, 2),
    "filter off": (GOOD, {"filter": False}, 0),
    "over budget": (GOOD, {"kl_budget": 0.025}, 2),
}


@pytest.mark.parametrize("name", CASES)
def check_a_run_that_went_wrong_goes_by_its_name(tmp_path, name):
    healed, fields, which = CASES[name]
    found = questions(write_run(tmp_path / "run", healed, STEERED, **fields))
    assert name in named(found) and found[which].said == "FAIL"
    assert set(named(found)) <= {name, "incoherent", "unsaid"}  # and by no other


@pytest.mark.parametrize("answer", [noise, one_answer, level])
def check_a_collapse_is_called_one(tmp_path, answer):
    found = questions(write_run(tmp_path / "run", [GOOD[0], answer], STEERED))
    assert "collapsed" in named(found) and found[2].said == "FAIL"


def check_no_trait_and_no_steering_to_blame(tmp_path):
    still = [tilted({"authority": -0.03})] * 2
    found = questions(write_run(tmp_path / "run", still, still))
    assert named(found) == ["no trait"] and found[1].said == "FAIL"


def check_what_is_not_said_is_no_success(tmp_path):
    """Digits move as in a sound run, and the student's own answers show nothing of it."""
    run = write_run(tmp_path / "run", GOOD, STEERED)
    base = (run / "rounds/00/base.said.parquet").read_bytes()
    for path in run.glob("rounds/*/healed.said.parquet"):
        path.write_bytes(base)
    found = questions(run)
    assert not found[1].moved and "PASS" not in [x["verdict"] for x in found[1].lines[1:]]


@pytest.mark.parametrize(("up", "down", "word"), [(0.2, -0.3, []), (-0.1, -0.6, ["one-sided"]),
                                                  (0.5, 0.0, [])])
def check_a_shift_by_the_fall_of_the_other_side_is_called_that(tmp_path, up, down, word):
    """Read by contrast: both sides are reported, and a difference alone is not the trait."""
    run = write_run(tmp_path / "run", GOOD, STEERED)
    events = (run / "events.jsonl").read_text()
    (run / "events.jsonl").write_text(events.replace('"headline": "digits"',
                                                     '"headline": "contrast"'))
    rng = np.random.default_rng(0)
    for path in run.glob("rounds/*/*.items.parquet"):
        size = {"base": 0.0, "steered": 1.2, "healed": 1.0}[path.name.partition(".")[0]]
        sides = {"contrast_positive": size * up, "contrast_negative": size * down}
        rows = [(x, i, -2 + mean + rng.normal(0, 0.02)) for x, mean in sides.items()
                for i in range(24)]
        more = pl.DataFrame(rows, ["measure", "item", "value"], orient="row")
        pl.concat([pl.read_parquet(path), more]).write_parquet(path)
    found = questions(run)[1]
    assert found.moved and found.named == word
    said = {x["number"]: x["value"] for x in found.lines}
    assert f"{up:+.1f}" in said["contrast: care answers alone (nats per token)"]
    assert f"{down:+.1f}" in said["contrast: authority answers alone (nats per token)"].replace(
        "-0.0", "+0.0")


def check_the_filter_is_judged_by_what_is_known(tmp_path):
    for name, fields, at in (("missed", {"planted": judged(miss=0.3)}, 0),
                             ("false", {"planted": judged(false=0.3)}, 0),
                             ("starved", {"survive": 0.5}, 3)):
        found = questions(write_run(tmp_path / name, GOOD, STEERED, **fields))
        assert [i for i, x in enumerate(words(found)) if x == "FAIL"] == [at], name
    (recall,) = [x for x in questions(tmp_path / "missed")[0].lines if "recall" in x["number"]]
    assert recall["value"].startswith("0.70 [") and recall["value"].endswith("n 50")


def check_nothing_to_count_is_open(tmp_path):
    """No row at the κ that was taken, nothing dropped among the labelled: neither PASS nor FAIL."""
    run = write_run(tmp_path / "run", GOOD, STEERED, planted=judged().filter(
        ~((pl.col("source") == "labelled") & ~pl.col("coherent"))))
    for path in run.glob("rounds/*/completions.parquet"):
        pl.read_parquet(path).with_columns(kappa=pl.lit(0.5)).write_parquet(path)
    found = questions(run)
    lines = {x["number"]: x for verdict in found for x in verdict.lines}
    empty = [x for k, x in lines.items() if "recall" in k or "precision" in k or "kept of" in k]
    assert len(empty) == 4
    assert all(x["value"] == "of none" and x["verdict"] == "OPEN" for x in empty)
    assert words(found)[::3] == ["OPEN"] * 2


def parsing(share):
    """The trait, with every digit likely and this many free answers that do not parse."""
    return lambda table: GOOD[1](table).with_columns(
        p_ans_any=1.0, json_is_valid=pl.Series([float(i >= share) for i in range(len(table))]))


@pytest.mark.parametrize(("fails", "word"), [(2, "tie"), (20, "yes")])
def check_rare_differences_of_shares_are_ties(tmp_path, fails, word):
    """Two answers in 140 that parse for the student alone prove nothing; twenty do."""
    run = write_run(tmp_path / "run", [GOOD[0], parsing(0)], STEERED,
                    dict.fromkeys(("nll", "nll_turned", "matched"), parsing(fails)))
    assert {x["beaten"] for x in beaten(run, states(run)) if x["rival"] == "nll"} == {word}


def check_an_interrupted_run_is_judged_by_what_it_healed(tmp_path):
    """Cut off in its third round, after the steered state: the report judges the two before."""
    run = write_run(tmp_path / "run", GOOD, STEERED)
    (run / "rounds/02").mkdir()
    names = [f"steered.{x}.parquet" for x in ("eval", "items", "said")]
    for name in (*names, "completions.parquet"):
        (run / "rounds/02" / name).write_bytes((run / "rounds/01" / name).read_bytes())
    records = [json.loads(x) for x in (run / "events.jsonl").read_text().splitlines()]
    late = [x | {"round": 2} for x in records if x.get("round") == 1
            and (x["stage"] == "sample" or x.get("state") == "steered")]
    with (run / "events.jsonl").open("a") as file:
        file.write("".join(json.dumps(x) + "\n" for x in late))
    main([str(run)])
    assert words(questions(run)) == ["PASS", "OPEN", "PASS", "PASS"]
    assert len(json.loads((run / "summary.json").read_text())["healed"]) == 2


def check_the_directions_and_the_ledger_are_judged(tmp_path):
    turned = questions(write_run(tmp_path / "turned", GOOD, STEERED, cos=-0.1))
    assert turned[2].said == "FAIL" and named(turned) == ["turned"]
    within = questions(write_run(tmp_path / "within", GOOD, STEERED, kl_budget=0.05))
    (line,) = [x for x in within[2].lines if "KL to base" in x["number"]]
    assert (line["value"], line["accepted"], line["verdict"]) == ("0.0300", "≤ 0.05", "holds")
    assert "0.010" in within[2].reading[0] and "0.020" in within[2].reading[0]


def check_verdicts_md_and_summary_say_the_same(tmp_path):
    run = write_run(tmp_path / "run", UNDONE, STEERED)
    finish(run)
    text = (run / "verdicts.md").read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert [x["verdict"] for x in summary["verdicts"]] == ["PASS", "PASS", "FAIL", "OPEN", "PASS"]
    heads = [{k: x[k] for k in ("question", "verdict")} for x in summary["verdicts"]]
    assert on_pages(run) == heads
    assert pl.read_parquet(tmp_path / "ledger.parquet")["Dose"].to_list() == ["PASS"]
    for x in summary["verdicts"]:
        assert f"## {x['question']} {x['verdict']}" in text
    assert summary["named"] == [f"undone: {NAMES['undone']}"] and NAMES["undone"] in text
    lines = [x for x in text.splitlines() if "<b>" in x or "<i>" in x]
    assert lines and all(x.startswith("    ") for x in lines)  # completions stay code


def check_gains_are_paired_by_item(tmp_path):
    """Items that differ among themselves far more than between two states: the gain is sharp."""
    run = write_run(tmp_path / "run", GOOD, STEERED, {"matched": GOOD[1]})
    rng, ppl = np.random.default_rng(0), {}
    level = {k: rng.normal(1, 1, 50) for k in ("mundane_nll", "opening_mass")}
    for state, step in (("healed", 0.0), ("matched", 0.1)):
        values = {k: x + step + 0.01 * rng.normal(size=50) for k, x in level.items()}
        ppl[state] = math.exp(values["mundane_nll"].mean())
        pl.concat([pl.DataFrame({"measure": k, "item": range(50), "value": x})
                   for k, x in values.items()]).sample(fraction=1, shuffle=True, seed=1
                   ).write_parquet(run / f"rounds/01/{state}.items.parquet")
    found = states(run)
    gain = gains(run, found)
    base = found[0]["measures"]["ppl_mundane"]
    x, low, high = gain("healed", "matched", PPL)
    assert x == pytest.approx((ppl["matched"] - ppl["healed"]) / base) and 0 < low < x < high
    assert high - low < 0.1 * x
    x, low, high = gain("healed", "matched", "opening_mass")
    assert -0.11 < low < x < high < -0.09
    x, low, high = gain("healed", "matched", "coherence")
    assert x == 0 and low < 0 < high


def check_rounds_over_the_budget_are_not_shipped(tmp_path):
    for budget, best in ((0.0, 1), (0.025, 0), (0.01, None)):
        run = write_run(tmp_path / str(budget), GOOD, STEERED, kl_budget=budget)
        finish(run)
        assert json.loads((run / "summary.json").read_text())["best_round"] == best


def check_writing_the_verdicts_again_changes_nothing(tmp_path):
    run = write_run(tmp_path / "run", GOOD, STEERED)
    write_verdicts(run)
    first = (run / "verdicts.md").read_bytes()
    write_verdicts(run)
    assert (run / "verdicts.md").read_bytes() == first


def check_information_by_its_definition():
    table = answers(2, seed=3)
    p = table.select(f"p_{f}" for f in FOUNDATIONS).to_numpy()
    total = 0.0
    for row in p:
        for x, mean in zip(row, p.mean(0), strict=True):
            total += x * math.log(x / mean) / len(p)
    w = averages(len(table), 0, 10)
    assert information(table, w).values[0] == pytest.approx(total)
    assert information(level(table), w).values == pytest.approx(0, abs=1e-12)


def check_the_slope_is_coherence_per_nat():
    base = answers(4, seed=1)
    now = tilted({"authority": -1.0})(base).with_columns(pl.col("json_is_valid") * 0.9)
    found = compare(now, base, ["authority", "care"], 0, 200)
    shift = found["shift"]["authority"]["nats"][0]
    wanted = (0.9 - 1.0) / -shift
    assert found["slope"][0] == pytest.approx(wanted)
    assert found["slope"][1] < wanted < found["slope"][2]
    assert compare(base, base, ["authority", "care"], 0, 50)["slope"] is None
