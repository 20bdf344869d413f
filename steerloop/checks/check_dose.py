"""The iso-KL dose is where the dense KL crosses its target; the walk finds the largest scale that
survives; out of reach or starved, one clear line, and what was written stays."""

import json
import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steerloop import UserError, train
from steerloop.checks.many import nf4_is_long
from steerloop.checks.small import data_files, short_run, small_config
from steerloop.checks.twins import dense_kl, row_logits
from steerloop.config import Config
from steerloop.dose import WALK, ask, choose, dose, kl_by_dose, short, walk
from steerloop.evidence.bounds import FIRST, Bounds, floor_of
from steerloop.filter import filter
from steerloop.kernels.search import LEAST, bisected, crossing, meeting
from steerloop.sample import in_flight, jobs, sample
from steerloop.texts.data import read_data
from steerloop.texts.foundations import FOUNDATIONS

CURVES = {
    "power": lambda x: 0.7 * x**1.7,
    "saturating": lambda x: 8 * x**2 / (3 + x**2),
    "falls again": lambda x: 4 * x**2 * math.exp(-x / 2) + 1e-3,
    "two bumps": lambda x: 2 * x * math.exp(-x) + max(0, x - 6) ** 2 + 1e-6,
}


def first_crossing(f, target):
    """The smallest x with f(x) ≥ target on a dense grid."""
    grid = np.geomspace(1e-4, 1e4, 200_001)
    return next(x for x in grid if f(x) >= target)


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("target", [0.05, 0.3, 0.7])
def check_crossing_is_the_first_of_a_dense_grid(name, target):
    f, calls = CURVES[name], []

    def batch(points):
        calls.append(points)
        return [f(x) for x in points]

    assert crossing(batch, target, "hint") == pytest.approx(first_crossing(f, target), rel=0.01)
    assert len(calls) <= 4


@given(root=st.floats(1e-4, 1e4), target=st.floats(0.01, 100), power=st.floats(0.5, 3))
def check_crossing_of_a_power_law_is_exact(root, target, power):
    found = crossing(lambda xs: [target * (x / root) ** power for x in xs], target, "hint")
    assert found == pytest.approx(root, rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 5.0])
def check_crossing_out_of_reach_says_so(value):
    calls = []
    with pytest.raises(UserError, match="look here"):
        crossing(lambda xs: calls.append(xs) or [value] * len(xs), 1.0, "look here")
    assert len(calls) == 3  # a fourth is left for what is inside a bracket


def largest(ok, low, high, calls):
    """The largest x in [low, high] seen to be ok, each bisection asked as soon as it is known."""
    answers = []
    while True:
        x, settled = bisected(answers, low, high, calls)
        if settled:
            return x
        answers.append(ok(x))


@given(power=st.floats(0.5, 3), high=st.floats(0.01, 100), start=st.floats(-2, 2),
       size=st.floats(0.01, 10), share=st.floats(0.02, 1.5))
def check_meeting_comes_to_a_goal_that_is_within_reach(power, high, start, size, share):
    """Of any power in a few calls, of a straight line in two; never above `high`."""
    seen = []

    def f(x):
        seen.append(x)
        return start + size * (x / high) ** power

    goal = start + share * size
    found = meeting(f, start, goal, high, 12, close := 0.02 * (goal - start))
    assert 0 < found <= high and all(0 < x <= high for x in seen) and len(seen) <= 12
    if share >= 1:
        assert found == high and seen == [high]
    else:
        assert abs(f(found) - goal) <= 1.001 * close
        line = meeting(lambda x: start + size * x / high, start, goal, high, 2, close)
        assert line == pytest.approx(share * high, rel=0.021)
    assert meeting(f, start, start, high, 12, 0.0) == LEAST * high


def check_meeting_takes_the_nearest_of_what_it_saw():
    """A staircase, as of answers that change a token at a time."""
    for goal in np.linspace(0.05, 0.95, 19):
        seen = {}
        found = meeting(lambda x: seen.setdefault(x, np.ceil(7 * x) / 7), 0.0, goal, 1.0, 8, 0.0)  # noqa: B023
        assert abs(seen[found] - goal) == min(abs(y - goal) for y in seen.values()) <= 1 / 7


@given(edge=st.floats(0.01, 2), calls=st.integers(1, 12))
def check_largest_closes_in_on_the_edge_from_below(edge, calls):
    seen = []

    def ok(x):
        seen.append(x)
        return x <= edge

    found = largest(ok, 0.1, 1.0, calls)
    assert len(seen) <= calls and all(0.1 <= x <= 1 for x in seen)
    if edge >= 1:
        assert found == 1.0 and seen == [1.0]
    elif edge < 0.1:
        assert found == 0.1
    else:
        assert found <= edge and found in (0.1, *seen)
        gap = 10 ** (0.5 ** (calls - 1))  # the first call looks at 1, each other halves the rest
        assert edge <= found * gap * (1 + 1e-9)


@pytest.fixture
def case(small, tmp_path):
    """A small model with its data, a vector, and settings under which a round is quick."""
    s = small(
        **data_files(tmp_path), dose_tokens=10, dose_prompts=3, n_keep=6, walk_rows=6,
        ppl_factor=1e6, max_repeat=1.0, max_echo=1.0, max_loop=1.0, min_zip=0.0, min_tokens=1,
        filter=False,
        batch_rows=32, multiples=[0.5, 1.0], runs=str(tmp_path / "runs"), steer_blocks=[2, 3],
    )
    return s, read_data(s.cfg), s.vector(size=0.5)


def check_kl_by_dose_is_the_dense_kl_of_the_rollouts(case):
    s, data, vector = case
    doses = [0.0, 0.5, 2.0]
    found, bare = kl_by_dose(s.model, vector, data, doses, s.cfg, "0"), s.bare()
    rollouts = sample(s.model, jobs(s.model, data.prompts, doses), vector,
                      replace(s.cfg, max_new_tokens=10), "0|dose")
    assert found["dose"].to_list() == doses
    for size, p95, mean in found.select("dose", "p95", "mean").rows():
        kls = []
        for p, c in rollouts.filter(dose=size).select("prompt_ids", "completion_ids").rows():
            at = slice(len(p) - 1, len(p) + len(c) - 1)
            additions = {b: size * v for b, v in vector.items()}
            steered, plain = (row_logits(bare, p + c, x)[at].log_softmax(-1)
                              for x in (additions, None))
            kls += dense_kl(steered, plain).tolist()
        assert p95 == pytest.approx(np.quantile(kls, 0.95), rel=1e-3, abs=1e-5)
        assert mean == pytest.approx(np.mean(kls), rel=1e-3, abs=1e-5)
        assert (size == 0) == (p95 < 1e-5)


def check_solve_lands_on_the_target(case):
    s, data, vector = case
    c_star, curve = dose(s.model, vector, data, s.cfg, "0")
    assert curve["dose"].is_sorted() and curve["dose"].min() < c_star < curve["dose"].max()
    below = curve.filter(pl.col("dose") < c_star)["p95"].max()
    at = kl_by_dose(s.model, vector, data, [c_star], s.cfg, "0")["p95"][0]
    assert below < s.cfg.target_kl
    assert at == pytest.approx(s.cfg.target_kl, rel=0.6)  # rollouts move with the dose
    twice, _ = dose(s.model, {b: 2 * v for b, v in vector.items()}, data, s.cfg, "0")
    assert twice == pytest.approx(c_star / 2, rel=0.3)  # the unit of the vector does not matter


def check_a_vector_that_does_nothing_has_no_dose(case):
    s, data, vector = case
    with pytest.raises(UserError) as failure:
        dose(s.model, {b: 0 * v for b, v in vector.items()}, data, s.cfg, "0")
    assert "\n" not in str(failure.value) and "--steer_blocks" in str(failure.value)


def collected(case, cfg, limit, most=1.0, judge=filter):
    """All rows of a round and κ, at c* = 1, as the loop gets them."""
    (s, data, vector), batches, kappas = case, [], (cfg.kappa_min, most)
    while short(batches, kappas, cfg):
        asked, stage = ask(s.model, data, cfg, batches, 1.0, kappas)
        drawn = sample(s.model, asked, vector, cfg, f"0|{stage}")
        batches.append(judge(s.model, drawn, data, cfg, limit))
    return choose(batches, kappas, cfg)


def check_collecting_keeps_every_survivor(case):
    s, _, _ = case
    cfg = replace(s.cfg, survival=0.1, n_keep=10)  # two batches: a random model ends some at once
    table, kappa = collected(case, cfg, math.inf)
    train_rows = table.filter("train")
    assert kappa == 1.0 and len(train_rows) == cfg.n_keep and train_rows["keep"].all()
    assert table["keep"].sum() >= cfg.n_keep
    assert set(table["dose"]) <= {0.5, 1.0}
    keys = table.select("prompt_id", "dose", "copy").rows()
    assert len(set(keys)) == len(keys)  # no row is sampled twice


def check_rounding_changes_no_draw(case):
    """An adapter that differs in the seventh digit: the same c*, the same draws of every row, and
    (where a probability was not hit to seven digits) the same tokens."""
    s, data, vector = case
    found = []
    for size in (1.0, 1.0 + 1e-6):
        for layer in s.model.layers.values():
            layer.live_B.data.fill_(0.01 * size)
        c_star, _ = dose(s.model, vector, data, s.cfg, "0")
        asked, _ = ask(s.model, data, s.cfg, [], c_star, (0.2, 1.0))
        rows = in_flight(s.model, asked, s.cfg, "0|walk")
        drawn = sample(s.model, asked, vector, s.cfg, "0|walk")
        first = [ids[0] for ids in drawn["completion_ids"]]
        found.append((c_star, asked["dose"].to_list(), rows.draws.tolist(), first))
    assert found[0] == found[1]
    assert c_star == float(f"{c_star:.3g}")
    nearly = asked.with_columns(pl.col("dose") * (1 + 1e-6))
    assert torch.equal(in_flight(s.model, nearly, s.cfg, "0|walk").draws, rows.draws)


def check_the_walk_lowers_the_dose_until_enough_survive(case):
    s, _, _ = case

    def judged(model, table, *_):
        keep = (pl.col("dose") <= 0.3).alias("keep")
        why = pl.when(pl.col("dose") > 0.3).then(pl.lit("improbable")).alias("drop_reason")
        return table.with_columns(keep, why)

    table, kappa = collected(case, s.cfg, 1.0, judge=judged)
    assert 0.2 <= kappa <= 0.3 and kappa > 0.25  # both doses κ/2 and κ survive from .3 down
    assert table.filter("train")["dose"].max() <= 0.3
    assert table.filter(pl.col("kappa") < 1)["dose"].max() < 1


@given(edge=st.floats(0.05, 2), most=st.floats(0.3, 1))
def check_the_walk_is_the_search_replayed(edge, most):
    """What κ comes next follows from the judged batches alone, so that a run can go on anywhere."""
    cfg, batches = Config(kappa_min=0.2, survival=0.5), []
    for _ in range(WALK):
        kappa, settled = walk(batches, (0.2, most), cfg)
        if settled:
            break
        batches.append(pl.DataFrame({"keep": [kappa <= edge] * 4}))
    assert walk(batches, (0.2, most), cfg)[1]
    assert walk(batches, (0.2, most), cfg)[0] == largest(lambda x: x <= edge, 0.2, most, WALK)
    later = [*batches, pl.DataFrame({"keep": [False]})]  # sampled once it is settled
    assert walk(later, (0.2, most), cfg) == walk(batches, (0.2, most), cfg)


CURVE = pl.DataFrame({"dose": [0.5, 0.9, 4.0], "mean": [0.01, 0.04, 1.0], "p95": [0.1, 0.2, 3.0]})


def bounded(case, coherence=1.0, **fields):
    """Bounds under a config with these fields, from a base so coherent."""
    return Bounds(replace(case[0].cfg, **fields), measured(coherence))


def measured(coherence, n=400):
    """What `evaluate` gives for a state whose n answers have so much mass on the digits."""
    rows = {f"p_{f}": [1 / 7] * n for f in FOUNDATIONS} | {
        "vignette": list(map(str, range(n))), "p_ans_any": [coherence + 1e-4 * (-1) ** i
                                                            for i in range(n)],
        "json_is_valid": [1.0] * n, "top1": [1.0] * n, "scaffold_nll": [0.0] * n}
    return [pl.DataFrame(rows), pl.DataFrame(), pl.DataFrame()]


def check_the_floor_is_a_share_of_the_base(case):
    for base in (0.99, 0.7, 0.3):
        bounds = bounded(case, base)
        assert floor_of(bounds.cfg) == pytest.approx(0.9)
        assert bounds.holds(measured(0.905 * base)) and not bounds.holds(measured(0.895 * base))


def check_a_loop_stops_on_evidence_not_on_noise(case):
    """Five in six answers parse: of six that may be chance, of 600 it is not."""
    for n, goes_on in ((6, True), (600, False)):
        now, base = measured(0.99, n), measured(0.99, n)
        now[0] = now[0].with_columns(json_is_valid=pl.Series([float(i % 6 > 0) for i in range(n)]))
        assert Bounds(case[0].cfg, base).holds(now) == goes_on


def check_a_held_dose_is_kappa_1_until_the_budget_is_spent(case):
    bounds = bounded(case, kl_budget=0.02)
    assert bounds.allows(0.9, None) == (1.0, 1.0)
    bounds.book(1.0, {"kl_base": 0.019})
    assert bounds.allows(0.9, None) == (1.0, 1.0)
    bounds.book(1.0, {"kl_base": 0.021})
    assert bounds.allows(0.9, None) is None
    assert bounded(case).allows(0.9, None) == (1.0, 1.0)


@pytest.mark.parametrize(("budget", "spent", "kappa"), [
    (0.0, 0.0, 1.0), (0.0, 9.0, 1.0),  # no budget
    (10.0, 0.0, 1.0),  # more than the teacher has
    (0.09, 0.01, 0.5), (0.16, 0.04, 0.5),  # .04 are left either way, the KL at .9
    (0.04, 0.01, 0.5 / 1.8), (0.02, 0.0, (0.45 ** 0.5) / 1.8),  # the KL at .5; halfway in logs
    (0.01, 0.0025, 0.25 / 1.8),  # .0025: a quarter of the KL at half of the least dose
    (0.09, 0.09, None), (0.09, 0.16, None),
])
def check_the_allowance_adds_roots_of_kl(case, budget, spent, kappa):
    """At κ = 1 the largest dose is 2 · .9; the curve is read log in log, first crossings count."""
    bounds = bounded(case, kl_budget=budget, multiples=[1.0, 2.0], kappa_min=0.1)
    bounds.spent, bounds.shares = spent, [1.0]
    assert bounds.allows(0.9, CURVE) == (
        None if kappa is None else (0.1, pytest.approx(kappa, abs=1e-6)))


def check_a_ledger_learns_what_a_student_takes(case):
    square = pl.DataFrame({"dose": [4.0, 0.9], "mean": [0.04 * (4 / 0.9) ** 2, 0.04]})
    bounds = bounded(case, kl_budget=0.09, multiples=[1.0, 2.0])  # the teacher's root is .4 κ

    def most():
        return bounds.allows(0.9, square)[1]

    assert most() == pytest.approx(0.3 / (FIRST * 0.4))
    bounds.book(0.5, {"kl_base": -1e-9})  # nothing was learnt: no share to go by
    assert bounds.spent == 0 and most() == pytest.approx(0.3 / (FIRST * 0.4))
    bounds.book(0.5, {"kl_base": 0.01})  # half of the teacher's root
    assert most() == pytest.approx((0.3 - 0.1) / (0.5 * 0.4))
    bounds.book(1.0, {"kl_base": 0.0121})  # less from now on: the most of any round counts
    assert most() == pytest.approx((0.3 - 0.11) / (0.5 * 0.4))
    free = bounded(case, kl_budget=0.0)
    free.book(1.0, {"kl_base": 0.5})
    assert free.allows(0.9, square) == (0.2, 1.0)


def check_a_budget_too_small_for_a_round_says_so(case):
    with pytest.raises(UserError, match="--kl_budget 1e-06 is too little") as failure:
        bounded(case, kl_budget=1e-6).allows(0.9, CURVE)
    assert "\n" not in str(failure.value)
    enough = float(str(failure.value).partition("raise it to ")[2].partition(",")[0])
    assert bounded(case, kl_budget=enough).allows(0.9, CURVE)[1] >= 0.2


def check_the_walk_starts_at_the_allowance(case):
    cfg = replace(case[0].cfg, survival=0.1)
    table, kappa = collected(case, cfg, math.inf, most=0.6)
    assert kappa == 0.6 and table["dose"].max() == pytest.approx(0.6)


@pytest.mark.long
def check_a_run_stops_when_its_budget_is_spent(folders, tmp_path):
    """With a budget of what one round spends: a smaller κ, fewer rounds, and no round over it is
    shipped."""
    found = {}
    for budget in (0.0, 0.02):
        run = short_run(tmp_path, small_config(folders(), quant="none"), runs=str(budget), lr=3e-2,
                        kl_budget=budget, coh_drop=1.0)
        events = [json.loads(x) for x in (run / "events.jsonl").read_text().splitlines()]
        spent = [e["kl_base"] for e in events if e["stage"] == "drift"]
        kappas = [e["kappa"] for e in events if e["stage"] == "sample"]
        found[budget] = kappas, spent, json.loads((run / "summary.json").read_text())
    assert len(found[0.0][1]) == 2 and not found[0.0][2]["stopped_early"]
    kappas, spent, summary = found[0.02]
    assert kappas[0] < found[0.0][0][0] and len(spent) < 2 and summary["stopped_early"]
    assert summary["best_round"] not in {i for i, x in enumerate(spent) if x > 0.02}


def check_a_starved_filter_names_counts_and_remedy(case):
    cfg = replace(case[0].cfg, filter=True, budget=3.0)
    with pytest.raises(UserError) as failure:
        collected(case, cfg, 0.0)
    said = str(failure.value)
    assert "\n" not in said and "0 of " in said and "6 needed" in said and "improbable" in said
    assert "--target_kl" in said and "--n_keep" in said


@nf4_is_long
def check_what_a_starved_run_wrote_stays(case, tmp_path, capsys):
    s, _, _ = case
    cfg = s.cfg
    flags = [x for k, v in (vars(cfg) | {"ppl_factor": 1e-9, "target_kl": 0.5}).items()
             if not isinstance(v, bool) and v not in ("", []) and "lora_b" not in k
             and "steer_b" not in k
             for x in (f"--{k}", *(map(str, v) if isinstance(v, list) else [str(v)]))]
    flags += ["--lora_blocks", "1", "2", "--steer_blocks", "2", "3"]
    with pytest.raises(SystemExit) as stop:
        train.main(flags)
    assert "starved" in str(stop.value.code) and "Traceback" not in capsys.readouterr().err
    (run,) = (tmp_path / "runs").iterdir()
    stages = [json.loads(x)["stage"] for x in (run / "events.jsonl").read_text().splitlines()]
    assert stages == ["config", "axis", "evaluate", "start", "u0"]
    assert json.loads((run / "config.json").read_text())["config"]["ppl_factor"] == 1e-9
    assert len(pl.read_parquet(run / "rounds/00/base.eval.parquet")) == 3
    assert not list(run.rglob("*.part")) and torch.is_grad_enabled()
