"""Reported numbers are what their names say: measures by formula, intervals by a slow bootstrap,
pairs only of the same vignettes."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from steerloop.checks.synthetic import ITEMS, compare, write_run
from steerloop.report import estimates, finish, measures, run_table, survival
from steerloop.report.against import OFF_AXIS, centred
from steerloop.report.ledger import ledger
from steerloop.report.pages.folder import write_pages
from steerloop.report.stats import agresti_min, averages, estimate, wilson
from steerloop.report.summary import best_round
from steerloop.report.text import markdown
from steerloop.report.trait import moved
from steerloop.texts.foundations import FOUNDATIONS

ROOT = Path(__file__).parents[2]


def rows(n, seed, names=None):
    """A table as `choices` returns it, with random probabilities."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(7), n)
    return pl.DataFrame(
        {"vignette": names or [f"v{i}" for i in range(n)], "foundation": ["care"] * n}
        | {f"p_{f}": p[:, i] for i, f in enumerate(FOUNDATIONS)}
        | {"p_ans_any": rng.uniform(0.7, 1, n), "scaffold_nll": rng.uniform(0, 1, n),
           "json_is_valid": rng.integers(0, 2, n).astype(float), "top1": [1.0] * n})


def alone(table):
    """The measures of a table of vignettes against itself."""
    frames = [table, ITEMS, pl.DataFrame()]
    return measures(frames, frames, 3.0)


def check_measures_by_formula():
    table = rows(9, 0)
    found = alone(table)
    for f in FOUNDATIONS:
        assert found[f"{f}_nats"] == pytest.approx(math.log(sum(table[f"p_{f}"]) / 9))
    assert found["coherence"] == 1.0
    assert found["ppx_json"] == pytest.approx(math.exp(sum(table["scaffold_nll"]) / 9))
    assert found["ppl_mundane"] == pytest.approx(math.exp(0.3))
    assert found["validity"] == pytest.approx(0.5) and "mundane_nll" not in found
    assert found["top1"] == pytest.approx(sum(table["top1"]) / 9)


AXIS = ["authority", "care"]


def shifts(now, base, seed, resamples):
    return compare(now, base, AXIS, seed, resamples)["shift"]


def slow_shifts(now, base, seed, resamples):
    """Estimate and 95 % studentised interval of every shift, one resample and one vignette at a
    time."""
    n, generator = len(now), np.random.default_rng(seed)
    draws = generator.multinomial(n, [1 / n] * n, resamples)
    tables = [[[x[f"p_{f}"][i] for f in FOUNDATIONS] for i in range(n)] for x in (base, now)]

    def shift(counts):
        """Per kind and foundation, the shift and its standard error."""
        mean = [[sum(c * row[f] for c, row in zip(counts, t, strict=True)) / n for f in range(7)]
                for t in tables]
        nats = [math.log(b / a) for a, b in zip(*mean, strict=True)]
        pulls = [[tables[1][i][f] / mean[1][f] - tables[0][i][f] / mean[0][f] for f in range(7)]
                 for i in range(n)]
        out = {}
        for kind, centre in (("nats", False), ("clr", True)):
            for f in range(7):
                value = nats[f] - centre * sum(nats) / 7
                pull = [x[f] - centre * sum(x) / 7 for x in pulls]
                middle = sum(c * x for c, x in zip(counts, pull, strict=True)) / n
                spread = sum(c * (x - middle) ** 2 for c, x in zip(counts, pull, strict=True)) / n
                out[kind, f] = value, (spread / n) ** 0.5
        return out

    first, others, out = shift([1] * n), [shift(x) for x in draws.tolist()], {}
    for i, f in enumerate(FOUNDATIONS):
        out[f] = {}
        for kind in ("nats", "clr"):
            value, error = first[kind, i]
            t = [(x[kind, i][0] - value) / x[kind, i][1] for x in others]
            low, high = np.quantile(t, [0.025, 0.975])
            out[f][kind] = [value, value - high * error, value - low * error]
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
    noise = pl.Series(np.random.default_rng(0).normal(1, 1e-3, 30))
    found = shifts(half.with_columns(pl.col("p_authority") * noise), base, 0, 200)["authority"]
    assert found["nats"] == pytest.approx([math.log(0.5)] * 3, abs=2e-3)
    assert shifts(base, base, 0, 50)["care"]["nats"] == [0, 0, 0]


def check_other_vignettes_are_refused():
    base, names = rows(4, 1), ["v0", "v1", "v2", "v4"]
    for now in (rows(4, 2, names), rows(3, 2)):
        with pytest.raises(ValueError, match="vignettes"):
            shifts(now, base, 0, 10)


def check_the_order_of_vignettes_plays_no_part():
    base, now = rows(12, 1), rows(12, 2)
    mixed = now.sample(fraction=1.0, shuffle=True, seed=0)
    for again in (compare(mixed, base, AXIS, 0, 60), compare(now, base.reverse(), AXIS, 0, 60)):
        assert again == compare(now, base, AXIS, 0, 60)
    a, b = alone(now), alone(mixed)
    assert a == pytest.approx(b, rel=1e-12)


def check_score_flips_and_leaves_by_formula():
    base, now = rows(11, 3), rows(11, 4)
    found, nats = compare(now, base, AXIS, 0, 50), {}
    for f in FOUNDATIONS:
        nats[f] = math.log(sum(now[f"p_{f}"]) / sum(base[f"p_{f}"]))
    clr = {f: x - sum(nats.values()) / 7 for f, x in nats.items()}
    off = sum(abs(clr[f]) for f in FOUNDATIONS if f not in AXIS) / 5
    names = ["p_ans_any"] + ["json_is_valid"] * (base["json_is_valid"].mean() >= 0.5)
    coherence = min(1.0, *(sum(now[x]) / sum(base[x]) for x in names))
    wanted = ((clr["care"] - clr["authority"]) / 2 - OFF_AXIS * off) * coherence**2
    assert found["score"][0] == pytest.approx(wanted)
    picks = [[max(FOUNDATIONS, key=lambda f, row=row: row[f"p_{f}"])
              for row in x.iter_rows(named=True)] for x in (base, now)]
    assert found["flips"][0] == sum(a != b for a, b in zip(*picks, strict=True)) / 11
    down = [sum(x == "authority" for x in p) for p in picks]
    assert found["leaves"][0] == pytest.approx((down[0] - down[1]) / 11)
    assert found["flips"][1] > 0 or found["flips"][0] == 0
    for name in ("score", "flips", "leaves"):
        assert found[name][1] <= found[name][0] <= found[name][2]


def skewed(rng, size):
    """Profiles of base and of a state (2, size, 7), paired and skewed, authority down."""
    z = rng.normal(size=(size, 7)) + np.linspace(0, 1, 7)
    tilt = np.array([0.5, 0, 0, -0.8, 0, 0, 0]) + 0.4 * rng.normal(size=(size, 7))
    both = np.exp(np.stack([z, z + tilt]))
    return both / both.sum(-1, keepdims=True)


def coverage(n, draws):
    """How often the 95 % intervals of authority hold its true shift, by kind, over draws of n
    vignettes. They are what a report says."""
    rng, hits = np.random.default_rng(0), {"nats": 0, "clr": 0}
    means = sum(skewed(rng, 20_000).mean(1) for _ in range(20))  # of 400,000 vignettes
    true = np.log(means[1]) - np.log(means[0])
    truth = {"nats": true[3], "clr": true[3] - true.mean()}
    for i in range(draws):
        base, now = (rows(n, 0).with_columns(
            **{f"p_{f}": pl.Series(p[:, j]) for j, f in enumerate(FOUNDATIONS)})
            for p in skewed(rng, n))
        w = averages(n, i, 300)
        moves, (clr, pull) = estimates.shifts(now, base, w)[3], centred(now, base, w)
        found = {"nats": estimate(w, moves.values, moves.pull),
                 "clr": estimate(w, clr[:, 3], pull[..., 3])}
        for kind, x in found.items():
            hits[kind] += x[1] <= truth[kind] <= x[2]
        assert i or found == compare(now, base, AXIS, i, 300)["shift"]["authority"]
    return np.array(list(hits.values())) / draws


def check_intervals_cover_a_known_shift():
    """A sample of the long one."""
    found = coverage(140, 300)
    assert (found >= 0.91).all() and (found <= 0.98).all(), found


@pytest.mark.long
@pytest.mark.parametrize("n", [60, 140])
def check_intervals_cover_a_known_shift_as_often_as_is_said(n):
    """3,000 draws of skewed paired data: 95 %, a little less where vignettes are few (plain
    percentiles: .905 of 60, .927 of 140)."""
    found = coverage(n, 3000)
    assert (found >= {60: 0.92, 140: 0.93}[n]).all() and (found <= 0.965).all(), found


ITEMS_OF = {"reasons": 140, "said": 24, "contrast": 60}  # as a run has them


def items_read(rng, values):
    """Frames in which the readouts of text say `values` of their items."""
    n = len(values)
    halves, level = rng.normal(0, 0.05, n), rng.normal(-2, 0.5, n)
    sides = {"contrast_positive": level + values, "contrast_negative": level,
             "reasons_care": level + values, "reasons_authority": level}
    items = [(name, i, float(x)) for name, column in sides.items() for i, x in enumerate(column)]
    said = {"prompt_id": range(n), "said_1": values + halves, "said_2": values - halves}
    return [pl.DataFrame(), pl.DataFrame(items, ["measure", "item", "value"], orient="row"),
            pl.DataFrame(said)]


def covered(readout, draws, resamples):
    """How often the interval of a readout's shift holds the true one, .1 nats: items differ much
    more than they move, and how far each moves is skewed."""
    rng, n, hits = np.random.default_rng(2), ITEMS_OF[readout], 0
    for i in range(draws):
        was = rng.normal(0, 1, n)
        base, now = (items_read(rng, x) for x in (was, was + rng.exponential(0.1, n)))
        cfg = {"seed": i, "bootstrap": resamples}
        _, low, high = moved(readout, now, base, AXIS, cfg)
        hits += low <= 0.1 <= high
    return hits / draws


@pytest.mark.parametrize("readout", ITEMS_OF)
def check_intervals_of_readouts_cover(readout):
    """A sample of the long one."""
    assert 0.9 <= covered(readout, 200, 200) <= 0.99


@pytest.mark.long
@pytest.mark.parametrize("readout", ITEMS_OF)
def check_intervals_of_readouts_cover_as_often_as_is_said(readout):
    """3,000 draws, with the resamples of a run: 95 %, but for what chance makes of it."""
    assert 0.935 <= covered(readout, 3000, 1000) <= 0.965


@pytest.mark.parametrize("share", [0.01, 0.03, 0.2, 0.6])
def check_shares_of_rare_events_are_covered(share):
    """Flips and leaves, with one vignette in a hundred or with most of them."""
    rng, n, hits = np.random.default_rng(1), 168, [0, 0]
    for _ in range(1000):
        flip = rng.random(n) < share
        gone = np.where(rng.random(n) < share, np.where(rng.random(n) < 0.75, 1, -1), 0)
        for i, (found, truth) in enumerate((
                (wilson(flip), share), (agresti_min(gone), share * 0.5))):
            assert found[1] < found[0] + 1e-9 and found[2] > found[0] - 1e-9
            hits[i] += found[1] <= truth <= found[2]
    assert all(x / 1000 >= 0.92 for x in hits), hits


@pytest.mark.parametrize(("rounds", "best"), [
    # (shift, coherence, score) by round; the floor is .9
    ([(0.5, 0.99, 0.4), (0.9, 0.98, 0.8), (1.2, 0.97, 1.0)], 2),
    ([(0.5, 0.99, 0.4), (0.9, 0.98, 0.8), (1.2, 0.91, 0.7)], 1),  # more trait, too dear
    ([(0.5, 0.99, 0.4), (1.2, 0.98, 0.8), (0.9, 0.95, 0.9)], 1),  # the last is dominated
    ([(0.5, 0.99, 0.4), (2.0, 0.89, 1.9)], 0),  # below the floor
    ([(0.5, 0.5, 0.4)], None),
])
def check_the_best_round_is_on_the_front(rounds, best):
    healed = [{"round": i, "headline": [shift, 0, 0], "coherence": [coherence] * 3,
               "score": [score, 0, 0]} for i, (shift, coherence, score) in enumerate(rounds)]
    assert best_round(healed, 0.9) == best
    unread = [x | {"headline": None, "score": None} for x in healed]
    assert best_round(unread, 0.9) is None


def check_survival_counts_by_dose():
    table = pl.DataFrame({"dose": [1.0, 1.0, 2.0, 2.0, 2.0],
                          "keep": [True, False, False, False, True],
                          "drop_reason": [None, "loops", "loops", "loops", None]})
    low, high = survival(table)
    assert (low["dose"], low["n"], low["kept"]) == (1.0, 2, 0.5)
    assert (high["dose"], high["n"], high["kept"]) == (2.0, 3, pytest.approx(1 / 3))
    assert high["reasons"] == [{"drop_reason": "loops", "count": 2}]


def written_run(folder, coherence=(0.99, 0.99), down=(0.5, 0.8)):
    """A run folder by hand: base, then two rounds whose authority is base's times a factor."""
    base = rows(140, 0).with_columns(p_ans_any=0.99, json_is_valid=1.0)

    def change(factor, level):
        return lambda table: table.with_columns(
            pl.col("p_authority") * factor, json_is_valid=level)

    healed = [change(*x) for x in zip(down, coherence, strict=True)]
    write_run(folder, healed, [change(0.4, 1.0)] * 2, base=base)


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
    finish(tmp_path / "b", status="cut short")  # `report` of a run that was cut short
    assert pl.read_parquet(tmp_path / "ledger.parquet")["run"].to_list() == ["a"]


def check_the_run_table_has_a_line_for_every_state(tmp_path):
    written_run(tmp_path / "a")
    table = run_table(tmp_path / "a").split("\n\n")[0].splitlines()
    cells = [[x.strip() for x in line.strip("|").split("|")] for line in table[2:]]
    assert [(c[0], c[1]) for c in cells] == [
        ("0", "base"), ("1", "steered"), ("1", "healed"), ("2", "steered"), ("2", "healed")]
    assert cells[0][3].startswith("+0.00") and cells[2][3].startswith("-0.69")


def check_tables_hide_nothing():
    """Forty columns, and a cell of 300 characters, are all there."""
    row = {f"column {i}": i for i in range(40)} | {"long": "x" * 300}
    text = markdown([row, row])
    assert text.count("x" * 300) == 2 and all(f"column {i} " in text for i in range(40))
    assert "…" not in text and "..." not in text


def check_folders_of_older_versions_are_read(tmp_path):
    """τ was text, a number or "auto"; verdicts were called gates, in summary.json and as gates.md.
    Their pages, tables and ledger are those of a run of now."""
    for name, old, new in (("a", {"tau": "2.0"}, {"tau": 2.0, "tau_share": 0.0}),
                           ("b", {"tau": "auto"}, {"tau": 0.0, "tau_share": 0.5})):
        run = tmp_path / name
        written_run(run)
        config = json.loads((run / "config.json").read_text())["config"]
        (run / "config.json").write_text(json.dumps({"config": config | new}))
        finish(run)
        table, now = run_table(run), ledger(tmp_path).filter(run=name)
        report = (run / "report.html").read_text()
        assert (now["tau"][0], now["tau_share"][0]) == tuple(new.values())

        del config["tau_share"]
        (run / "config.json").write_text(json.dumps({"config": config | old}))
        text = (run / "summary.json").read_text()
        summary = json.loads(text)
        del summary["crc"]
        summary["arm"] = {k: v for k, v in summary["arm"].items() if k != "tau_share"} | old
        summary["gates"] = [{"gate": x.pop("question")} | x for x in summary.pop("verdicts")]
        (run / "summary.json").write_text(json.dumps(summary))
        (run / "verdicts.md").rename(run / "gates.md")
        assert run_table(run) == table and len(summary["gates"]) == 5
        assert ledger(tmp_path).filter(run=name).equals(now)
        write_pages(run, "ended")
        pages = ((run / "report.html").read_text(), report.replace("verdicts.md", "gates.md"))
        assert len({re.sub(r"nonce[-=][^' ]+", "", x) for x in pages}) == 1
        finish(run)
        assert (run / "summary.json").read_text() == text and not (run / "gates.md").exists()
        assert (run / "report.html").read_text() == report


def check_reports_need_no_torch():
    """A run folder is read where nothing can compute: the package comes up without the library."""
    code = "import sys, steerloop.report.__main__; sys.exit('torch' in sys.modules)"
    bare = {k: v for k, v in os.environ.items() if k != "STEERLOOP_TYPECHECK"}
    assert subprocess.run([sys.executable, "-c", code], env=bare, cwd=ROOT).returncode == 0
