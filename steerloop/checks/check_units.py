"""A readout's shifts are in nats, or in nats per token: wherever their numbers stand."""

import polars as pl
import pytest

from steerloop import UserError
from steerloop.checks.browser import visit
from steerloop.checks.check_compare import noisy
from steerloop.checks.synthetic import tilted, write_run
from steerloop.report import finish
from steerloop.report.__main__ import main
from steerloop.report.arms import Pooled, pooled_arms
from steerloop.report.compare import compare_runs, compared
from steerloop.report.pages.comparison import pooled, write_comparison
from steerloop.report.pages.index import write_index
from steerloop.report.pages.names import comparison_name
from steerloop.report.pages.overview import placed
from steerloop.report.pages.prompts import evidence
from steerloop.report.run import rows_of, states
from steerloop.report.trait import unit


def blind(run):
    """A run as if it had no vignettes, read by what it says."""
    records = (run / "events.jsonl").read_text()
    (run / "events.jsonl").write_text(
        records.replace('"headline": "digits"', '"headline": "said"'))
    for path in run.glob("rounds/*/*.eval.parquet"):
        pl.DataFrame().write_parquet(path)
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Read by digits; and two, of two arms, by what they say."""
    root = tmp_path_factory.mktemp("units") / "runs"
    made = [write_run(root / name, [noisy({"authority": shift}, i)], [tilted({})], lam=lam)
            for i, (name, shift, lam) in enumerate((
                ("digits", -0.4, 0.3), ("said", -0.5, 0.5), ("further", -1.9, 0.9)))]
    for run in made[1:]:
        blind(run)
    for run in made:
        finish(run)
    return made


def check_digits_alone_are_in_nats():
    assert [unit(x) for x in ("digits", "said", "reasons", "contrast", "care answers alone")] == [
        "nats", *["nats per token"] * 4]


def check_pages_of_many_runs_say_the_unit(runs):
    digits, *said = runs
    document, console = visit(write_index(digits.parent))
    assert console == [] and "headline" in document.find("th")
    cells = document.find("td")
    assert "digits (nats)" in cells and cells.count("said (nats per token)") == 2
    found, text = compared(said), compare_runs(said)
    assert "| Δcare (nats per token) " in text and "(nats)" not in text
    assert " nats per token, " in found.against[0].said
    page = write_comparison(said, found)
    document, _ = visit(page)
    texts = document.find("text")
    assert "headline by said, towards care, nats per token" in texts
    assert "Δcare (nats per token)" in document.find("td") and "nats" not in texts
    page.unlink()
    mixed = compare_runs([said[0], digits])  # each row in its own
    assert "Δcare (nats per token)" in mixed and "Δcare (nats)" in mixed


def check_pages_of_one_run_say_the_unit(runs):
    for run, wanted in zip(runs, ("nats", "nats per token", "nats per token"), strict=True):
        measured = states(run)
        assert f"Δcare ({wanted})" in rows_of(run, measured)[-1]
        _, titles = placed(run, measured)
        assert f"Δcare ({wanted})" in titles
        moved = {e["round"]: e["moved"] for e in measured if e["state"] == "healed"}
        row = {"dose": 1.0}
        assert f" {wanted}</li>" in evidence(run, {(0, "steered"): row}, moved)


def check_pooled_measures_of_two_units_have_panels_of_their_own(runs):
    moved = {"digits": [0.5, 0.4, 0.6], "care answers alone": [0.01, 0.0, 0.02]}
    arms = {"a": {0: runs[0]}, "b": {0: runs[1]}}
    found = Pooled(arms, {"a": moved, "b": moved}, {"a": {}, "b": {}}, {"b": ([0], moved)})
    (html,) = pooled(found).values()
    parts = html.split("<svg class=\"drawing\"")[1:]
    assert len(parts) == 4
    for part, label, counted in zip(parts, ("Δdigits", "Δcare answers alone") * 2,
                                    ("nats", "nats per token") * 2, strict=True):
        assert f"<title>{label}</title>" in part and f">{counted}</text>" in part
        assert part.count("class=\"dot ") == 1 + ("shift of each arm" in part)
    assert "Δdigits (nats)<" in html and "Δcare answers alone (nats per token)<" in html


def check_a_run_without_the_first_ones_readout_is_refused(runs, tmp_path):
    """In one line that names both; the other way round they can be compared."""
    digits, said, _ = runs
    other = blind(write_run(tmp_path / "other", [tilted({"authority": -0.5})], [tilted({})],
                            seed=1))
    for pair, come_to in (([digits, said], compared), ([digits, other], pooled_arms)):
        with pytest.raises(UserError, match="is read by digits, and ") as e:
            come_to(pair)
        assert all(str(x) in str(e.value) for x in pair) and "\n" not in str(e.value)
        with pytest.raises(SystemExit, match="name a run first that is read by"):
            main([str(x) for x in pair])
        names = [comparison_name([x.name for x in pair])]
        assert not any((digits.parent / x).exists() for x in names)
    assert "note: read by digits and said" in compare_runs([said, digits])
