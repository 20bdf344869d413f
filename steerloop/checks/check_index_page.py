"""The page of all runs: what its rows say is what the ledger and the records say, and clicks sort
and filter as a table would."""

import json
import os
import shlex
import shutil
from random import Random

import polars as pl
import pytest

from steerloop.checks.browser import visit
from steerloop.checks.check_neighbours import changed, strange
from steerloop.checks.clicked import said
from steerloop.checks.synthetic import tilted, write_run
from steerloop.report import after_round, finish
from steerloop.report.__main__ import main
from steerloop.report.ledger import ledger
from steerloop.report.pages.index import MARK, index, write_index
from steerloop.report.pages.names import comparison_name
from steerloop.report.pages.standing import standing, standings
from steerloop.report.run import states
from steerloop.report.stats import over_seeds
from steerloop.report.text import interval

NASTY = '<img src=x onerror=alert(1)>&"\'; $(id) `id` \u202e'
FINDS = """
const head = (name) => [...document.querySelectorAll("th button")].find(
  (x) => x.textContent === name);
const order = () => [...document.querySelectorAll("tr.run")].filter((x) => x.offsetParent)
  .map((x) => x.querySelector("input").dataset.name);
const type = (text) => {
  const box = document.getElementById("filter");
  box.value = text;
  box.dispatchEvent(new Event("input"));
};
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two arms, one of three seeds, and a run that is not finished."""
    root = tmp_path_factory.mktemp("index") / "runs"
    for i, (seed, shift, lam) in enumerate(((2, -0.4, 0.3), (0, -1.1, 0.3), (1, -0.7, 0.3),
                                            (0, -0.9, 0.9))):
        run = write_run(root / f"2026110{i + 1}T101500_m_s{seed}", [
            tilted({"authority": shift / 2}), tilted({"authority": shift, "care": -shift})],
            [tilted({})] * 2, seed=seed, lam=lam)
        finish(run)
    write_run(root / "going", [tilted({"authority": -0.2})] * 2, [tilted({})] * 2, seed=10)
    write_index(root)
    return root


def rows_in(document):
    """Texts of the cells of the rows of runs, by heading."""
    heads = document.find("th", "")[: document.find("th", "").index("started") + 1]
    cells, rows = iter(document.find("td")), []
    for kind in [a["class"] for tag, a, _ in document.elements
                 if tag == "tr" and a.get("class") in ("run", "mean")]:
        rows.append({"kind": kind} | {k: next(cells) for k in heads})
    return rows


def check_rows_say_what_summaries_and_records_say(root):
    """One row a run and one mean an arm of several seeds, with the ledger's numbers; of a run that
    goes on, those of its records, without intervals."""
    assert str(root.parent) not in (root / "index.html").read_text()  # a copy is the same page
    document, console = visit(root / "index.html")
    assert console == []
    rows = {x["run"].partition("not finished")[0]: x for x in rows_in(document)}
    known = {x["run"]: x for x in ledger(root).iter_rows(named=True)}
    assert set(known) | {"going"} == set(rows) - {"mean of 3 seeds, [over seeds]"}
    for name, x in known.items():
        last = json.loads((root / name / "summary.json").read_text())["healed"][-1]
        assert rows[name]["headline"] == interval(last["headline"])
        assert rows[name]["coherence"] == f"{x['coherence']:.3f}"
        assert rows[name]["ppl ×"] == f"{x['ppl_ratio']:.3f}"
        assert [rows[name][k] for k in ("U1", "U2", "U3", "Dose")] == [
            x[k] for k in ("U1", "U2", "U3", "Dose")]
        assert rows[name]["rounds"] == "2 of 2" and rows[name]["read by"] == "digits (nats)"
        assert rows[name]["started"] == f"2026-11-{name[6:8]} 10:15"
    mean = rows["mean of 3 seeds, [over seeds]"]
    arm = [json.loads((root / k / "summary.json").read_text())["healed"][-1]["headline"][0]
           for k, x in known.items() if x["lam"] == 0.3]
    assert mean["kind"] == "mean" and len(arm) == 3
    assert mean["headline"] == interval(over_seeds(arm))
    now = [e for e in states(root / "going") if e["state"] == "healed"]
    assert rows["going"]["headline"] == f"{now[-1]['headline'][0]:+.2f}"
    going = standing(root / "going")
    assert [x[0] for x in going.course] == pytest.approx([e["headline"][0] for e in now], abs=1e-9)
    assert not going.ended and "not finished" in rows["going"]["run"]
    drawn = [a for tag, a, _ in document.elements if tag == "svg"]
    assert len(drawn) == 5  # a sparkline a run
    assert "all with axis authority → care" in document.find("p", "quiet")[0]
    assert document.find("tr", "of") == ["lam 0.3", "lam 0.9"]


def check_a_run_that_goes_on_is_read_by_its_own_readout(root, tmp_path):
    """Its records say what its tables do; one by reasons has them in its tables alone."""
    run = tmp_path / "one"
    shutil.copytree(root / "going", run)
    records = (run / "events.jsonl").read_text()
    for path in run.glob("rounds/*/*.items.parquet"):
        last = -4.0 if path.name.startswith("base") else -1.0
        more = pl.DataFrame({
            "measure": ["reasons_authority"] * 3 + ["reasons_care"] * 3, "item": [0, 1, 2] * 2,
            "value": [-1.0, -2.0, -3.0, -2.0, -2.0, last]})
        pl.concat([pl.read_parquet(path), more]).write_parquet(path)
    for readout in ("digits", "said", "reasons"):
        (run / "events.jsonl").write_text(
            records.replace('"headline": "digits"', f'"headline": "{readout}"'))
        healed = [e["headline"][0] for e in states(run) if e["state"] == "healed"]
        found = standing(run)
        assert [x[0] for x in found.course] == pytest.approx(healed, abs=1e-9) != [0.0, 0.0]
        assert found.read_by == readout
    (run / "events.jsonl").write_text(records.replace('"headline": "digits"', '"headline": ""'))
    assert standing(run).course == []


def check_clicks_sort_and_filter(root):
    """In one list, by numbers and by text, both ways, what is missing last: as polars does."""
    found = said(root / "index.html", FINDS + """
      said.grouped = order();
      click("#flat");
      for (const name of ["headline", "run", "seed", "U2"]) {
        head(name).click();
        said[name] = [order(), head(name).closest("th").getAttribute("aria-sort")];
        head(name).click();
        said[name + " again"] = [order(), head(name).closest("th").getAttribute("aria-sort")];
      }
      head("headline").click();
      type("M_S LAM 0.3");
      said.filtered = [order(), document.getElementById("count").textContent];
      said.means = [...document.querySelectorAll("tr.mean")].filter((x) => x.offsetParent).length;
      click("#flat");
      type("lam 0.3");
      said.means_by_arm = [...document.querySelectorAll("tr.mean")].map(
        (x) => x.offsetParent !== null);
      type("m_s0");
      said.means_of_some = [...document.querySelectorAll("tr.mean")].map(
        (x) => x.offsetParent !== null);
      said.hash = location.hash;""")
    runs, _ = standings(root)
    table = pl.DataFrame([
        {"run": x.run.name, "seed": x.settings["seed"], "headline": x.course[-1][0],
         "U2": x.judged.get("U2")} for x in runs])
    before = pl.DataFrame({"run": found["grouped"]})
    table = before.join(table, on="run", maintain_order="left")
    assert len(table) == 5 and table["U2"].null_count() == 1
    for name in ("headline", "run", "seed", "U2"):
        down = name in ("headline", "seed")  # numbers begin with the largest
        for key, way in ((name, down), (f"{name} again", not down)):
            wanted = table.sort(name, descending=way, nulls_last=True, maintain_order=True)
            assert found[key] == [wanted["run"].to_list(), "descending" if way else "ascending"]
    arm = table.sort("headline", descending=True).filter(pl.col("run").str.contains("m_s"))
    wanted = [x for x in arm["run"] if "m_s0" not in x or x.startswith("20261102")]
    assert found["filtered"] == [wanted, "3 of 5 runs"] and found["means"] == 0
    assert found["means_by_arm"] == [True] and found["means_of_some"] == [False]
    again = said(root / "index.html", FINDS + "said.order = order(); said.filter = "
                 "document.getElementById('filter').value;", found["hash"])
    assert again == {"order": ["20261104T101500_m_s0", "20261102T101500_m_s0"],  # by their means
                     "filter": "m_s0"}


def check_arms_are_ordered_by_their_means(root):
    found = said(root / "index.html", FINDS + """
      head("headline").click();
      said.down = order();
      head("headline").click();
      said.up = order();""")
    seeds = [x[-1] for x in found["down"] if x != "going"]
    assert seeds == ["0", "0", "1", "2"] and found["down"][0].startswith("20261104")  # .9 > .73
    assert [x[-1] for x in found["up"] if x != "going"] == ["2", "1", "0", "0"]


def check_ticked_runs_make_a_command(root, monkeypatch, tmp_path):
    """In the order of ticks, for a shell; with the page that compares just these, if there is
    one."""
    names = sorted(x.name for x in root.iterdir() if (x / "summary.json").exists())[:2]
    script = f"""
      for (const name of {json.dumps(names[::-1])}) {{
        [...document.querySelectorAll("tr.run input")].find((x) => x.dataset.name === name).click();
      }}
      said.command = document.querySelector("#chosen code").textContent;
      said.hint = document.querySelector("#chosen p").textContent;
      said.pages = [...document.querySelectorAll("#pages a")].map((x) => x.getAttribute("href"));
      said.hash = location.hash;"""
    found = said(root / "index.html", script)
    assert shlex.split(found["command"]) == [
        "python", "-m", "steerloop.report", *(f"runs/{x}" for x in names[::-1])]
    assert found["pages"] == []
    assert "against the first" in found["hint"] and "over their loop seeds" in found["hint"]
    assert "of an arm and seed, tick one run" in found["hint"]
    copied = tmp_path / "runs"
    shutil.copytree(root, copied)
    monkeypatch.chdir(tmp_path)
    lam = [x.name for x in copied.glob("2026*") if json.loads(
        (x / "config.json").read_text())["config"]["lam"] == 0.9]
    main([f"runs/{names[0]}", f"runs/{lam[0]}"])
    (copied / "compare-000000000000.html").write_text((copied / comparison_name(
        [names[0], lam[0]])).read_text())  # by another name it is none
    write_index(copied)
    script = script.replace(json.dumps(names[::-1]), json.dumps([lam[0], names[0]]))
    found = said(copied / "index.html", script)
    assert found["pages"] == [comparison_name([names[0], lam[0]])]
    again = said(copied / "index.html",
                 'said.command = document.querySelector("#chosen code").textContent;',
                 found["hash"])
    assert again["command"] == found["command"]


def check_hostile_names_stay_names(tmp_path):
    """Of folders, models, verdicts and readouts; a name that cannot be typed cannot be ticked."""
    names = [NASTY, "-v", "a b; $(touch x)'\"", "javascript:alert(1)", "x\ny", "#1?%41", "[x](y)"]
    for i, name in enumerate(names):
        run = write_run(tmp_path / name, [tilted({"authority": -0.5})], [tilted({})],
                        model=f"m{i % 2}<i>x</i>{NASTY}", seed=i)
        finish(run)
    summary = json.loads((run / "summary.json").read_text())
    del summary["crc"]
    summary["verdicts"][0] = {"question": "U0: x", "verdict": "<script>alert(1)</script>"}
    summary["u0"]["headline"] = "<b>digits</b>"
    (run / "summary.json").write_text(json.dumps(summary))
    page, console = visit(write_index(tmp_path))
    assert console == []
    tags = {tag for tag, _, _ in page.elements}
    assert tags.isdisjoint({"img", "b", "i"}) and len(page.find("script")) == 3
    ticks = {a["data-name"]: a["data-path"] for tag, a, _ in page.elements if "data-path" in a}
    assert set(ticks) == set(names) - {NASTY, "x\ny"}
    assert all(shlex.split(x) == [f"{tmp_path.name}/{k}"] for k, x in ticks.items())
    links = [a["href"] for tag, a, _ in page.elements if tag == "a"]
    assert len(links) == len(names) and not any(x.lower().startswith("javascript:") for x in links)
    assert "<script>alert(1)</script>" in page.find("td")
    assert any("<b>digits</b>" in x for x in page.find("td"))


def check_what_is_no_run_is_named_and_nothing_breaks(root, tmp_path):
    """Strangers' folders, summaries and records with something else in them."""
    copied = tmp_path / "runs"
    shutil.copytree(root, copied)
    for make in strange(copied).values():
        make()
    (copied / "notes").mkdir()
    runs, left = standings(copied)
    assert len(runs) == 5 and len(left) == len(strange(copied)) and "notes" not in str(left)
    assert write_index(copied) and "left out" in (copied / "index.html").read_text()
    rng = Random(0)
    summary = json.loads((copied / runs[0].run.name / "summary.json").read_text())
    del summary["crc"]
    lines = [json.loads(x) for x in (copied / "going/events.jsonl").read_text().splitlines()]
    for i in range(300):
        other = copied / runs[i % 2].run.name
        other.joinpath("summary.json").write_text(json.dumps(changed(summary, rng)))
        records = [json.dumps(changed(x, rng) if rng.random() < 0.1 else x) for x in lines]
        (copied / "going/events.jsonl").write_text("\n".join(records) + "\n")
        text = index(copied)
        assert "NaN" not in text and "Infinity" not in text


def check_it_is_written_after_every_round_and_at_the_end(tmp_path, capsys, monkeypatch):
    root = tmp_path / "runs"
    run = write_run(root / "one", [tilted({"authority": -0.5})], [tilted({})])
    after_round(run, 0)
    assert "0 finished, 1 not" in (root / "index.html").read_text()
    finish(run)
    assert "1 finished, 0 not" in (root / "index.html").read_text()
    (root / "index.html").unlink()
    monkeypatch.chdir(tmp_path)
    main([])
    assert "page: runs/index.html" in capsys.readouterr().out and (root / "index.html").exists()
    (root / "index.html").write_text("my own page")
    finish(run)
    main([])
    assert (root / "index.html").read_text() == "my own page"
    assert "page:" not in capsys.readouterr().out
    (root / "index.html").unlink()
    (root / "index.html").mkdir()
    finish(run)
    (root / "index.html").rmdir()
    os.chdir(tmp_path.parent)
    main([])  # no folder of runs


def check_the_last_to_write_has_seen_all(tmp_path, monkeypatch):
    """A run that ends between the look and the writing is on the page all the same."""
    write_run(tmp_path / "one", [tilted({"authority": -0.5})], [tilted({})])
    real = index

    def late(root):
        text = real(root)
        if not (tmp_path / "two").exists():
            write_run(tmp_path / "two", [tilted({"authority": -0.5})], [tilted({})])
        return text

    monkeypatch.setattr("steerloop.report.pages.index.index", late)
    write_index(tmp_path)
    text = (tmp_path / "index.html").read_text()
    assert MARK in text and ">two<" in text


def check_it_fits_a_phone(root):
    frame = root.parent / "frame.html"
    frame.write_text("""<iframe src="runs/index.html" style="width:390px;height:900px"></iframe>
<script>onload = () => { document.body.dataset.wide = document.querySelector("iframe")
  .contentDocument.documentElement.scrollWidth; }</script>""")
    page, console = visit(frame, options=("--allow-file-access-from-files", "--force-dark-mode"))
    assert console == []
    assert int(next(a["data-wide"] for _, a, _ in page.elements if "data-wide" in a)) <= 390
