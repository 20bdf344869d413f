"""What a report makes of tasks: paired differences, a loss that is named, rivals at equal shift; no
markup of a task's name."""

import json
from dataclasses import asdict

import numpy as np
import polars as pl
import pytest

from steerloop import UserError, harness, score, train
from steerloop.checks.synthetic import answers, tilted, write_run
from steerloop.config import Config
from steerloop.harness.items import COLUMNS, table
from steerloop.report import capability, finish, run_table
from steerloop.report.capability import changes, gain
from steerloop.report.pages.folder import write_pages
from steerloop.report.stats import agresti_min
from steerloop.report.verdicts import NAMES, verdicts
from steerloop.score.__main__ import main as command

CFG = {"seed": 0, "bootstrap": 400, "tasks_loss": 0.02}
NAME = "<b>piqa</b>|*x*"


def items(values, weights=None, better=1, task=NAME, measure="acc"):
    """A table as harness/items.py makes it."""
    n = len(values)
    rows = zip([task] * n, [measure] * n, ["part"] * n, range(n), [f"{i:x}" for i in range(n)],
               map(float, values), map(float, weights or [1] * n), [better] * n, strict=True)
    return pl.DataFrame(list(rows), COLUMNS, orient="row")


def check_shares_have_the_interval_of_paired_shares():
    rng = np.random.default_rng(0)
    base, now = (rng.integers(0, 2, 200) for _ in range(2))
    found = changes(items(now), items(base), CFG)[f"{NAME} acc"]
    assert found["level"] == now.mean() and found["n"] == 200 and found["better"] == 1
    assert found["change"] == agresti_min(now - base)


def check_a_ratio_is_that_of_sums_and_covers_it(monkeypatch):
    """Texts of several lengths: a mean of their own ratios would be another number. The interval
    has what a plain bootstrap of pairs says, and is far narrower than one of unpaired ones."""
    rng = np.random.default_rng(1)
    size = rng.integers(5, 200, 80)
    base = size * rng.uniform(1, 4, 80)
    now = base + size * rng.normal(0.1, 0.05, 80)
    measure = {"measure": "log word_perplexity", "better": -1}
    two = tuple(items(x, size.tolist(), **measure) for x in (now, base))
    found = changes(*two, CFG)[f"{NAME} log word_perplexity"]
    assert found["level"] == pytest.approx(now.sum() / size.sum())
    value, low, high = found["change"]
    assert value == pytest.approx((now - base).sum() / size.sum())
    picks = rng.integers(0, 80, (4000, 80))
    again = (now - base)[picks].sum(1) / size[picks].sum(1)
    assert [low, high] == pytest.approx(np.quantile(again, [0.025, 0.975]).tolist(), abs=0.004)
    assert gain(found) == [-value, -high, -low]
    monkeypatch.setattr(capability, "MANY", 79)  # of many items the same, without resamples
    normal = changes(*two, CFG)[f"{NAME} log word_perplexity"]["change"]
    assert normal == pytest.approx(found["change"], abs=0.005) and normal[0] == value


def check_other_items_are_no_comparison(tmp_path):
    base = items([1, 0, 1])
    with pytest.raises(ValueError, match="different items"):
        changes(base.with_columns(doc=pl.lit("f")), base, CFG)
    with pytest.raises(ValueError, match="different items"):
        changes(base.head(2), base, CFG)
    shuffled = base.sample(3, shuffle=True, seed=3)
    assert changes(shuffled, base, CFG)[f"{NAME} acc"]["change"][0] == 0
    run = with_tasks(tmp_path, [1] * 40, [1] * 40)
    items([1] * 39).write_parquet(run / "rounds/01/healed.tasks.parquet")
    with pytest.raises(UserError, match=r"healed.tasks.parquet.*different items.*delete it"):
        run_table(run)


def with_tasks(folder, base, healed, **config):
    """A run of two rounds, each of whose students came to the same, and plain steering to all
    right."""
    care = tilted({"authority": -0.6, "care": 0.4})
    run = write_run(folder / "run", [care, care], [care, care], others={"matched": care},
                    tasks=["piqa"], **config)
    for name, values in (("00/base", base), ("00/healed", healed), ("01/healed", healed),
                         ("01/matched", [1] * len(base))):
        items(values).write_parquet(run / f"rounds/{name}.tasks.parquet")
    return run


@pytest.mark.parametrize(("lost", "said"), [(0, "PASS"), (2, "PASS"), (8, "OPEN"), (60, "FAIL")])
def check_a_loss_beyond_the_bound_is_named(tmp_path, lost, said):
    run = with_tasks(tmp_path, [1] * 150 + [0] * 50, [1] * (150 - lost) + [0] * (50 + lost))
    verdict = verdicts(run)[-1]
    assert verdict.question.startswith("Tasks") and verdict.said == said
    (line,) = verdict.lines
    assert line["accepted"] == "≥ −0.02" and line["number"].startswith(f"{NAME} acc")
    assert verdict.named == ["less able"] * (said == "FAIL")
    loose = with_tasks(tmp_path / "loose", [1] * 200, [1] * 140 + [0] * 60, tasks_loss=0.5)
    assert verdicts(loose)[-1].said == "PASS"


def check_less_is_better_where_it_is(tmp_path):
    run = with_tasks(tmp_path, [1] * 60, [1] * 60)
    rng = np.random.default_rng(2)
    for name, more in (("00/base", 0.0), ("01/healed", 0.5)):
        values = rng.uniform(2, 2.1, 60) + more
        items(values, better=-1).write_parquet(run / f"rounds/{name}.tasks.parquet")
    items(values, better=-1).write_parquet(run / "rounds/00/healed.tasks.parquet")
    assert verdicts(run)[-1].named == ["less able"]


def check_tasks_are_in_every_table_and_no_name_is_markup(tmp_path):
    run = with_tasks(tmp_path, [1] * 30 + [0] * 10, [1] * 10 + [0] * 30)
    said = finish(run)
    assert "0.250; -0.500 [" in said and "0.250 1.000; -0.750 [" in said  # base, then the rival
    assert "| 0.750 " in said  # base beside itself is a level alone
    summary = json.loads((run / "summary.json").read_text())
    known = summary["healed"][1]["tasks"][f"{NAME} acc"]
    assert known["level"] == 0.25 and known["change"][0] == -0.5 and known["n"] == 40
    (row,) = [x for x in summary["rivals"] if x["rival"] == "steering"]
    assert row[f"{NAME} acc: student, rival; gain"][:3] == [0.25, 1.0, -0.75]
    assert row["beaten"] == "tie"  # tasks are shown, and decide nothing
    assert f"less able: {NAMES['less able']}" in summary["named"]
    page = (run / "report.html").read_text()
    assert "&lt;b&gt;piqa" in page and "<b>piqa" not in page and "Tasks <b class=" in page
    text = (run / "verdicts.md").read_text()
    assert "\\<b>piqa\\</b>\\|\\*x\\* acc" in text and "<b>piqa" not in text.replace("\\<b>", "")
    ledger = pl.read_parquet(run.parent / "ledger.parquet")
    assert ledger["Tasks"].to_list() == ["FAIL"]


def check_a_run_without_tasks_says_nothing_of_them(tmp_path):
    care = tilted({"authority": -0.6, "care": 0.4})
    run = write_run(tmp_path / "run", [care, care], [care, care])
    said = finish(run)
    config = json.loads((run / "config.json").read_text())["config"]
    old = {k: x for k, x in config.items() if not k.startswith("tasks")}  # of an older version
    older = write_run(tmp_path / "older", [care, care], [care, care])
    (older / "config.json").write_text(json.dumps({"config": old}))
    assert finish(older) == said
    for at in (run, older):
        write_pages(at, "ended")
        for name in ("verdicts.md", "summary.json"):
            assert "asks" not in (at / name).read_text()
    assert "Tasks" not in pl.read_parquet(run.parent / "ledger.parquet").columns


def samples(kind, *values, metric="acc"):
    """What the harness keeps, of one metric."""
    def put_together(items):
        return sum(items) / len(items)

    put_together.__name__ = kind

    class Task:
        def aggregation(self):
            return {metric: put_together}

        def higher_is_better(self):
            return {metric: kind == "mean"}

    rows = [{"doc_id": i, "doc_hash": "d" * 64, "filter": "none", "metrics": [metric], metric: x}
            for i, x in enumerate(values)]
    return {"t": ["part"]}, {"part": Task()}, {"part": rows}


def check_items_of_every_kind_are_values_and_weights():
    for kind, value, wanted in (
        ("mean", True, (1.0, 1.0)), ("mean", np.float64(0.5), (0.5, 1.0)),
        ("perplexity", -3.0, (3.0, 1.0)), ("weighted_perplexity", (-6.0, 4), (6.0, 4.0)),
        ("bits_per_byte", (-np.log(2), 2), (1.0, 2.0)),
    ):
        found = table(*samples(kind, value))
        assert found.select("value", "weight").row(0) == pytest.approx(wanted), kind
        assert found["better"][0] == (1 if kind == "mean" else -1)
    for kind, value in (("f1", (0, 1)), ("mean", (0, 1)), ("mean", "yes"), ("median", 1.0)):
        with pytest.raises(UserError, match="no metric of part has a value per item"):
            table(*samples(kind, value))
    for value in (float("nan"), float("inf"), 1e40):
        with pytest.raises(UserError, match=r"item 1, is .*no numbers"):
            table(*samples("mean", 1.0, value))


def check_names_by_commas_are_names():
    cfg = Config(tasks=["piqa,arc_easy", "mmlu"], tasks_path="here")
    assert cfg.tasks == ["piqa", "arc_easy", "mmlu"] and cfg.tasks_path.startswith("/")
    assert Config(**asdict(cfg)) == cfg and answers() is not None


def check_without_the_package_there_is_one_line(monkeypatch):
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    monkeypatch.setattr(train, "load", None)  # nothing is loaded before
    monkeypatch.setattr(score, "find_adapter", None)
    harness.load_tasks.cache_clear()
    for main, argv in ((train.main, []), (command, ["embedded"])):
        with pytest.raises(SystemExit) as stopped:
            main([*argv, "--tasks", "piqa,arc_easy", "--device", "cpu"])
        said = stopped.value.code
        assert "pip install 'steerloop[eval]'" in said and "\n" not in said
