"""What a user sees while a run works: bars with the numbers that matter on a terminal, none of them
elsewhere, and lines that stay whole."""

import io
import re
import sys
from dataclasses import replace

import polars as pl
import pytest

from steerloop.checks.small import short_config
from steerloop.evidence.journal import Journal
from steerloop.model import load
from steerloop.runfolder import progress
from steerloop.runfolder.layout import SHARES
from steerloop.runfolder.progress import Bar, Rounds
from steerloop.sample import jobs, sample
from steerloop.texts.data import read_data


class Screen(io.StringIO):
    """Something to write to that says whether it is a terminal."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def looking(monkeypatch):
    """From here on stderr is this screen (a fixture could not: pytest takes stderr back)."""
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(sys, "stderr", found := Screen(True))
    return found


def check_bars_are_for_terminals(monkeypatch):
    screen = looking(monkeypatch)
    for kind in (Bar, lambda **x: Rounds().open(0, "vector")):
        screen.terminal = False
        kind(total=3)
        assert screen.getvalue() == ""
        screen.terminal = True
        kind(total=3)
        assert "0%" in screen.getvalue()
        screen.truncate(0)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    Bar(total=3)
    assert "0%" not in screen.getvalue()


def check_sampling_shows_its_pace(monkeypatch):
    looking(monkeypatch)
    bar, now = Bar(total=4, desc="sample", unit="row", mininterval=0), 100.0
    bar.began = now - 2
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    for ended in (0, 3, 1):
        bar.drew(1000, ended)
    assert bar.n == 4 and "1,500 tokens/s" in str(bar)


def check_a_round_says_how_much_is_left(monkeypatch):
    """After a whole round its own times count: here all stages but one take no time."""
    screen, rounds, clock = looking(monkeypatch), Rounds(), [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    assert sum(SHARES.values()) == pytest.approx(1)
    done = []
    for round in (0, 1):
        for name in SHARES:
            for over in (False, True):  # in two parts
                with rounds.stage(round, name, over):
                    bar = rounds.bar
                    done.append((round, name, bar.n / bar.total))
                    clock[0] += 30 * (name == "heal")
        assert rounds.bar is None and bar.n == pytest.approx(bar.total)
    where = {(r, n): x for r, n, x in done}
    assert where[0, "heal"] == pytest.approx(sum(list(SHARES.values())[:5]))
    assert where[1, "heal"] == 0 and where[1, "drift"] == 1
    assert re.search(r"round 2 +0% \|.*\| 00:00, \? left", screen.getvalue())


def check_a_resumed_round_counts_what_is_left(monkeypatch):
    looking(monkeypatch)
    rounds = Rounds()
    with rounds.stage(3, "healed"):
        assert "round 4" in rounds.bar.desc and rounds.bar.n == 0
        bar = rounds.bar
    assert bar.n == pytest.approx(bar.total)


def check_a_bar_repaints_the_one_above_it(monkeypatch):
    """Inside of a stage alone: what stands above is no property of all bars."""
    looking(monkeypatch)
    rounds, painted = Rounds(), []
    with rounds.stage(0, "vector"):
        rounds.bar.refresh = lambda *_, **__: painted.append(1)
        Bar(total=2, mininterval=0).update()
        assert painted
    seen = len(painted)
    Bar(total=2, mininterval=0).update()
    assert len(painted) == seen


def check_the_round_shows_survival(monkeypatch, small, tmp_path):
    looking(monkeypatch)
    cfg = short_config(tmp_path, small().cfg, n_keep=64)
    run = Journal(load(cfg), read_data(cfg), cfg)
    frames = [pl.DataFrame({"keep": x, "kappa": 1.0}) for x in ([True, False], [True, True])]
    run.round = 0
    with pytest.raises(KeyError), run.progress.stage(0, "completions", over=False):
        for frame in frames:
            assert run.on_filter(lambda model, table: table, run.model, frame) is frame
        assert "kept=3 of 64, survival=75%" in str(run.progress.bar)
        raise KeyError
    assert run.progress.bar is None  # an error is told without a bar in its way


def check_samplers_tell_their_pace(small, monkeypatch):
    s, told = small(), []
    monkeypatch.setattr(Bar, "drew", lambda bar, tokens, ended: told.append((tokens, ended)))
    cfg = replace(s.cfg, max_new_tokens=5)
    sample(s.model, jobs(s.model, ["Why?", "How?"], [0.0]), {}, cfg, "k", stops=False)
    assert told == [(2, 0)] * 5 + [(0, 2)]  # the limit ends them
