"""The pages of a run in a real browser: they draw what the folder says, without a network, and show
what models wrote as text, whatever it is."""

import json
import re
from shutil import copy, copytree

import plotly.graph_objects as go
import polars as pl
import pytest

from steerloop.checks.browser import visit
from steerloop.checks.synthetic import tilted, write_run
from steerloop.report import after_round, finish
from steerloop.report.__main__ import main
from steerloop.report.pages.folder import write_pages
from steerloop.report.pages.frame import embedded
from steerloop.report.pages.markup import from_markdown
from steerloop.report.pages.overview import figures
from steerloop.report.run import scored_elsewhere, states

NASTY = ('</textarea></script><script>document.title="pwned"; console.log("pwned")</script>'
         '<img src=x onerror=alert(1)> & "quoted" \u2028 <b>bold</b>')
SEEN = NASTY.replace("\u2028", "\ufffd")  # as a page shows it
MARKUP = "# not a heading\n\n| not | a table |\n\n**not bold**"
SHIFTS = (-0.6, -0.9)


@pytest.fixture
def run(tmp_path):
    """A finished run of two rounds with two baselines, in which everything a model or a user can
    write is hostile."""
    folder = tmp_path / "runs/one"
    healed = [tilted({"authority": x, "care": -x / 2}) for x in SHIFTS]
    write_run(folder, healed, [tilted({"authority": -1.4})] * 2, survive=0.8, model=NASTY,
              others={"matched": tilted({"authority": -0.9}), "nll": tilted({"authority": -1.1})})
    for round in (0, 1):
        stem = folder / f"rounds/{round:02d}"
        rows = pl.read_parquet(stem / "completions.parquet")
        rows.with_columns(text=pl.lit(NASTY), prompt=pl.lit(NASTY)).write_parquet(
            stem / "completions.parquet")
        states = ["base"] * (round == 0) + ["steered", "healed"]
        pl.DataFrame(
            [(i, prompt, kind, state, 1.0, f"{state} {round} {text}", state == "healed")
             for state in states for i, prompt, kind, text in (
                 (0, NASTY, "loop", NASTY), (1, "Why?", "ordinary", MARKUP))],
            ["prompt_id", "prompt", "kind", "state", "dose", "text", "cut"],
            orient="row").write_parquet(stem / "diary.parquet")
    return folder


def check_the_report_draws_what_the_folder_says(run):
    """No console error; nodes, rows and a hover box with the round's numbers; hostile text is
    there to read and nowhere else."""
    finish(run)
    page, console = visit(run / "report.html", "#round-2")
    assert console == []
    assert len(page.find("path", "point")) == 7  # 2 steered, base and 2 healed, 2 baselines
    rounds = [x for tag, a, x in page.elements if tag == "svg" and a.get("class") == "drawing"]
    titles = ["coherence, of the base's", "direction cosines", "KL, student to base (nats"]
    assert [x[0].startswith(y) for x, y in zip(rounds, titles, strict=False)] == [True] * 3
    dots = [a["class"] for tag, a, _ in page.elements if tag == "circle"]
    # 3 + 2 of coherence, 2 + 2 cosines; foundations and readouts, healed and steered
    assert len(dots) == 5 + 4 + 2 * 7 + 2 * 1 and len(page.find("rect", "bar")) == 2
    (box,) = page.find("g", "hovertext")
    event = json.loads((run / "summary.json").read_text())["healed"][1]
    shift = event["shift"]["authority"]["nats"]
    wanted = "round 2, healedΔauthority {:+.2f} [{:+.2f}, {:+.2f}] nats".format(*shift)
    assert box.startswith(wanted) and "coherence 1.000" in box
    assert "of rows over τ" in box and "KL to base" in box and "κ =" in box
    labels = page.find("text", "annotation-text")
    assert sorted(labels) == ["1", "1", "2", "2", "base", "plain distillation",
                              "steering, nearest shift", "↖ care up, authority down"]

    buttons = {a["data-title"] for _, a, _ in page.elements if "data-title" in a}
    assert buttons == {"Download plot as a PNG", "Zoom in", "Zoom out", "Reset axes"}  # no cloud

    tables = page.find("table")
    assert tables[0].count("healed") == 2 and "matched" in tables[0]
    assert page.find("title")[0].startswith("report: one")
    kept = [x for x in page.find("td", "text") if x == SEEN]
    assert len(kept) == 2 * (1 + 1)  # prompt and text of one kept and one that loops
    assert "roundsampledkeptdropped: loops120164220164" in tables  # of 20 rows each, two rounds
    assert not page.find("textarea") and "bold" not in page.find("b") and not page.find("img")
    assert page.find("div", "quiet")[0].startswith("b> · kl_rev to base")  # the model's name


def check_one_file_alone_is_a_whole_page(run, tmp_path):
    """--single-file: moved away from its folder it still draws; the other kind says what is
    missing."""
    finish(run, single=True)
    assert not list(run.parent.glob("plotly-*"))
    (tmp_path / "alone").mkdir()
    alone = (run / "map.html").rename(tmp_path / "alone/map.html")
    page, console = visit(alone)
    assert console == [] and len(page.find("path", "point")) == 7
    assert "refresh" not in [a.get("http-equiv") for _, a, _ in page.elements]
    write_pages(run, "ended")
    (shared,) = run.parent.glob("plotly-*")
    shared.unlink()
    page, _ = visit(run / "map.html")
    assert [x.startswith("The chart script") for x in page.find("div", "plot")] == [True]


def check_scores_of_other_models_land_on_the_map(run, tmp_path, capsys):
    score = tmp_path / "runs/theirs"
    copytree(run, score)
    known = json.loads((score / "config.json").read_text())
    (score / "config.json").write_text(json.dumps(known | {"scored": "hub/healed"}))
    lines = [json.dumps({"stage": "axis", "axis": ["authority", "care"]})]
    lines += [json.dumps({"stage": "evaluate", "round": 0, "state": x, "dose": 0.0, "measures": e[
        "measures"]}) for x, e in zip(("base", "scored"), states(run), strict=False)]
    (score / "events.jsonl").write_text("\n".join(lines) + "\n")
    for kind in ("eval", "items", "said"):
        copy(run / f"rounds/01/healed.{kind}.parquet", score / f"rounds/00/scored.{kind}.parquet")
    copytree(score, twin := tmp_path / "runs/same-name")
    main([str(run), "--with", str(score), str(twin)])
    assert "pages" in capsys.readouterr().out
    own = len(figures(run, states(run))["map"]["data"])
    both = figures(run, states(run) + scored_elsewhere(run, [score, twin]))["map"]["data"]
    assert [x["name"] for x in both[own:]] == 2 * ["scored: healed"]  # marks of their own
    page = (run / "report.html").read_text()
    assert "scored: healed" in page and "scored:" not in (run / "verdicts.md").read_text()
    assert "scored:" not in (run / "summary.json").read_text()
    (found,) = scored_elsewhere(run, [score])
    mine = json.loads((run / "summary.json").read_text())["healed"][1]
    assert found["shift"] == mine["shift"] and found["round"] == 1  # the same rows, the same base
    rows = pl.read_parquet(score / "rounds/00/scored.eval.parquet")
    rows.with_columns(vignette=pl.lit("another")).write_parquet(
        score / "rounds/00/scored.eval.parquet")
    with pytest.raises(SystemExit, match="--like"):
        main([str(run), "--with", str(score)])
    with pytest.raises(SystemExit, match="not a folder of"):
        main([str(run), "--with", str(run)])


def check_a_phone_and_the_dark_show_all_of_it(run):
    """390 px wide in the dark scheme: the page does not scroll sideways, what is wide scrolls in
    itself, and the colours are those of that scheme."""
    finish(run)
    frame = run.parent / "frame.html"
    frame.write_text("""<iframe src="one/report.html" style="width:390px;height:2000px"></iframe>
<script>onload = () => {
  const page = document.querySelector("iframe").contentDocument, at = (x) => page.querySelector(x);
  const style = page.defaultView.getComputedStyle(page.body);
  document.body.dataset.said = JSON.stringify({
    wide: page.documentElement.scrollWidth, plot: at("#map svg").getBoundingClientRect().right,
    paper: style.backgroundColor, drawn: at("#map .main-svg").style.background,
    dark: matchMedia("(prefers-color-scheme: dark)").matches});
}</script>""")
    page, console = visit(frame, options=("--allow-file-access-from-files", "--force-dark-mode"))
    (said,) = (json.loads(a["data-said"]) for _, a, _ in page.elements if "data-said" in a)
    assert console == [] and said["dark"] is True
    assert said["wide"] <= 390 and said["plot"] <= 390
    assert said["paper"] == said["drawn"] == "rgb(20, 23, 27)"


def check_pages_follow_a_run_only_while_it_goes_on(run):
    for live, write in ((True, lambda: after_round(run, 1)), (False, lambda: finish(run))):
        write()
        for name in ("map.html", "report.html"):
            text = (run / name).read_text()
            assert ('http-equiv="refresh"' in text) is live and ("running" in text) is live
        assert (run / "verdicts.md").is_file() and (run / "diary.md").is_file()


def check_a_run_cut_short_is_shown_too(run, capsys):
    """After base alone, and in the middle of a round; an empty folder is one clear line."""
    lines = (run / "events.jsonl").read_text().splitlines(keepends=True)
    for kept, said in ((2, "No round has been healed yet"), (9, "After 1 round,")):
        (run / "events.jsonl").write_text("".join(lines[:kept]))
        main([str(run)])
        assert said in (run / "report.html").read_text() and "pages:" in capsys.readouterr().out
        for figure in figures(run, states(run)).values():
            json.dumps(figure, allow_nan=False)
    (run / "events.jsonl").write_text(lines[0])
    with pytest.raises(SystemExit, match="nothing to show"):
        main([str(run)])


def check_the_figures_are_plotlys(run):
    """Every name and value in them is one that plotly knows; escaped hover text, no bare markup."""
    found = figures(run, states(run))
    text = re.sub(r'"--[a-z-]+"', '"#123456"', json.dumps(found))
    for figure in json.loads(text).values():
        del figure["labels"]
        go.Figure(figure)
    assert set(re.findall(r"<(/?[a-z]+)", text)) <= {"b", "/b", "br", "sub", "/sub"}
    way = next(x for x in found["map"]["data"] if x.get("meta") == "path")
    path = next(x for x in found["map"]["data"] if x.get("name", "").startswith("healed"))
    assert way["x"][0] == way["y"][0] == 0 and way["x"][1:] == path["x"]
    assert len(path["x"]) == 2
    now = states(run)[-3]["shift"]["authority"]["nats"]
    error = path["error_x"]
    assert path["x"][1] == now[0]
    assert error["array"][1] == pytest.approx(now[2] - now[0])
    assert error["arrayminus"][1] == pytest.approx(now[0] - now[1])


def check_text_cannot_break_out():
    assert "<" not in embedded({"x": NASTY}) and json.loads(embedded([NASTY])) == [SEEN]
    assert json.loads(embedded({"\x1b": ("\r\0", ["\x07", 1, None])})) == {
        "\ufffd": ["\ufffd" * 2, ["\ufffd", 1, None]]}
    code = "\n".join(f"    {x}" for x in (NASTY + "\n\n" + MARKUP).splitlines())
    html = from_markdown(f"## Heading PASS\n\n{code}\n\n- **a**: b <i>\n\n| a | b |\n|---|---|\n"
                         "| x | <script> |")
    assert re.findall(r"<([a-z0-9]+)", html) == [
        "h3", "span", "pre", "ul", "li", "b", "div", "table", "thead", "tr", "th", "th", "tbody",
        "tr", "td", "td"]


def check_the_page_of_prompts_has_every_answer(run):
    """Base, then the last round, then the rounds before it, folded; whatever they say is text."""
    finish(run)
    page, console = visit(run / "diary.html")
    assert console == [] and page.find("h2", "prompt") == [SEEN, "Why?"]
    states = [a["data-state"] for tag, a, _ in page.elements if "data-state" in a]
    assert states == ["base", "steered", "healed", "steered", "healed"] * 2
    answers = page.find("div", "answer")
    assert answers[0] == f"base 0 {SEEN}" and answers[1] == f"steered 1 {SEEN}"
    assert answers[2] == f"healed 1 {SEEN} […]" and answers[4] == f"healed 0 {SEEN} […]"
    assert answers[5] == f"base 0 {MARKUP}"
    folds = page.find("details")
    assert f"steered 0 {SEEN}" in folds[0] and f"steered 1 {SEEN}" not in "".join(folds)
    assert "Δauthority -0." in folds[1] and not page.find("img") and not page.find("textarea")
    quoted = [x for x in visit(run / "verdicts.html")[0].find("pre") if SEEN in x]
    assert quoted, "verdicts quote completions"


def check_the_diary_is_plain_to_read(run):
    finish(run)
    text = (run / "diary.md").read_text()
    free = [x for x in text.splitlines() if not x.startswith("    ")]
    assert not [x for x in free if "<" in x or "not bold" in x or "not a" in x]
    heads = [x.partition(":")[0] for x in free if x.startswith("#")]
    assert heads == ["# Diary of one", "## Prompt 1", "### Round 1", "### Round 2",
                     "## Prompt 2 (ordinary, nothing was trained on it)", "### Round 1",
                     "### Round 2"]
    order = re.findall(r"(base|steered|healed) (\d) ", text.replace("healed Δ", ""))
    one = [("base", "0"), ("steered", "0"), ("healed", "0"), ("steered", "1"), ("healed", "1")]
    assert order == one * 2
    assert text.count("Δauthority -0.") == 4 and "[…]" in text
