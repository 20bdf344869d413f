"""Coherence is read by what the base itself can do; each case is planted."""

import math
from dataclasses import asdict

import polars as pl
import pytest

from steerloop.checks.synthetic import ITEMS, answers
from steerloop.config import Config
from steerloop.evidence.bounds import Bounds
from steerloop.report.coherence import canaries, coherence, coherent, doubts, side_by_side

CFG = Config()
N = 48


def frames(table=None, kept=1.0, ppl=2.0):
    """A state: its vignettes, and N answers of which the filter keeps such a share."""
    reasons = [None if i < round(kept * N) else "loops" for i in range(N)]
    said = pl.DataFrame({"prompt_id": range(N), "ppl": [ppl] * N, "drop_reason": reasons},
                        schema_overrides={"drop_reason": pl.String})
    return [answers(5) if table is None else table, ITEMS, said]


def check_canaries_are_those_that_the_base_can_sing():
    table = answers(5)
    for base, names in (
        (table, ["answer mass", "JSON", "kept"]),
        (table.with_columns(top1=pl.int_range(pl.len()) % 7 == 0).cast({"top1": pl.Float64}),
         ["JSON", "kept"]),  # digits at chance
        (table.with_columns(json_is_valid=0.4), ["answer mass", "kept"]),
        (table.with_columns(json_is_valid=0.0), ["answer mass", "kept"]),
        (table.with_columns(json_is_valid=0.0, top1=0.0), ["kept"]),
        (pl.DataFrame(), ["kept"]),  # a trait without vignettes
    ):
        assert list(canaries(frames(base), 3.0)) == names
    assert list(canaries([pl.DataFrame(), ITEMS, pl.DataFrame()], 3.0)) == []


@pytest.mark.parametrize(("now", "name", "share"), [
    (frames(), "answer mass", 1.0),
    (frames(answers(5).with_columns(pl.col("p_ans_any") * 0.8)), "answer mass", 0.8),
    (frames(answers(5).with_columns(json_is_valid=0.6)), "JSON", 0.6),
    (frames(kept=0.75), "kept", 0.75),
    (frames(ppl=7.0), "kept", 0.0),  # beyond three times what the base's own answers have
])
def check_the_canary_that_sings_last_counts(now, name, share):
    base = frames()
    assert coherence(now, base, 3.0) == pytest.approx(share)
    found, (value, low, high), _ = coherent(now, base, asdict(CFG))
    assert value == pytest.approx(share) and 0 <= low <= value <= high <= 1
    assert share == 1 or found == name
    assert Bounds(CFG, base).holds(now) == (high >= 0.9)


def check_a_low_base_is_its_own_measure():
    """What the filter keeps of a weak model is held against what it keeps of its base."""
    low = [pl.DataFrame(), *frames(kept=0.5)[1:]]
    half = [pl.DataFrame(), *frames(kept=0.25)[1:]]
    assert coherence(low, low, 3.0) == 1 and coherence(half, low, 3.0) == pytest.approx(0.5)
    assert "50%" in doubts(low, vars(CFG)) and "--coh_floor" in doubts(low, vars(CFG))
    assert doubts(frames(), vars(CFG)) == ""


def check_without_a_canary_nothing_is_known_and_it_is_said():
    none = [pl.DataFrame(), ITEMS, pl.DataFrame()]
    assert math.isnan(coherence(none, none, 3.0)) and coherent(none, none, asdict(CFG))[2] == 0
    assert "no canary" in doubts(none, vars(CFG)) and Bounds(CFG, none).holds(none)


def check_states_are_held_side_by_side_by_one_canary():
    """Each state's own last canary is another one: what is compared is the same of both."""
    base, mass = frames(), frames(answers(5).with_columns(pl.col("p_ans_any") * 0.8))
    few = frames(kept=0.5)
    for one, other in ((mass, few), (few, mass)):
        found = side_by_side([(one, base), (other, base)], 3.0)
        shares = {round(now.mean() / was.mean(), 6) for now, was in found}
        assert shares == {0.5, 1.0} and all(len(x) == N for pair in found for x in pair)
    nothing = [pl.DataFrame(), ITEMS, pl.DataFrame()]
    assert side_by_side([(base, base), (nothing, nothing)], 3.0) == []
