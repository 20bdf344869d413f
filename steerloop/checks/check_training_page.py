"""training.html in a real browser: pictures have as many lines, bars and rows as the tables say,
what models wrote is text, and a heal is seen while it goes on."""

import json
import re
from math import ceil

import polars as pl
import pytest

from steerloop.baselines.distilled import Rival
from steerloop.checks.browser import visit
from steerloop.checks.check_pages import NASTY, SEEN
from steerloop.checks.small import short_config, small_config
from steerloop.checks.synthetic import tilted, write_run
from steerloop.evidence import live
from steerloop.evidence.drift import PLACE, histogram
from steerloop.evidence.journal import Journal
from steerloop.evidence.rollouts import TIMES
from steerloop.healing.course import STEPS
from steerloop.model import load
from steerloop.report import finish
from steerloop.report.__main__ import main
from steerloop.report.pages.spread import listed, tail
from steerloop.report.pages.training import rounds_of, steps_of, write_training
from steerloop.runfolder import layout
from steerloop.runfolder.files import read_config
from steerloop.texts.data import read_data

ROUNDS, TOKENS, PROMPTS = 3, 12, 2


def steps(n, per_epoch=4):
    """Rows as a heal leaves them."""
    return pl.DataFrame([(i, i // per_epoch, 1.0 / (i + 1), 0.01 * i, 0.05, i / n, 0.5 + i, 1e-3)
                         for i in range(n)], STEPS, orient="row")


def rollouts():
    """A dead text at the largest dose, everything else alive; one KL is 0, one below it."""
    rows = []
    for state, times in [*(("steered", x) for x in TIMES), ("healed", None)]:
        for i in range(PROMPTS):
            kl = [-1e-9, 0.0, *(0.01 * (times or 0.1) * (j + 1) for j in range(TOKENS - 2))]
            rows.append((state, times, 2.0 * (times or 0), i, NASTY, f"{i} {NASTY}", [7] * TOKENS,
                         i == 0, times != TIMES[-1] or i > 0, kl))
    return pl.DataFrame(rows, {
        "state": pl.String, "times": pl.Float64, "dose": pl.Float64, "prompt_id": pl.Int64,
        "prompt": pl.String, "text": pl.String, "completion_ids": pl.List(pl.Int64),
        "cut": pl.Boolean, "alive": pl.Boolean, "kl": pl.List(pl.Float64)}, orient="row")


def filled(folder, rounds=range(ROUNDS)):
    """A run whose rounds have all tables of the page, with hostile text in them."""
    kls = torch_kls()
    worst = pl.DataFrame([(i, i, 7, NASTY if i % 2 else "\n", 9.0 - 0.1 * i, [1, 2], NASTY)
                          for i in range(60)], PLACE, orient="row")
    curve = pl.DataFrame({"dose": [0.5, 1.0, 2.0, 4.0], "p95": [0.1, 0.5, 2.0, 1.0],
                          "mean": [0.01, 0.05, 0.3, 0.2], "alive": [1.0, 1.0, 0.5, 0.0]})
    for round in rounds:
        stem = folder / f"rounds/{round:02d}"
        for name, table in (("steps", steps(10)), ("histogram", histogram("base", kls)),
                            ("worst", worst), ("rollouts", rollouts()), ("curve", curve)):
            table.write_parquet(stem / f"{name}.parquet", mkdir=True)
        (stem / "dose.json").write_text(json.dumps({"schema": 1, "value": 1.5}))
        path = stem / "completions.parquet"
        rows = pl.read_parquet(path).with_columns(drop_reason=pl.lit(NASTY))
        rows.with_columns(keep=pl.int_range(pl.len()) < 15).write_parquet(path)
    return folder


def torch_kls():
    """Of two rows, one bin with most of the KL."""
    import torch
    return [torch.tensor([0.0, 1e-5, 1e-3, 1e-3]), torch.tensor([0.02, 2.0])]


@pytest.fixture
def run(tmp_path):
    moved = [tilted({"authority": -0.5})] * ROUNDS
    return filled(write_run(tmp_path / "runs/one", moved, moved, drift=(0.1, 0.2, 0.3),
                            model=NASTY))


def having(page, tag, kind):
    """Attributes of the elements of a tag that have all of these classes."""
    return [a for name, a, _ in page.elements
            if name == tag and set(kind.split()) <= set(a.get("class", "").split())]


def check_the_page_draws_what_the_tables_say(run):
    finish(run)
    page, console = visit(run / "training.html")
    assert console == []
    folds = [a for name, a, _ in page.elements if name == "details" and a.get("class") == "round"]
    assert len(folds) == 4 * ROUNDS and sum("open" in x for x in folds) == 4
    assert [x["id"] for x in folds if "open" in x] == [
        f"{x}-round-{ROUNDS}" for x in ("the", "kl", "dose", "long")]  # newest first
    table = rollouts()
    assert len(having(page, "path", "rollout")) == ROUNDS * len(table)
    dead = (~table["alive"]).sum()
    assert len(having(page, "path", "rollout dashed bad")) == ROUNDS * dead
    assert len(having(page, "circle", "hollow bad")) == ROUNDS * dead
    rects = having(page, "rect", "bar")
    bins = histogram("base", torch_kls())
    seen = bins.filter(pl.col("high") <= 10 ** 0.5).height  # up to the bin of the largest KL
    assert len(rects) == 2 * ROUNDS * seen
    assert len([x for x in page.find("svg", "drawing") if x.startswith("steered at")]) == 4 * ROUNDS
    assert sum("τ 0.05" in x for x in page.find("svg", "drawing")) == ROUNDS
    said = " ".join(page.find("p"))
    assert "10 steps in 3 epochs" in said and "c* = 1.5" in said
    assert f"The tail: {1 / 3:.1%} of the tokens" not in said  # one bin, the largest, is 1 of 6
    assert f"The tail: {1 / 6:.1%}" in said and "hold 99% of all KL" in said
    cells = page.find("td", "context")
    assert len(cells) == 60 * ROUNDS
    assert cells[1] == SEEN * 2 and cells[0] == f"{SEEN}⏎"
    assert page.find("mark")[:2] == ["⏎", SEEN]
    links = [a["href"] for _, a, _ in page.elements if "-row-" in a.get("href", "")]
    assert links[:2] == [f"completions.html#round-{ROUNDS}-row-{i}" for i in (0, 1)]
    texts = [x for x in page.find("td", "text") if x == f"0 {SEEN}"]
    assert len(texts) == ROUNDS * (len(TIMES) + 1)
    titles = [x for x in page.find("title") if SEEN[:60] in x]
    assert len(titles) == 2 * ROUNDS * len(table)  # of lines and of their ends
    assert not page.find("textarea") and not page.find("img")
    assert not [x for x in page.find("b") if x == "bold"]
    assert any("15" in x and SEEN in x for x in page.find("table"))  # what the filter kept
    assert 'http-equiv="refresh"' not in (run / "training.html").read_text()


def check_a_tail_is_one_bin_at_least():
    rows = [{"share": 0.5, "held": 0.1, "low": None}, {"share": 0.44, "held": 0.3, "low": 1.0},
            {"share": 0.04, "held": 0.2, "low": 2.0}, {"share": 0.02, "held": 0.4, "low": 3.0}]
    assert tail(rows) == pytest.approx((2.0, 0.06, 0.6))
    assert tail(rows[:2]) == pytest.approx((1.0, 0.44, 0.3))
    assert tail([{"share": 1.0, "held": 1.0, "low": None}]) == (0.0, 1.0, 1.0)


def check_a_phone_and_a_reader_who_stays(run):
    """390 px wide with all folds open nothing scrolls sideways but in itself; what was opened and
    closed is so after the page was loaded anew."""
    finish(run)
    frame = run.parent / "frame.html"
    frame.write_text("""<iframe src="one/training.html" style="width:390px;height:2000px"></iframe>
<script>
const frame = document.querySelector("iframe"), said = {};
const folds = () => [...frame.contentDocument.querySelectorAll("details.round")];
frame.onload = () => {
  said.open = folds().map((x) => x.open);
  if (said.before) { document.body.dataset.said = JSON.stringify(said); return; }
  said.before = said.open;
  for (const x of frame.contentDocument.querySelectorAll("details")) x.open = true;
  said.wide = frame.contentDocument.documentElement.scrollWidth;
  folds().forEach((x, i) => { x.open = said.before[i]; });
  folds()[1].querySelector("summary").click();
  folds()[0].querySelector("summary").click();
  setTimeout(() => frame.contentWindow.location.reload(), 100);
};</script>""")
    page, console = visit(frame, options=("--allow-file-access-from-files", "--force-dark-mode"))
    (said,) = (json.loads(a["data-said"]) for _, a, _ in page.elements if "data-said" in a)
    assert console == [] and said["wide"] <= 390
    assert said["before"][:3] == [True, False, False] and said["open"][:3] == [False, True, False]
    assert said["before"][3:] == said["open"][3:]


def check_rounds_of_older_versions_say_what_they_lack(tmp_path, capsys):
    """No table but of completions; then each one gone by itself."""
    moved = [tilted({"authority": -0.5})]
    folder = write_run(tmp_path / "runs/old", moved, moved)
    main([str(folder)])
    assert "pages:" in capsys.readouterr().out
    text = (folder / "training.html").read_text()
    assert "no steps.parquet" in text and "no curve.parquet" in text and "no dose.json" in text
    filled(folder, [0])
    (folder / "rounds/00/drift.json").write_text("{}")
    for name in ("steps", "histogram", "worst", "rollouts", "curve"):
        table = folder / f"rounds/00/{name}.parquet"
        table.rename(table.with_suffix(".away"))
        main([str(folder)])
        text = (folder / "training.html").read_text()
        lacks = "worst tokens</h3>" not in text if name == "worst" else f"no {name}.parquet" in text
        assert lacks, name
        table.with_suffix(".away").rename(table)


def check_steps_of_a_heal_are_counted_before_it_ends(run):
    cfg = read_config(run)
    assert steps_of(cfg) == cfg["epochs"] * ceil((64 - 8) / cfg["step_rows"])


def check_a_heal_is_seen_as_it_goes(folders, tmp_path, monkeypatch):
    """Told step by step to the journal of a run that has nothing else yet."""
    clock = [50.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: clock[0])
    cfg = short_config(tmp_path, small_config(folders(), quant="none"), n_keep=32, epochs=3)
    with Journal(load(cfg), read_data(cfg), cfg) as run:
        run.show()
        page = (run.path / "training.html").read_text()
        assert "has not come to its dose yet" in page and "No heal has begun yet" in page
        run.round = 0
        run.live.begin(0)
        total = steps_of(vars(cfg))
        for row in steps(9).to_dicts():
            run.step(row)
            text = (run.path / "training.html").read_text()
            assert f"step {row['step'] + 1 if row['step'] >= 5 else 1} of {total}" in text
            clock[0] += 10 if row["step"] >= 4 else 0
        assert 'http-equiv="refresh"' in text
        page, console = visit(run.path / "training.html")
        assert console == [] and page.find("b", "live") == ["live"]
        assert len(having(page, "circle", "dot")) == 5  # one in each picture: now
        assert any(x.startswith("NLL") and "now: 0.1111" in x for x in page.find("svg", "drawing"))
        write_training(run.path, "cut short")
        assert f"has come to step 9 of {total}" in (run.path / "training.html").read_text()
        before = {x: x.read_bytes() for x in run.path.rglob("*") if x.is_file()}
        monkeypatch.setattr(run.folder, "read", lambda name: 9.0)
        clock[0] += 100
        Rival(run, "nll").step(steps(10).to_dicts()[9])  # another heal than the run's own
        assert {x: x.read_bytes() for x in run.path.rglob("*") if x.is_file()} == before
        assert rounds_of(run.path) == [0] and not run.folder.sums  # work has no line there


def check_the_journal_keeps_steps_before_the_state(folders, tmp_path, monkeypatch):
    """Also where nobody looked in the meantime."""
    monkeypatch.setattr(live.time, "monotonic", lambda: 50.0)
    cfg = short_config(tmp_path, small_config(folders(), quant="none"))
    with Journal(load(cfg), read_data(cfg), cfg) as run:
        run.round = 0
        run.live.begin(0)
        for row in steps(5).to_dicts():
            run.step(row)
        name = run.path / f"{layout.steps_so_far(0)}.parquet"
        assert len(pl.read_parquet(name)) == 1
        run.save("kl_rev", {}, done=5)
        assert pl.read_parquet(name).equals(steps(5))
        assert re.fullmatch(r"rounds/00/work/steps", layout.steps_so_far(0))


def check_columns_of_a_strangers_table_are_text():
    """Row and position, too, where a table has texts there."""
    bad = '"><meta http-equiv="refresh" content="0;url=x"><img src=x>'
    table = pl.DataFrame({"row": [bad], "position": [bad], "text": [bad], "before": [bad],
                          "kl": [1.0]})
    found = listed(table, 1, bad)
    assert "<meta" not in found and "<img" not in found and found.count("&lt;img") == 5
