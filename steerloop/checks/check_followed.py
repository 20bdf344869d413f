"""Pages while a run goes on, and when it stops: none of them ends a run, and none says that a run
goes on which does not."""

import fcntl

import pytest

from steerloop.checks.small import short_config
from steerloop.checks.synthetic import tilted, write_run
from steerloop.evidence.journal import Journal
from steerloop.model import load
from steerloop.report import finish
from steerloop.report.__main__ import main
from steerloop.runfolder import layout
from steerloop.runfolder.files import kept_so_far, read_table
from steerloop.texts.data import read_data
from steerloop.train import loop


@pytest.fixture
def cfg(small, tmp_path):
    """Two short rounds."""
    return short_config(tmp_path, small().cfg)


def whole(cfg, before=lambda run: None):
    """A run to its end; `before` is called with its journal at the start. Its folder."""
    model, data = load(cfg), read_data(cfg)
    with Journal(model, data, cfg) as run:
        before(run)
        loop(model, data, cfg, run)
    return run.path


def check_a_page_that_cannot_be_written_ends_no_run(cfg, capsys):
    """training.html, map.html and index.html are folders: the rounds are healed all the same, each
    page is complained of, and events and tables are those of a run with its pages."""
    good = whole(cfg)

    def spoil(run):
        for name in (layout.TRAINING, layout.MAP):
            (run.path / name).mkdir()
        (run.path.parent / layout.INDEX).unlink(missing_ok=True)
        (run.path.parent / layout.INDEX).mkdir(exist_ok=True)

    bad = whole(cfg, spoil)
    said = (bad / layout.LOG).read_text()
    assert said.count("a page was not written") == 2  # each once, however often it was tried
    assert f"{layout.TRAINING}: " in said and f"{layout.MAP}: " in said
    for path in sorted(good.rglob("*.parquet")):
        assert read_table(path).equals(read_table(bad / path.relative_to(good))), path


def check_a_run_that_stops_says_so_on_its_pages(cfg):
    """By Ctrl-C in the first heal, and after a round: no page says "running" or looks for a newer
    one."""
    for round, name in ((0, layout.TRAINING), (1, layout.REPORT)):
        def stop(run, round=round):
            step = run.step

            def stopping(row):
                step(row)
                if run.round == round:
                    assert "running" in (run.path / layout.TRAINING).read_text()
                    raise KeyboardInterrupt

            run.step = stopping

        with pytest.raises(KeyboardInterrupt) as stopped:
            whole(cfg, stop)
        assert stopped.value.__notes__
        run = max((x for x in (layout.Path(cfg.runs)).iterdir() if x.is_dir()),
                  key=lambda x: x.stat().st_mtime)
        text = (run / name).read_text()
        assert f": cut short; python -m steerloop.train --resume {run} goes on" in text
        assert ": running" not in text and ">live<" not in text
        for path in run.glob("*.html"):
            assert 'http-equiv="refresh"' not in path.read_text()


def check_a_report_of_a_run_that_goes_on_leaves_it_running(tmp_path, capsys):
    """Its lock is held: pages that are written anew still follow it."""
    run = write_run(tmp_path / "runs/a", [tilted({"authority": -0.9})],
                    [tilted({"authority": -1.2})])
    for holds in (True, False):
        with (run / layout.LOCK).open("wb") as lock:
            if holds:
                fcntl.flock(lock, fcntl.LOCK_EX)
            main([str(run)])
        text = (run / layout.REPORT).read_text()
        assert ("running" in text) is holds and ("refresh" in text) is holds
        assert ("has not come to its end" in text) is not holds
    finish(run)
    main([str(run)])
    assert "has not come to its end" not in (run / layout.REPORT).read_text()


def check_torn_steps_block_nothing(cfg):
    """What a page shows of a heal under way is no part of the run."""
    seen = []

    def tear(run):
        begin = run.live.begin

        def torn(round):
            path = run.path / f"{layout.steps_so_far(round)}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"PAR1 torn")
            seen.append(kept_so_far(path))
            begin(round)

        run.live.begin = torn

    run = whole(cfg, tear)
    assert seen == [None, None] and len(read_table(run / layout.of_round(1, "steps.parquet")))


def check_the_remedy_names_the_run(tmp_path):
    run = tmp_path / "rounds/mine"
    for name in ("x.parquet", "rounds/00/x.parquet", "rounds/07/work/x.parquet"):
        assert layout.run_of(run / name) == run
