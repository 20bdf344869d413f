"""Reported numbers are what their names say: measures by formula, intervals by a slow bootstrap,
pairs only of the same vignettes."""

import json
import math

import numpy as np
import polars as pl
import pytest

from steerloop.kernels.forced_choice import FOUNDATIONS
from steerloop.report import finish, measures, run_table, survival
from steerloop.report.ledger import ledger
from steerloop.report.stats import shifts


def rows(n, seed, names=None):
    """A table as `choices` returns it, with random probabilities."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(7), n)
    return pl.DataFrame(
        {"vignette": names or [f"v{i}" for i in range(n)], "foundation": ["care"] * n}
        | {f"p_{f}": p[:, i] for i, f in enumerate(FOUNDATIONS)}
        | {"p_ans_any": rng.uniform(0.7, 1, n), "scaffold_nll": rng.uniform(0, 1, n),
           "json_is_valid": rng.integers(0, 2, n).astype(float), "top1": rng.uniform(0, 1, n)})


ITEMS = pl.DataFrame({"measure": ["mundane_nll"] * 2 + ["validity"] * 3, "item": [0, 1, 0, 1, 2],
                      "value": [0.2, 0.4, 1.0, 0.5, 0.0]})


def check_measures_by_formula():
    table = rows(9, 0)
    found = measures(table, ITEMS)
    for f in FOUNDATIONS:
        assert found[f"{f}_nats"] == pytest.approx(math.log(sum(table[f"p_{f}"]) / 9))
    assert found["coherence"] == pytest.approx(
        min(sum(table["p_ans_any"]) / 9, sum(table["json_is_valid"]) / 9))
    assert found["ppx_json"] == pytest.approx(math.exp(sum(table["scaffold_nll"]) / 9))
    assert found["ppl_mundane"] == pytest.approx(math.exp(0.3))
    assert found["validity"] == pytest.approx(0.5) and "mundane_nll" not in found
    assert found["top1"] == pytest.approx(sum(table["top1"]) / 9)


def slow_shifts(now, base, seed, resamples):
    """Estimate and 95 % interval of every foundation's shift, one resample at a time."""
    n, generator = len(now), np.random.default_rng(seed)
    draws = generator.integers(0, n, (resamples, n))

    def shift(at):
        nats = []
        for f in FOUNDATIONS:
            mean = [sum(x[f"p_{f}"][int(i)] for i in at) / n for x in (base, now)]
            nats.append(math.log(mean[1]) - math.log(mean[0]))
        centre = sum(nats) / 7
        return nats, [x - centre for x in nats]

    first, others, out = shift(range(n)), [shift(at) for at in draws], {}
    for i, f in enumerate(FOUNDATIONS):
        out[f] = {
            kind: [first[k][i], *np.quantile([x[k][i] for x in others], [0.025, 0.975])]
            for k, kind in enumerate(("nats", "clr"))}
    return out


def check_shifts_are_their_slow_twin():
    base, now = rows(8, 1), rows(8, 2)
    found, wanted = shifts(now, base, 3, 40), slow_shifts(now, base, 3, 40)
    for f in FOUNDATIONS:
        for kind in ("nats", "clr"):
            assert found[f][kind] == pytest.approx(wanted[f][kind], abs=1e-9)
            assert found[f][kind][1] < found[f][kind][0] < found[f][kind][2]
    assert sum(found[f]["clr"][0] for f in FOUNDATIONS) == pytest.approx(0, abs=1e-9)
    assert shifts(now, base, 3, 40) == found != shifts(now, base, 4, 40)


def check_pairing_takes_out_what_vignettes_share():
    """A shift that is the same on every vignette has no width, however much vignettes differ."""
    base = rows(30, 5)
    half = base.with_columns(pl.col("p_authority") / 2)
    found = shifts(half, base, 0, 200)["authority"]["nats"]
    assert found == pytest.approx([math.log(0.5)] * 3)
    assert shifts(base, base, 0, 50)["care"]["nats"] == [0, 0, 0]


def check_other_vignettes_are_refused():
    base, names = rows(4, 1), ["v0", "v1", "v3", "v2"]
    for now in (rows(4, 2, names), rows(3, 2)):
        with pytest.raises(ValueError, match="vignettes"):
            shifts(now, base, 0, 10)


def check_survival_counts_by_dose():
    table = pl.DataFrame({"dose": [1.0, 1.0, 2.0, 2.0, 2.0],
                          "keep": [True, False, False, False, True],
                          "drop_reason": [None, "loops", "loops", "loops", None]})
    low, high = survival(table)
    assert (low["dose"], low["n"], low["kept"]) == (1.0, 2, 0.5)
    assert (high["dose"], high["n"], high["kept"]) == (2.0, 3, pytest.approx(1 / 3))
    assert high["reasons"] == [{"drop_reason": "loops", "count": 2}]


CONFIG = {"model": "m", "barrier": "kl_rev", "agg": "rmse", "ref": "base", "lam": 1.0,
          "lam_pow": 0.0, "tau": 0.2, "lr": 0.1, "epochs": 1, "filter": True, "multiples": [1.0],
          "rounds": 2, "seed": 0, "split": "dev", "bootstrap": 30}


def written_run(folder, coherence=(0.99, 0.99), down=(0.5, 0.8)):
    """A run folder by hand: base, then two rounds whose authority is base's times a factor."""
    (folder / "rounds/00").mkdir(parents=True)
    (folder / "rounds/01").mkdir()
    (folder / "config.json").write_text(json.dumps({"schema": 1, "config": CONFIG}))
    base = rows(6, 0).with_columns(p_ans_any=0.99, json_is_valid=1.0)
    events = [("evaluate", {"round": 0, "state": "base", "dose": 0.0}, base)]
    for round, (factor, level) in enumerate(zip(down, coherence, strict=True)):
        now = base.with_columns(pl.col("p_authority") * factor, json_is_valid=level)
        events.append(("evaluate", {"round": round, "state": "healed", "dose": 0.0}, now))
    records = [{"stage": "start", "axis": ["authority", "care"], "floor": 0.95, "ppl_limit": 9.0}]
    for stage, event, table in events:
        table.write_parquet(folder / f"rounds/{event['round']:02d}/{event['state']}.eval.parquet")
        records.append({"stage": stage, **event, "measures": measures(table, ITEMS)})
    (folder / "events.jsonl").write_text("".join(json.dumps(x) + "\n" for x in records))


def check_a_summary_names_the_best_coherent_round(tmp_path):
    for name, coherence, down, best in (("a", (0.99, 0.99), (0.5, 0.8), 0),
                                        ("b", (0.9, 0.99), (0.5, 0.8), 1),
                                        ("c", (0.5, 0.5), (0.5, 0.8), None)):
        written_run(tmp_path / name, coherence, down)
        finish(tmp_path / name)
        found = json.loads((tmp_path / name / "summary.json").read_text())
        assert found["best_round"] == best and found["stopped_early"] is False
        assert found["healed"][0]["shift"]["authority"]["nats"][0] == pytest.approx(math.log(0.5))
    table = pl.read_parquet(tmp_path / "ledger.parquet")
    assert table["run"].to_list() == ["a", "b", "c"]
    assert table["down"].to_list() == pytest.approx([math.log(0.8)] * 3)
    assert table["ppl_ratio"].to_list() == pytest.approx([1.0] * 3)


def check_the_ledger_is_rebuilt_from_all_runs(tmp_path):
    assert ledger(tmp_path).is_empty()
    for name in ("a", "b"):
        written_run(tmp_path / name)
        finish(tmp_path / name)
    (tmp_path / "ledger.parquet").unlink()
    finish(tmp_path / "a")
    assert pl.read_parquet(tmp_path / "ledger.parquet")["run"].to_list() == ["a", "b"]


def check_the_run_table_has_a_line_for_every_state(tmp_path):
    written_run(tmp_path / "a")
    table = run_table(tmp_path / "a").splitlines()
    cells = [[x.strip() for x in line.strip("|").split("|")] for line in table[2:]]
    assert [(c[0], c[1]) for c in cells] == [("0", "base"), ("1", "healed"), ("2", "healed")]
    assert cells[0][3].startswith("+0.00") and cells[1][3].startswith("-0.69")
