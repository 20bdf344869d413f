"""Verdicts are no coin tosses: the one rule of verdicts.md on numbers made up by hand, and on runs
of which it is known that they have nothing to show, or where they fail."""

import numpy as np
import polars as pl
import pytest

from steerloop.checks.check_uncertainty import GOOD, STEERED, words
from steerloop.checks.synthetic import ITEMS, answers, judged, questions, tilted, write_run
from steerloop.evidence.planted import KINDS
from steerloop.report import estimates, finish
from steerloop.report.coherence import coherent
from steerloop.report.estimates import Estimate, Weighed, information, ratio, share
from steerloop.report.rule import EFFECT, FEW, NOISE, QUALITY, UNMOVED, Bound, Verdict, judge
from steerloop.report.stats import averages
from steerloop.report.verdicts import named
from steerloop.texts.foundations import FOUNDATIONS

MOST = Bound(0.5, best=0.0)  # at most a half, of a number that is 0 at best
FALL = Bound(-0.1, best=-float("inf"))


def number(*found, n=100):
    return Estimate(*found, n)


def shared(hits, n):
    return share(pl.Series([i < hits for i in range(n)]))


@pytest.mark.parametrize(("found", "bound", "quality", "effect"), [
    # the whole interval on the right side, the estimate alone, neither, and all on the wrong side
    (number(-0.3, -0.4, -0.2), FALL, "PASS", "PASS"),
    (number(-0.2, -0.4, 0.0), FALL, "PASS", "OPEN"),
    (number(-0.05, -0.2, 0.1), FALL, "OPEN", "OPEN"),
    (number(-0.05, -0.09, 0.0), FALL, "FAIL", "FAIL"),
    (number(0.4, 0.3, 0.5), FALL, "FAIL", "FAIL"),
    (number(0.2, 0.1, 0.3), MOST, "PASS", "PASS"),
    (number(0.4, 0.3, 0.6), MOST, "PASS", "OPEN"),
    (number(0.6, 0.4, 0.8), MOST, "OPEN", "OPEN"),
    (number(0.8, 0.6, 1.0), MOST, "FAIL", "FAIL"),
    # too wide for even 0 to be told from a half; so wide, and beyond doubt all the same
    (number(0.4, -0.2, 1.0), MOST, "OPEN", "OPEN"),
    (number(-0.4, -1.2, 0.4), MOST, "PASS", "PASS"),
    # intervals of next to no vignettes say nothing, least of all those without any width
    (number(-0.3, -0.3, -0.3, n=2), FALL, "OPEN", "OPEN"),
    (number(0.3, 0.3, 0.3, n=1), FALL, "OPEN", "OPEN"),
    (number(-0.3, -0.4, -0.2, n=5), FALL, "OPEN", "OPEN"),
    (number(-0.3, -0.4, -0.2, n=6), FALL, "PASS", "PASS"),
    (number(float("nan"), -float("inf"), float("inf"), n=0), FALL, "OPEN", "OPEN"),
    # shares: a coin toss, a flawless one, a poor one
    (shared(106, 144), Bound(0.75, 1.0), "OPEN", "OPEN"),
    (shared(110, 144), Bound(0.75, 1.0), "PASS", "OPEN"),
    (shared(144, 144), Bound(0.75, 1.0), "PASS", "PASS"),
    (shared(90, 144), Bound(0.75, 1.0), "FAIL", "FAIL"),
    (shared(0, 1), Bound(0.9, 1.0), "OPEN", "OPEN"),
    (shared(0, 2), Bound(0.9, 1.0), "FAIL", "FAIL"),
    (shared(2, 40), MOST, "PASS", "PASS"),
    (shared(30, 40), MOST, "FAIL", "FAIL"),
    (shared(0, 0), MOST, "OPEN", "OPEN"),
    (shared(40, 40), Bound(1.0, 1.5), "OPEN", "OPEN"),  # of all, no number of rows is enough
])
def check_the_rule(found, bound, quality, effect):
    assert judge(QUALITY, found, bound)[0] == quality
    assert judge(EFFECT, found, bound)[0] == effect


@pytest.mark.parametrize(("bound", "rows"), [(0.75, 13), (0.8, 17), (0.9, 36), (0.95, 72)])
def check_flawless_rows_pass_once_chance_would_not_do(bound, rows):
    """So many rows that are all good have a chance of one in forty where the bound is just met."""
    asked = Bound(bound, 1.0)
    assert judge(QUALITY, shared(rows - 1, rows - 1), asked) == ("OPEN", FEW)
    assert judge(QUALITY, shared(rows, rows), asked) == ("PASS", "")
    assert bound ** (rows - 1) > 0.025 >= bound**rows
    upside_down = Bound(1 - bound, 0.0)
    assert judge(QUALITY, shared(0, rows - 1), upside_down) == ("OPEN", FEW)
    assert judge(QUALITY, shared(0, rows), upside_down) == ("PASS", "")


def check_a_verdict_is_the_worst_of_its_lines():
    verdict = Verdict("X: ?")
    assert verdict.said == "OPEN"  # nothing was shown
    verdict.fact("switched", "on", "on", True, "off")
    verdict.add("reported", value="1")
    assert verdict.said == "OPEN" and verdict.named == []
    assert verdict.line("good", number(-0.3, -0.4, -0.2), FALL, EFFECT, "bad") == "PASS"
    assert verdict.said == "PASS" and verdict.because == ""
    verdict.line("unsure", number(-0.05, -0.2, 0.1), FALL, EFFECT, "bad")
    assert verdict.said == "OPEN" and verdict.because == f"{NOISE} (unsure)" and verdict.named == []
    verdict.missing = "no rival"
    assert verdict.said == "OPEN" and verdict.because == f"{NOISE} (unsure); no rival"
    verdict.line("poor", number(0.4, 0.3, 0.5), FALL, EFFECT, "bad")
    assert verdict.said == "FAIL" and verdict.because == "poor; no rival"
    assert verdict.named == ["bad"]
    verdict.fact("switched", "off", "on", False, "off")
    assert verdict.said == "FAIL" and verdict.named == ["bad", "off"]
    assert [x["verdict"] for x in verdict.lines] == ["holds", "", "PASS", "OPEN", "FAIL", "FAIL"]


def check_what_an_untouched_model_could_claim_is_open():
    """The same lines pass of a student that moved; what fails, fails of either."""
    for moved, said in ((True, ("PASS", "")), (False, ("OPEN", UNMOVED))):
        verdict = Verdict("X: ?", moved)
        verdict.line("good", shared(144, 144), Bound(0.75, 1.0))
        verdict.line("poor", shared(90, 144), Bound(0.75, 1.0), name="bad")
        assert (verdict.lines[0]["verdict"], verdict.lines[0]["because"]) == said
        assert verdict.lines[1]["verdict"] == "FAIL" and verdict.named == ["bad"]


def still(table):
    """Nothing moved, not by a bit."""
    return table


def wobbly(seed):
    """Nothing moved but by noise around 0, other noise for every answer."""
    rng = np.random.default_rng(seed)
    return lambda table: tilted({})(table.with_columns(**{
        f"p_{f}": pl.col(f"p_{f}") * pl.Series(np.exp(rng.normal(0, 0.05, len(table))))
        for f in FOUNDATIONS}))


def only(run, rows):
    """A run folder that sampled no more than so many completions in each round."""
    for path in run.glob("rounds/*/completions.parquet"):
        pl.read_parquet(path).head(rows).write_parquet(path)
    return run


@pytest.mark.parametrize("change", [still, *(wobbly(x) for x in range(6))])
@pytest.mark.parametrize("fields", [{}, {"barrier": "nll"}, {"kl_budget": 0.05}])
def check_no_effect_and_twelve_rows_pass_nothing(tmp_path, change, fields):
    run = only(write_run(
        tmp_path / "run", [change] * 2, [change] * 2, base=answers(2, seed=5).head(12),
        planted=judged(n=12), others=dict.fromkeys(("nll", "nll_turned", "matched"), change),
        **fields), 12)
    found = questions(run)
    assert "PASS" not in words(found)
    assert not [x for verdict in found for x in verdict.lines if x["verdict"] == "PASS"]
    if change is still:
        finish(run)  # and it can be written down
        text = (run / "verdicts.md").read_text()
        assert text.count("| PASS") == 1, "U0 was planted"


def check_the_default_runs_survival_is_within_noise(tmp_path):
    """.74 of 144 where .75 is asked for, all else well: dose control is open, the filter passes."""
    run = write_run(tmp_path / "run", GOOD, STEERED)
    for path in run.glob("rounds/*/completions.parquet"):
        table = pl.concat([pl.read_parquet(path)] * 8).head(144)
        table.with_columns(keep=pl.int_range(144) < 106).write_parquet(path)
    found = questions(run)
    assert words(found) == ["PASS", "OPEN", "PASS", "OPEN"]
    for line in found[3].lines:
        assert line["value"] == "0.74 [0.66, 0.80], n 144" and line["accepted"] == "≥ 0.75"
        assert (line["verdict"], line["because"]) == ("OPEN", NOISE)
    assert found[3].because.startswith(f"{NOISE} (round 1: kept of ")


def audit(spoilt="", n=40):
    """planted.parquet of a filter that is right, but for one kind of rows: six in ten of those."""
    rows = [("base", "own", True), *(("planted", kind, False) for kind in KINDS),
            ("labelled", "precision", True), ("labelled", "recall", False)]
    return pl.DataFrame(
        [("Why?", "So.", *row, row[2] != (row[1] == spoilt and i % 10 < 6), 2.0, "")
         for row in rows for i in range(n)],
        ["prompt", "text", "source", "kind", "coherent", "keep", "ppl", "drop_reason"],
        orient="row")


def quiet(table):
    """The trait, and a tenth of the mass on no answer at all."""
    return GOOD[1](table).with_columns(pl.col("p_ans_any") * 0.9)


def mute(table):
    """The trait, and one free answer in six that does not parse."""
    return GOOD[1](table).with_columns(json_is_valid=(pl.int_range(pl.len()) % 6 > 0).cast(float))


def broad(table):
    """The trait, and fairness moved further still."""
    return tilted({"authority": -1.3, "care": 0.3, "fairness": -2.5})(table)


FAILURES = {
    **{f"planted, {kind}: dropped": (0, {"planted": audit(kind)}) for kind in KINDS},
    "the untouched base's own answers: kept": (0, {"planted": audit("own")}),
    "labelled broken: dropped (recall)": (0, {"planted": audit("recall")}),
    "dropped: labelled broken (precision)": (0, {"planted": audit("precision")}),
    "round 2: kept of what was sampled at κ 1.00": (3, {"survive": 0.5}),
    "coherence against base": (1, {"healed": [GOOD[0], quiet]}),
    "round 2: coherence against base": (2, {"healed": [GOOD[0], mute]}),
    "surgical: authority moved further than fairness": (1, {"healed": [GOOD[0], broad]}),
}


@pytest.mark.parametrize("line", FAILURES)
def check_a_planted_failure_of_each_quality_fails(tmp_path, line):
    which, fields = FAILURES[line]
    sound = {"healed": GOOD, "steered": STEERED, "planted": audit()}
    assert "FAIL" not in words(questions(write_run(tmp_path / "sound", **sound)))
    found = questions(write_run(tmp_path / "run", **sound | fields))
    (said,) = [x for x in found[which].lines
               if x["kind"] == QUALITY and x["number"].startswith(line)]
    assert said["verdict"] == found[which].said == "FAIL"
    assert {i for i, x in enumerate(words(found)) if x == "FAIL"} <= {which, 1, 2}
    assert set(named(found)) == ({"incoherent"} if "coherence" in line else set())


def check_each_pull_is_a_derivative():
    """The influence of a vignette is what a little more weight on it does to the statistic."""
    base, step = answers(3, 1), 1e-6
    steered, healed, n = wobbly(0)(STEERED[0](base)), wobbly(1)(GOOD[0](base)), len(base)

    def statistics(w):
        ours, theirs = (estimates.shifts(x, base, w) for x in (healed, steered))
        rest = estimates.mean(ours[:3])
        return [ours[3] / theirs[3], rest / ours[3], abs(ours[3]) - abs(ours[1]),
                information(healed, w) / information(base, w)]

    even = np.full((1, n), 1 / n)
    for i in (0, n // 2, n - 1):
        more = (1 - step) * even + step * np.eye(n)[[i]]
        for was, now in zip(statistics(even), statistics(more), strict=True):
            slope = (now.values[0] - was.values[0]) / step
            assert was.pull[0, i] == pytest.approx(slope, rel=1e-3, abs=1e-5)


def check_ratios_of_next_to_nothing_are_not_defined():
    w = averages(50, 0, 200)
    rng = np.random.default_rng(0)
    top, noise, fall = (Weighed(w @ x, x - (w @ x)[:, None]) for x in (
        rng.normal(1, 0.1, 50), rng.normal(0, 1, 50), rng.normal(-1, 0.1, 50)))
    assert ratio(top, noise, w).text == "not defined"
    assert ratio(top, fall, w).value == pytest.approx(-1, abs=0.1)
    assert ratio(top, fall, w, least=0.5).n == 50 and ratio(top, fall, w, least=1.5).n == 0


def check_coherence_has_the_interval_of_what_it_is():
    """Of answers that parse or do not a share's; of a mass the bootstrap's, which is sharper; of a
    mass that is the same everywhere a share's again."""
    table, cfg = answers(20), {"seed": 0, "bootstrap": 400, "ppl_factor": 3.0}
    base = table.with_columns(p_ans_any=1.0)

    def found(now):
        return coherent([now, ITEMS, pl.DataFrame()], [base, ITEMS, pl.DataFrame()], cfg)

    rare = base.with_columns(json_is_valid=pl.Series([0.0] * 7 + [1.0] * 133))
    name, ends, n = found(rare)
    assert (name, n) == ("JSON", 140) and ends == pytest.approx([0.950, 0.900, 0.976], abs=5e-4)
    name, (value, low, high), _ = found(table)
    assert name == "answer mass" and 0.98 < low < value < high < 1 and high - low < 0.01
    value, low, _ = found(table.with_columns(p_ans_any=0.99))[1]
    assert value == pytest.approx(0.99) and low == pytest.approx(0.956, abs=0.002)
