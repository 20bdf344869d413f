"""The overview as it is drawn: labels that stand apart, what is wrong first, no floor below zero, a
table whose first columns stay."""

import json
import re
from itertools import combinations

import numpy as np
import polars as pl
import pytest

from steerloop.checks.browser import visit
from steerloop.checks.synthetic import tilted, write_run
from steerloop.report import after_round, finish
from steerloop.report.pages.map import LABELS
from steerloop.report.pages.rounds import rounds_panels
from steerloop.report.pages.site import faults
from steerloop.report.pages.training import write_training
from steerloop.report.run import states

BOXES = """<script>
const rounded = (box) => [box.left, box.top, box.right, box.bottom];
const boxes = (page, of) => [...page.querySelectorAll(of)].map(
  (x) => rounded(x.getBoundingClientRect()));
const framed = document.querySelector("iframe");
const look = () => setTimeout(() => {
  const page = framed.contentDocument;
  document.body.dataset.said = JSON.stringify({
    labels: boxes(page, "#map .annotation-text"), marks: boxes(page, "#map path.point"),
    lines: boxes(page, "#map .annotation-arrow-g path").length, map: boxes(page, "#map svg")[0],
    wide: page.documentElement.scrollWidth, said: ACT });
}, 1500);
framed.addEventListener("load", look);
</script>"""


def seen(path, width, act="null"):
    """What is drawn of a page in a frame so wide, once `act` was done in it."""
    frame = path.parent.parent / "frame.html"
    style = f"width:{width}px;height:1600px;border:0"
    frame.write_text(f'<body style="margin:0"><iframe style="{style}" src="{path.parent.name}/'
                     f'{path.name}"></iframe>{BOXES.replace("ACT", act)}')
    page, console = visit(frame, options=("--allow-file-access-from-files",
                                          f"--window-size={width + 60},1700"))
    assert console == []
    return next(json.loads(a["data-said"]) for _, a, _ in page.elements if "data-said" in a)


@pytest.fixture(scope="module")
def ten(tmp_path_factory):
    """Ten rounds that go less and less far, and every rival there is, on one heap."""
    rng = np.random.default_rng(1)
    root = tmp_path_factory.mktemp("ten")
    far = [1 - 0.6**i for i in range(1, 11)]
    healed = [tilted({"authority": -0.9 * x, "care": 0.5 * x}) for x in far]
    steered = [tilted({"authority": -1.3 + rng.normal(0, 0.05), "care": 0.6}) for _ in far]
    others = {x: tilted({"authority": -0.8 + rng.normal(0, 0.05), "care": 0.4}) for x in LABELS}
    run = write_run(root / "ten", healed, steered, others, drift=[0.02] * 10)
    finish(run)
    return run


@pytest.mark.parametrize("width", [1400, 390])
def check_no_label_of_the_map_overlaps(ten, width):
    """Of ten rounds, their teachers and all rivals: no drawn label is on another, or on a mark that
    is seen, and all lie on the map; those that stand apart from their mark have a line to it."""
    found = seen(ten / "map.html", width)
    labels, marks = found["labels"], found["marks"]
    assert len(labels) == 1 + 1 + 10 + 10 + len(LABELS) and len(marks) == 21 + len(LABELS)
    for a, b in combinations(labels, 2):
        assert min(a[2], b[2]) - max(a[0], b[0]) <= 0.5 or min(a[3], b[3]) - max(a[1], b[1]) <= 0.5
    for left, top, right, bottom in labels:
        for a, b, c, d in marks:
            x, y = (a + c) / 2, (b + d) / 2
            assert not (left < x < right and top < y < bottom)
        assert found["map"][0] <= left and right <= found["map"][2] and right <= width
    assert found["lines"] >= len(labels) - 1 and found["wide"] <= width


SCROLL = """(() => {
  const box = page.querySelector(".states").parentElement, at = (x) => box.querySelector(x);
  const left = (x) => at(x).getBoundingClientRect().left;
  const open = box.classList.contains("more-right");
  const before = [left("tbody [data-stays='1']"), left("tbody [data-group='language']")];
  box.scrollLeft = 120;
  const after = [left("tbody [data-stays='1']"), left("tbody [data-group='language']")];
  const columns = () => [...at("tbody tr").children].filter((x) => x.offsetWidth).length;
  const all = columns();
  at("[data-fold='trait']").click();
  const folded = columns();
  const again = [...box.querySelectorAll("[data-fold='trait']")].filter((x) => x.offsetWidth);
  again[0].click();
  return { open, before, after, all, folded, unfolded: columns(), heads: again.length };
})()"""


def check_the_table_keeps_its_first_columns_and_folds(ten):
    """On a phone: scrolled sideways the state stays and what is beside it goes; a sign says that
    there is more; a group of columns folds to one, and comes back."""
    found = seen(ten / "report.html", 390, SCROLL)["said"]
    assert found["open"] is True
    assert found["after"][0] == pytest.approx(found["before"][0], abs=6)
    assert found["before"][1] - found["after"][1] == pytest.approx(120)
    assert found["folded"] == found["all"] - 3 + 1 and found["heads"] == 1  # two Δ and the score
    assert found["unfolded"] == found["all"]


def check_what_is_wrong_is_said_first(tmp_path):
    """Blind readouts, an unspecific vector, a base whose own answers fail the filter, an inert
    barrier, a run that has not ended: each in the banner, before anything else; on all pages."""
    run = write_run(tmp_path / "runs/a", [tilted({"authority": -0.9})],
                    [tilted({"authority": -1.2})], heal={"active": 0.004})
    base = run / "rounds/00/base.said.parquet"
    said = pl.read_parquet(base)
    said.with_columns(drop_reason=pl.when(pl.col("prompt_id") > 8).then(pl.lit("loops"))
                      ).write_parquet(base)
    finish(run)
    for name in ("report.html", "map.html", "diary.html", "verdicts.html"):
        page, console = visit(run / name)
        assert console == []
        (banner,) = page.find("ul", "wrong")
        assert "The base is no measure of coherence. the filter keeps 38%" in banner
        assert "The barrier is inert. rows over τ, by round: 0.4%" in banner
        order = [tag for tag, _, _ in page.elements]
        assert order.index("ul") < order.index("nav")
    events = (run / "events.jsonl").read_text()
    for verdict, words in (("blind", "No readout sees"), ("unspecific", "vector is unspecific")):
        (run / "events.jsonl").write_text(events.replace(
            '"verdict": "PASS", "headline": "digits", "why": ""',
            f'"verdict": "{verdict}", "headline": "", "why": "said: <b>no</b>"'))
        finish(run)
        found = visit(run / "report.html")[0]
        assert words in found.find("ul", "wrong")[0] and "said: <b>no</b>" in found.find(
            "ul", "wrong")[0]
    assert [x for x, _ in faults(run, "cut short")][-1] == "This run has not come to its end"
    odd = run.rename(run.with_name("a; touch x; #"))
    assert f"--resume '{odd}' goes on" in faults(odd, "cut short")[-1][1]
    run = odd.rename(run)
    after_round(run, 0)
    assert "not come to its end" not in (run / "report.html").read_text()


def check_no_page_leads_to_one_that_is_not_there_yet(tmp_path):
    """Before the first round is through there is the page of training alone."""
    run = write_run(tmp_path / "runs/a", [tilted({"authority": -0.9})],
                    [tilted({"authority": -1.2})])
    whole = (run / "events.jsonl").read_text()
    early = "".join(x for x in whole.splitlines(keepends=True) if '"state": "healed"' not in x)
    for text, count in ((early, 1), (whole, 6)):
        (run / "events.jsonl").write_text(text)
        write_training(run, "running")
        links = re.findall('<nav><a href="../index.html">all runs</a>(.*?)</nav>',
                           (run / "training.html").read_text())
        assert links[0].count("<a ") == count


def check_less_than_counts_is_not_called_nothing(tmp_path):
    """A shift of .05 nats that is known to be there: nowhere "did not move"."""
    run = write_run(tmp_path / "runs/a", [tilted({"authority": -0.05})],
                    [tilted({"authority": -0.06})])
    finish(run)
    shift = states(run)[-1]["moved"]["Δauthority"]
    assert -0.1 < shift[1] <= shift[2] < 0
    text = (run / "report.html").read_text() + (run / "verdicts.md").read_text()
    assert "did not move" not in text and "moved by less than counts: 0.1 nats" in text
    assert "answers moved by less than 0.1 nats" in text


def check_no_floor_lies_below_zero(tmp_path):
    run = write_run(tmp_path / "runs/a", [tilted({"authority": -0.9})],
                    [tilted({"authority": -1.2})])
    assert "floor 0.95" in rounds_panels(run, states(run))
    for floor in (0.0, -0.5):
        lines = (run / "events.jsonl").read_text().splitlines()
        lines = [json.dumps(json.loads(x) | {"floor": floor}) if '"start"' in x else x
                 for x in lines]
        (run / "events.jsonl").write_text("\n".join(lines) + "\n")
        assert "floor" not in rounds_panels(run, states(run))


def check_answers_stand_before_their_evidence(tmp_path):
    """verdicts.html: question, verdict, reason; numbers and rows are folded, and all there."""
    run = write_run(tmp_path / "runs/a", [tilted({"authority": -0.9})] * 2,
                    [tilted({"authority": -1.2})] * 2, survive=0.5)
    finish(run)
    page, console = visit(run / "verdicts.html", "#u2")
    assert console == []
    heads = page.find("h2")
    assert [x.split(":")[0] for x in heads[:5]] == ["U0", "U1", "U2", "U3", "Dose"]
    rows = json.loads((run / "summary.json").read_text())["verdicts"]
    assert [x.rpartition(" ")[2] for x in heads[:5]] == [x["verdict"] for x in rows]
    because = [x["because"] for x in rows if x["because"]]
    assert page.find("p", "lead") == because
    folded = [a for tag, a, _ in page.elements if tag == "details"]
    assert len(folded) >= 7 and all("open" not in a for a in folded)
    text = (run / "verdicts.md").read_text()
    inside = sum(len(x) for x in page.find("td", ""))
    assert inside > 1000 and text.count("\n| ") - text.count("\n| --") > 20
