"""The page of runs side by side: what it draws and says is what `compare_runs` prints."""

import json
import re
from os.path import relpath

import polars as pl
import pytest

from steerloop.checks.browser import visit
from steerloop.checks.check_compare import noisy
from steerloop.checks.synthetic import answers, tilted, write_run
from steerloop.report import finish
from steerloop.report.__main__ import main
from steerloop.report.arms import pooled_arms
from steerloop.report.compare import NAMES, compare_runs, compared
from steerloop.report.pages.comparison import deltas, write_comparison
from steerloop.report.pages.names import HELD, comparison_name
from steerloop.report.pages.side import APART, looks_of, spread
from steerloop.report.text import interval

NASTY = '<img src=x onerror=alert(1)>&"\' <b>b'


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs, the third on other vignettes; the first is called something hostile."""
    root = tmp_path_factory.mktemp("side") / "runs"
    made = [
        write_run(root / NASTY, [noisy({"authority": -0.2}, 3), noisy({"authority": -0.5}, 1)],
                  [tilted({})] * 2, model=NASTY),
        write_run(root / "further", [noisy({"authority": -1.2}, 2)], [tilted({})], lam=0.9,
                  heal={"active": 0.0}),
        write_run(root / "other", [noisy({"authority": -0.9}, 2)], [tilted({})],
                  base=answers(per_label=15, seed=3).with_columns("other " + pl.col("vignette")),
                  coh_floor=0.8),
    ]
    for run in made:
        finish(run)
    return made


def marks(document):
    """What all marks say under the pointer."""
    return [x for x in document.find("title")[1:] if ": " in x]


def check_the_page_says_and_draws_what_is_printed(runs):
    found, text = compared(runs), compare_runs(runs)
    document, console = visit(write_comparison(runs, found))
    assert console == []
    shown = document.find("li")
    for x in found.against:
        assert x.said in shown and x.said in text
        assert all(f"note: {y}" in shown and f"note: {y}" in text for y in x.notes)
        for label, number in deltas(x, found.unit).items():
            assert re.search(rf"\| {re.escape(label)} +\| {re.escape(number)} +\|", text)
            assert number in document.find("td")
    assert any("vignettes differ" in x for x in shown)
    drawn = marks(document)
    for x in found.against:
        for label, (value, low, high) in (x.shifts | x.gains).items():
            assert f"{label}, {x.name} − A: {value:+.3f} [{low:+.3f}, {high:+.3f}]" in drawn
    assert sum(" − A: " in x for x in drawn) == sum(
        len(x.shifts) + len(x.gains) for x in found.against)


def check_rounds_and_foundations_of_every_run_are_drawn(runs):
    document, _ = visit(write_comparison(runs, compared(runs)))
    drawn = marks(document)
    for name, run in zip("ABC", runs, strict=True):
        summary = json.loads((run / "summary.json").read_text())
        for event in summary["healed"]:
            for kind in ("headline", "coherence"):
                assert (f"{name} {run.name}, round {event['round'] + 1}: "
                        f"{interval(event[kind], '+.3f')}") in drawn
        for foundation, shift in summary["healed"][-1]["shift"].items():
            value, low, high = shift["nats"]
            assert (f"{foundation}, {name} {run.name}: {value:+.3f} [{low:+.3f}, {high:+.3f}]"
                    in drawn)
        assert sum(x.startswith(f"{name} {run.name}, round ") for x in drawn) == 2 + 3 * len(
            summary["healed"])  # headline and KL from base on, coherence of students
    assert {x for x in document.find("text") if x.startswith("floor")} == {"floor 0.95"}
    heads = document.find("text", "head")
    assert "KL to base, nats per token" in heads and len([x for x in heads if "headline" in x]) == 1


def check_what_is_wrong_stands_first_and_runs_are_linked(runs):
    path = write_comparison(runs, compared(runs))
    document, _ = visit(path)
    wrong = document.find("ul", "wrong")[0]
    assert "B: The barrier is inert." in wrong
    text = path.read_text()
    assert text.index('class="wrong"') < text.index(" against A") < text.index("<svg")
    links = [a["href"] for tag, a, _ in document.elements if tag == "a"]
    assert links[0] == "index.html" and links.count("further/report.html") == 2
    rows = [x for x in document.find("tr") if x.startswith("B")]
    assert len(rows) == 2 and "0.9" in rows[0] and rows[1].startswith("BfurtherPASS")
    assert {tag for tag, _, _ in document.elements}.isdisjoint({"img"})
    assert [x for x in document.find("b") if x in ("b", NASTY)] == []
    assert any(NASTY in x for x in document.find("h1")) and NASTY in document.find("a")


def check_the_command_writes_it_and_prints_the_same(runs, capsys, monkeypatch):
    monkeypatch.chdir(runs[0].parent)
    main([x.name for x in runs])
    said = capsys.readouterr().out
    names = [x.name for x in runs]
    assert compare_runs([*map(type(runs[0]), names)]) in said
    assert said.rstrip().endswith(f"page: {comparison_name(names)}")
    path = runs[0].parent / comparison_name(names)
    assert f'id="{HELD}">' in path.read_text()
    assert comparison_name(names) != comparison_name(names[::-1])


def check_runs_elsewhere_are_found(runs, tmp_path):
    there = write_run(tmp_path / "else/where#", [tilted({"authority": -0.5})], [tilted({})])
    finish(there)
    document, _ = visit(path := write_comparison([runs[1], there], compared([runs[1], there])))
    links = [a["href"] for tag, a, _ in document.elements if tag == "a"]
    wanted = relpath(there, runs[1].parent).replace("#", "%23")
    assert f"{wanted}/report.html" in links
    path.unlink()


def check_arms_over_seeds_have_a_page(tmp_path, capsys):
    runs = []
    for lam in (0.3, 0.9):
        for seed in (0, 1):
            runs.append(write_run(tmp_path / f"{lam}-{seed}", [
                noisy({"authority": -lam - seed / 10}, seed)], [tilted({})], lam=lam, seed=seed))
    main([str(x) for x in runs])
    found = pooled_arms(runs)
    assert found.text in capsys.readouterr().out
    path = tmp_path / comparison_name([x.name for x in runs])
    document, console = visit(path)
    assert console == []
    (seeds, less) = found.less["lam 0.9"]
    assert seeds == [0, 1]
    assert (f"lam 0.3, less lam 0.9: Δdigits {interval(less['digits'], '+.3f')} nats, over loop "
            "seeds 0, 1") in document.find("li")
    drawn = marks(document)
    for name, moved in found.own.items():
        value, low, high = moved["digits"]
        assert f"Δdigits, {name}: {value:+.3f} [{low:+.3f}, {high:+.3f}]" in drawn
    colours = {}  # of the letters at the ends of lines: one for each arm
    for _, attrs, text in document.elements:
        if "".join(text) in "ABCD" and attrs.get("text-anchor") == "start":
            colours.setdefault("".join(text), attrs["class"])
    assert colours["A"] == colours["B"] != colours["C"] == colours["D"]
    assert document.find("h1") == ["4 runs of 2 arms over loop seeds"]
    assert "Differences of seeds of one arm are chance" in str(document.find("p"))
    each = compared(runs)  # beside what is pooled, as of any runs
    for x in each.against:
        assert x.said in document.find("li")
        for label, (value, low, high) in (x.shifts | x.gains).items():
            assert f"{label}, {x.name} − A: {value:+.3f} [{low:+.3f}, {high:+.3f}]" in drawn
    alone = pooled_arms(runs[:3])  # of one seed alone there is no interval
    document, _ = visit(write_comparison(runs[:3], alone))
    value = alone.own["lam 0.9"]["digits"][0]
    assert f"Δdigits, lam 0.9: {value:+.3f} [{value:+.3f}, {value:+.3f}]" in marks(document)
    assert "inf" not in [a.get("d", "") for _, a, _ in document.elements]


def check_seeds_of_an_arm_are_told_apart(tmp_path):
    """By dashes, in the colour of their arm: in the legend as in the pictures."""
    runs = [write_run(tmp_path / f"s{i}", [noisy({"authority": -0.5}, i)], [tilted({})], seed=i)
            for i in range(6)]
    for run in runs:
        finish(run)
    document, _ = visit(write_comparison(runs, pooled_arms(runs)))
    assert document.find("h1") == ["6 runs of 1 arm over loop seeds"]
    drawn = {}
    for _, attrs, text in document.elements:
        name = "".join(text)
        if "line" in attrs.get("class", "") and name[2:] in [x.name for x in runs]:
            drawn.setdefault(name[0], set()).add(" ".join(attrs["class"].split()))
    looks = [x for kinds in drawn.values() for x in kinds]
    assert list(drawn) == list("ABCDEF") and len(set(looks)) == len(looks) == 6
    assert all("accent" in x for x in looks)
    keys = [" ".join(a["class"].split()) for tag, a, _ in document.elements
            if tag == "path" and a.get("d") == "M1 5H21"]
    assert set(looks) <= set(keys)
    paths = [tmp_path / str(i) for i in range(14)]
    many = looks_of(paths, [{0: paths[2 * i], 1: paths[2 * i + 1]} for i in range(7)])
    assert len(set(many)) == 14  # also where two arms share a colour


def check_runs_of_other_readouts_have_panels_of_their_own(runs, tmp_path):
    """Their headlines are no one measure; a note says by what the differences are."""
    there = write_run(tmp_path / "said", [tilted({"authority": -0.5})], [tilted({})])
    records = (there / "events.jsonl").read_text()
    (there / "events.jsonl").write_text(
        records.replace('"headline": "digits"', '"headline": "said"'))
    finish(there)
    found = compared([runs[1], there])
    document, _ = visit(path := write_comparison([runs[1], there], found))
    assert [x for x in document.find("text", "head") if x.startswith("headline")] == [
        "headline by digits, towards care, nats", "headline by said, towards care, nats per token"]
    assert any(x.startswith("note: read by said and digits") for x in document.find("li"))
    path.unlink()


def check_tasks_are_compared_where_both_were_asked(runs):
    """Of the same items, after the same answers of their bases."""
    def asked(run, round, state, hits):
        pl.DataFrame({
            "task": ["arc"] * 40, "measure": ["acc"] * 40, "part": ["arc"] * 40,
            "item": range(40), "doc": [f"d{i}" for i in range(40)],
            "value": [float(i < hits) for i in range(40)], "weight": [1.0] * 40,
            "better": [1] * 40}).write_parquet(run / f"rounds/{round:02d}/{state}.tasks.parquet")

    first, second, _ = runs
    for run, last, hits in ((first, 1, 20), (second, 0, 30)):
        asked(run, 0, "base", 25)
        asked(run, last, "healed", hits)
    (found,) = compared([first, second]).against
    assert found.tasks["arc acc"][0] == pytest.approx(0.25) and "acc" not in compare_runs(
        [first, second])
    document, _ = visit(write_comparison([first, second], compared([first, second])))
    assert any(x.startswith("arc acc, B − A: +0.250 [") for x in marks(document))
    asked(second, 0, "base", 24)
    assert compared([first, second]).against[0].tasks == {}
    for run in (first, second):
        for path in run.glob("rounds/*/*.tasks.parquet"):
            path.unlink()


def check_many_runs_and_a_phone(runs, tmp_path):
    """As many as have letters; nothing is wider than a narrow window."""
    many = [runs[0]] + [runs[1 + i % 2] for i in range(len(NAMES) - 1)]
    path = write_comparison(many, compared(many))
    frame = tmp_path / "frame.html"
    frame.write_text(f"""<iframe src="file://{path}" style="width:390px;height:900px"></iframe>
<script>onload = () => {{ document.body.dataset.wide = document.querySelector("iframe")
  .contentDocument.documentElement.scrollWidth; }}</script>""")
    page, console = visit(frame, options=("--allow-file-access-from-files", "--force-dark-mode"))
    assert console == []
    assert int(next(a["data-wide"] for _, a, _ in page.elements if "data-wide" in a)) <= 390
    path.unlink()


def check_letters_stand_apart():
    found = spread([50.0, 52.0, 51.0, 150.0], 156)
    assert found == [50.0, 50 + 2 * APART, 50 + APART, 150.0]
    crowd = spread([155.0] * 26, 156)
    assert max(crowd) <= 156 and len(set(crowd)) == 26


def check_runs_that_did_not_move_are_drawn(tmp_path):
    """Two that are the same: every difference is 0, without an interval."""
    pair = [write_run(tmp_path / x, [tilted({})], [tilted({})], lam=lam)
            for x, lam in (("a", 0.3), ("b", 0.9))]
    for run in pair:
        finish(run)
    document, console = visit(write_comparison(pair, compared(pair)))
    assert console == [] and "Δcare, B − A: +0.000 [+0.000, +0.000]" in marks(document)
    assert not any("nan" in str(a) for _, a, _ in document.elements)
