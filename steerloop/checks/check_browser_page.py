"""completions.html in a real browser: every filter, search and order leaves what polars leaves of
the same tables, a page of it at a time; links show the same."""

import json
import re
from itertools import product

import polars as pl
import pytest

from steerloop.checks.browsed import NASTY, PAGE, REASONS, ROWS, SEEN, browsed, driven
from steerloop.checks.browser import visit
from steerloop.checks.synthetic import tilted, write_run
from steerloop.report.pages.browser import write_browser
from steerloop.report.pages.completions import account, address, completions
from steerloop.report.pages.frame import HERE, embedded
from steerloop.report.pages.overview import write_overview
from steerloop.report.run import states


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return browsed(tmp_path_factory.mktemp("browser") / "runs/one")


def left(run, source="loop", round="", dose="", kept="", reason="", find="", by="", down=False):
    """What polars leaves of the tables under the same filters, in order."""
    name = {"loop": "completions", "taught": "taught.completions"}[source]
    col, tables = pl.col, []
    for i in (0, 1):
        table = pl.read_parquet(run / f"rounds/{i:02d}/{name}.parquet")
        tables.append(table.with_columns(round=pl.lit(i + 1)))
    rows = pl.concat(tables).with_columns(col("ppl").fill_nan(None))
    tests = [col("round") == int(round)] if round else []
    tests += [(col("dose") / col("kappa") - float(dose)).abs() < 1e-9] if dose else []
    tests += {"": [], "kept": [col("keep")], "dropped": [~col("keep")], "chosen": [col("train")],
              "spare": [col("keep"), ~col("train")]}[kept]
    tests += [col("drop_reason") == reason] if reason else []
    tests += [pl.any_horizontal(col(x).str.to_lowercase().str.contains(find.lower(), literal=True)
                                for x in ("prompt", "text"))] if find else []
    rows = rows.filter(*tests)
    return rows.sort(by, descending=down, nulls_last=True, maintain_order=True) if by else rows


def ids(rows, source="loop"):
    more = "" if source == "loop" else f"&source={source}"
    return [f"round-{a}-row-{b}{more}" for a, b in rows.select("round", "row").rows()]


def word(row):
    dropped = f"dropped: {SEEN if row['drop_reason'] == NASTY else row['drop_reason']}"
    return ("kept, chosen to train on" if row["train"] else "kept") if row["keep"] else dropped


def check_every_filter_leaves_what_polars_leaves(run):
    """All of them together, by the controls; and never more than a page in the document."""
    kinds = {"source": ("loop", "taught"), "round": ("", "1", "2"), "dose": ("", "0.5", "1"),
             "kept": ("", "kept", "chosen", "spare", "dropped"),
             "reason": ("", *REASONS), "find": ("", "needle", "ÉLAN (", "<IMG", "\\")}
    asked = [dict(zip(kinds, x, strict=True)) for x in product(*kinds.values())
             if x[0] == "loop" or not x[2]]
    given = [x | {"reason": SEEN if x["reason"] == NASTY else x["reason"]} for x in asked]
    said, _ = driven(run, f"say({embedded(given)}.map((x) => {{ set(x); return shown(); }}));")
    sizes = set()
    for one, found in zip(asked, said, strict=True):
        rows, whole = left(run, **one), 2 * (ROWS if one["source"] == "loop" else 60)
        assert found["count"] == f"{len(rows)} of {whole} shown", one
        first = rows.head(PAGE)
        assert found["ids"] == ids(first, one["source"]), one
        assert found["words"] == [word(x) for x in first.iter_rows(named=True)], one
        hits = sum(x.lower().count(one["find"].lower()) for x in (*first["prompt"], *first["text"]))
        assert len(found["marks"]) == (hits if one["find"] else 0), one
        assert {x.lower() for x in found["marks"]} <= {one["find"].lower()}
        sizes.add(len(rows))
    assert len(sizes) > 60 and max(sizes) == 2 * ROWS  # the filters were not all alike


def check_every_order_is_that_of_polars_page_by_page(run):
    asked = [{"by": by, "down": x} for by in ("", "ppl", "loop", "dose") for x in (False, True)]
    said, _ = driven(run, f"""say({embedded(asked)}.map((x) => {{
      set(x);
      const pages = [shown()], on = document.querySelector(".pager .on");
      while (!on.disabled) {{ on.click(); pages.push(shown()); }}
      document.querySelector(".pager .back").click();
      return [...pages, shown()];
    }}));""")
    for one, pages in zip(asked, said, strict=True):
        assert [len(x["ids"]) for x in pages] == [50] * 5 + [10, 50]
        assert [y for x in pages[:-1] for y in x["ids"]] == ids(left(run, **one)), one
        assert pages[-1]["ids"] == pages[-3]["ids"]


def check_links_show_what_they_say(run):
    """The address of a row, of a filter, of what is not there; what is chosen by hand stands in the
    address, and shows the same when it is opened anew."""
    links = [address(2), address(2, 117), address(1, reason=NASTY),
             address(2, dose="0.5", kept="kept"), address(1, 5, source="taught"),
             "#round-2&reason=no+such", "#round-7", "#constructor=x",
             "#sort=-ppl&find=needle&from=51", "#kept=toString", "#round-2-row-5&kept=chosen",
             "#%E0%A4%A&find=%"]
    said, _ = driven(run, f"""(async () => {{
      const said = [];
      for (const x of {embedded([x.partition("#")[2] for x in links])}) {{
        await go(x);
        said.push(shown());
      }}
      await go("round-1");
      set({{ kept: "dropped", find: "a & b=NEEDLE", by: "ppl", down: true }});
      set({{ find: "needle" }});
      document.querySelector("#same [name=prompt]").value = "held-2";
      document.querySelector("#same").dispatchEvent(new Event("input"));
      await wait(400);
      say([...said, shown(), location.hash]);
    }})();""")
    *said, now, address_now = said
    whole = [left(run, **x) for x in (
        {"round": "2"}, {"round": "2"}, {"round": "1", "reason": NASTY},
        {"round": "2", "dose": "0.5", "kept": "kept"}, {"round": "1", "source": "taught"})]
    assert said[0]["ids"] == ids(whole[0].head(PAGE)) and said[0]["at"] == []
    assert said[1]["ids"] == ids(whole[1][100:]) and said[1]["at"] == ["round-2-row-117"]
    for found, rows in zip(said[2:4], whole[2:4], strict=True):
        assert found["ids"] == ids(rows.head(PAGE)) and len(rows)
    assert said[4]["at"] == ["round-1-row-5&source=taught"]
    assert said[5]["count"].startswith("0 of") and said[6]["count"].startswith("0 of")
    assert said[7]["count"] == f"{2 * ROWS} of {2 * ROWS} shown"
    assert said[8]["ids"] == ids(left(run, find="needle", by="ppl", down=True)[50:100])
    assert said[9]["count"].startswith("0 of")
    row = left(run, round="2")["train"][5]
    assert said[10]["at"] == ["round-2-row-5"] * row
    assert ("row 5 of round 2 is not among them" in said[10]["count"]) is not row
    wanted = {"round": "1", "kept": "dropped", "find": "needle", "by": "ppl", "down": True}
    assert now["ids"] == ids(left(run, **wanted).head(PAGE)) and len(now["ids"]) > 2
    again, page = driven(run, "say(shown());", address_now)
    assert again == now and "held-2" in address_now
    (asked,) = (x for _, a, x in page.elements if a.get("id") == "asked")
    assert asked == ["Why 1?"]


def check_hostile_texts_are_texts(run):
    """In prompts, answers, reasons, options, hits and differences; folded texts open."""
    said, page = driven(run, """
    set({ find: "<script>" });
    const folds = all(".fold"), before = folds.map(text), open = () => all(".clamped").length;
    const was = open();
    set({ find: "" });
    const folded = open();
    all(".fold").forEach((x) => x.click());
    say({ marks: all("#list mark").length, was, folded, opened: open(), before });""")
    assert page.find("title") == ["completions: one"]
    tags = {tag for tag, _, _ in page.elements}
    assert not tags & {"img", "i"} and "bold" not in page.find("b")
    assert len(page.find("script")) == 2 + 4 + 1  # data, the page's own, ours
    texts = page.find("div", "said")
    assert SEEN in texts and any("<b>x</b>" in x for x in texts)
    assert f"dropped: {SEEN}" in page.find("b", "dropped") and SEEN in page.find("option")
    assert not any(re.search("[\x1b\u2028]", x) for x in texts)
    assert any("<b>x</b>" in x for x in page.find("ins") + page.find("del"))
    assert said["folded"] > 10 and said["opened"] == 0


def check_the_overview_counts_and_links(run, tmp_path):
    """Numbers by round, dose and reason are those of polars, and their links show so many."""
    html, rows = account(run), completions(run).filter(source="loop")
    found = re.findall(r'<a href="completions.html(#[^"]*)">([\d,]+)</a>', html)
    assert len(found) > 2 * (3 + 2) * 3
    said, _ = driven(run, f"""(async () => {{
      const said = [];
      for (const x of {embedded([x.replace("&amp;", "&") for x, _ in found])}) {{
        await go(x);
        said.push(document.getElementById("count").textContent.split(" ")[0]);
      }}
      say(said);
    }})();""")
    assert said == [n for _, n in found]
    assert found[0] == ("#round-1", str(ROWS)) and "<img" not in html
    dropped = rows.filter(pl.col("reason") == NASTY, round=2)
    assert f">{len(dropped)}</a>" in html
    write_overview(run, states(run), None, "ended")
    assert html.split("<h3>")[0] in (run / "report.html").read_text().replace(
        "\ufffd[2J\ufffd", "\x1b[2J\u2028")


def check_a_reader_does_not_lose_the_place(run):
    write_browser(run, "running")
    text = (run / "completions.html").read_text()
    assert "Rounds so far: 2; reload for newer" in text and "refresh" not in text
    assert "this page follows it" not in text
    write_browser(run, "ended")
    assert "reload for newer" not in (run / "completions.html").read_text()


def check_older_and_empty_folders_have_a_page_too(tmp_path):
    """Tables without `train`, `multiple` or kappa; no tables at all."""
    run = write_run(tmp_path / "runs/old", [tilted({"authority": -0.9})])
    path = run / "rounds/00/completions.parquet"
    pl.read_parquet(path).drop("kappa", "echo").write_parquet(path)
    write_browser(run, "ended")
    said, page = driven(run, "say(shown());")
    assert said["count"] == "20 of 20 shown" and set(said["words"]) == {"kept"}
    assert "kept, chosen to train on" not in page.find("option") and "α 1" in page.find("option")
    path.unlink()
    for said in run.glob("rounds/*/*.said.parquet"):
        said.unlink()
    write_browser(run, "cut short")
    page, console = visit(run / "completions.html")
    assert console == [] and page.find("p", "quiet").count("none yet") == 2


def check_a_phone_shows_all_of_it(run):
    frame = run.parent / "frame.html"
    frame.write_text("""<style>iframe { width: 390px; height: 2000px }</style>
<iframe src="one/completions.html"></iframe>
<script>onload = () => {
  const page = document.querySelector("iframe").contentDocument;
  const right = Math.max(...[...page.querySelectorAll("#list *, .filters *, .three *")].map(
    (x) => x.getBoundingClientRect().right));
  const tops = [...page.querySelectorAll(".pair > div")].map((x) => x.getBoundingClientRect());
  document.body.dataset.said = JSON.stringify({ right, wide: page.documentElement.scrollWidth,
    stacked: tops[1].top >= tops[0].bottom - 1 });
}</script>""")
    page, console = visit(frame, options=("--allow-file-access-from-files", "--force-dark-mode"))
    (said,) = (json.loads(a["data-said"]) for _, a, _ in page.elements if "data-said" in a)
    assert console == [] and said["wide"] <= 390 and said["right"] <= 390 and said["stacked"]


def check_scripts_make_no_markup():
    for name in ("browser.js", "same.js", "words.js"):
        text = (HERE / name).read_text()
        assert not re.search(r"HTML|document\.write|eval|Function\(|\.style|http", text)
        assert max(map(len, text.splitlines())) <= 120
