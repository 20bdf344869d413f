"""What lies beside a run folder, what its path is made of, and what the file system under it cannot
do: none of it stops a run or changes what it says."""

import copy
import errno
import fcntl
import json
import os
from contextlib import contextmanager
from pathlib import Path
from random import Random

import polars as pl
import pytest
from loguru import logger

from steerloop import UserError
from steerloop.checks.small import short_run, small_config
from steerloop.checks.synthetic import tilted, write_run
from steerloop.export.student import open_student
from steerloop.report import finish, ledger_table
from steerloop.report.__main__ import main as report
from steerloop.report.ledger import ledger
from steerloop.runfolder import files
from steerloop.runfolder.files import read_table, write_table, write_whole
from steerloop.runfolder.folder import Folder
from steerloop.sweep.points import read_rows


@contextmanager
def lines():
    """What is logged meanwhile."""
    said = []
    sink = logger.add(said.append, format="{message}", level="INFO")
    yield said
    logger.remove(sink)


@pytest.fixture
def run(tmp_path):
    """A finished run by hand, with a ledger beside it."""
    folder = write_run(tmp_path / "runs/one", [tilted({"authority": -0.5})], [tilted({})])
    finish(folder)
    return folder


def strange(root):
    """Neighbours that are no runs: name → what makes it."""
    def file(name, content):
        def make():
            (root / name).mkdir()
            (root / name / "summary.json").write_bytes(content)
        return make

    def other(name, make):
        def at():
            (root / name).mkdir()
            make(root / name / "summary.json")
        return at

    texts = {"object": b"{}", "list": b"[1]", "text": b"notes", "nothing": b"", "number": b"3",
             "null": b"null", "latin": b'{"a": "\xe9"}', "deep": b"[" * 10**5,
             "ended": b'{"ended": 1}', "no arm": b'{"ended": true, "axis": [], "healed": [{}]}',
             "empty arm": b'{"ended": true, "arm": {}, "axis": ["a", "b"], "healed": []}',
             "bom": b"\xef\xbb\xbf{}", "huge": b'{"ended": 1e999}'}
    makes = {k: file(k, v) for k, v in texts.items()}
    makes |= {"folder": other("folder", lambda x: x.mkdir()),
              "pipe": other("pipe", os.mkfifo),
              "loop": other("loop", lambda x: x.symlink_to(x)),
              "dangling": other("dangling", lambda x: x.symlink_to("nowhere"))}
    return makes


def check_what_is_not_ours_is_left_out_with_a_line(run):
    before = ledger(run.parent)
    for name, make in strange(run.parent).items():
        make()
        with lines() as said:
            assert ledger(run.parent).equals(before)
        assert all("\n" not in x.strip() for x in said)
        assert any(f"/{name}/" in x for x in said), name
    (run.parent / "a\nb\x1b[31m").mkdir()
    (run.parent / "a\nb\x1b[31m/summary.json").write_text("{}")
    with lines() as said:
        finish(run)
        assert "1 finished" in ledger_table(run.parent)
    assert all("\n" not in x.strip() and "\x1b" not in x for x in said)
    assert read_table(run.parent / "ledger.parquet").equals(before)


def changed(record, rng):
    """A record with one of its values, anywhere, gone or another."""
    record = copy.deepcopy(record)
    at = [record]
    while True:
        where = at[-1]
        keys = list(where) if isinstance(where, dict) else list(range(len(where)))
        if not keys:
            break
        key = rng.choice(keys)
        if isinstance(where[key], dict | list) and where[key] and rng.random() < 0.8:
            at.append(where[key])
            continue
        if rng.random() < 0.3:
            del where[key]
        else:
            where[key] = rng.choice([None, "x", [], {}, [1, "a"], {"a": 1}, -1, 1e308, True, 2**70,
                                     "\u202e\n", [[]]])
        break
    return record


def check_any_summary_is_a_row_or_a_line(run):
    """2,500 summaries with something else in them: each is left out with a line, or is a row of the
    same kinds of columns; the rows of real runs stay."""
    rng = Random(0)
    summary = json.loads((run / "summary.json").read_text())
    del summary["crc"]  # as older versions wrote it
    own = ledger(run.parent)
    for folder in range(50):
        (run.parent / f"x{folder}").mkdir()
    for _ in range(50):
        for folder in range(50):
            text = json.dumps(changed(summary, rng))
            (run.parent / f"x{folder}/summary.json").write_text(text)
        with lines() as said:
            table = ledger(run.parent)
        assert table.select(own.columns).head(1).equals(own)
        assert {k: table[k].dtype for k in ("run", "down", "ppl_ratio", "arm")} == {
            k: own[k].dtype for k in ("run", "down", "ppl_ratio", "arm")}
        assert all(len(x.strip().splitlines()) == 1 for x in said)


def check_a_ledger_that_is_none_is_left_alone(run):
    path = run.parent / "ledger.parquet"
    good = path.read_bytes()
    path.write_text("shopping list")
    with lines() as said:
        finish(run)
    assert path.read_text() == "shopping list" and any("is no ledger" in x for x in said)
    path.unlink()
    path.mkdir()
    with lines() as said:
        finish(run)
    assert path.is_dir() and any("move it away" in x for x in said)
    path.rmdir()
    pl.DataFrame({"mine": [1]}).write_parquet(path)
    finish(run)
    assert read_table(path).columns == ["mine"]
    path.unlink()
    finish(run)
    assert path.read_bytes() == good


def check_a_folder_in_the_place_of_the_script_does_not_stop_pages(run):
    (script,) = run.parent.glob("plotly-*")
    script.unlink()
    script.mkdir()
    finish(run)
    assert "<script src=" not in (run / "report.html").read_text()


def check_a_named_folder_that_is_no_run_is_one_line(run, tmp_path):
    for name, content in (("events.jsonl", "[]\n"), ("summary.json", "{}"), ("config.json", "[]")):
        (tmp_path / "notes").mkdir(exist_ok=True)
        (tmp_path / "notes" / name).write_text(content)
        with pytest.raises(SystemExit, match=r"error: .*") as e:
            report([str(tmp_path / "notes")])
        assert "\n" not in str(e.value)


def check_rows_of_a_sweep_that_were_cut_off_are_run_again(tmp_path):
    path = tmp_path / "frontier.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": 3')
    assert read_rows(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n[2]\n')
    with pytest.raises(UserError, match="line 2"):
        read_rows(path)


# file systems

UNABLE = [errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK, errno.EPERM, errno.ENOSYS]
FAILS = [errno.EIO, errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES]


def raises(number):
    def call(*_):
        raise OSError(number, os.strerror(number))
    return call


@pytest.mark.parametrize("number", UNABLE)
def check_a_file_system_without_locks_or_syncs_is_used_with_a_line(tmp_path, monkeypatch, number):
    monkeypatch.setattr(files, "_said", set())
    monkeypatch.setattr(fcntl, "flock", raises(number))
    with lines() as said:
        first, second = (Folder(tmp_path / "run") for _ in range(2))
    assert len(said) == 1 and "cannot lock" in said[0]
    monkeypatch.setattr(os, "fsync", raises(number))
    with lines() as said:
        for folder in (first, second):
            folder.json("a.json", value=1)
            folder.table("b", pl.DataFrame({"x": [1]}))
    assert len(said) == 1 and "cannot wait until" in said[0]
    assert read_table(second.path / "b.parquet").height == 1


@pytest.mark.parametrize("number", FAILS)
def check_any_other_error_of_a_file_system_ends_the_run(tmp_path, monkeypatch, number):
    folder = Folder(tmp_path / "run")
    folder.json("a.json", value=1)
    with monkeypatch.context() as m:
        m.setattr(os, "fsync", raises(number))
        with pytest.raises(UserError, match=r"cannot write .*a\.json"):
            folder.json("a.json", value=2)
    assert json.loads((tmp_path / "run/a.json").read_text())["value"] == 1
    with monkeypatch.context() as m:
        m.setattr(fcntl, "flock", raises(number))
        with pytest.raises((UserError, OSError)):
            Folder(tmp_path / "other")


def check_what_a_killed_process_left_is_cleared_away(tmp_path):
    """Beside run folders, too; what a process that lives is writing stays."""
    gone, alive = (tmp_path / f".a.json.{x}.part" for x in (999999999, os.getppid()))
    other = tmp_path / ".b.json.999999999.part"
    for x in (gone, alive, other):
        x.write_text("half")
    write_whole(tmp_path / "a.json", lambda part: part.write_text("whole"))
    assert {x.name for x in tmp_path.iterdir()} == {alive.name, other.name, "a.json"}


# paths

NAMES = ["br[1]", "what?", "a*b", "50 %41", "#1", "ünï 码", "{split}", "-v", "a&b;c'\"", "~", "s3:",
         "file:", "[!x]", " ", "..."]


def check_any_name_of_a_folder_is_a_name(tmp_path):
    """Every name, and 200 made of their parts, below one another."""
    rng, table = Random(0), pl.DataFrame({"x": [1, 2]})
    for i in range(200 + len(NAMES)):
        name = NAMES[i] if i < len(NAMES) else "".join(rng.choices("[]*?{}%#~:!&é码 ab", k=6)) + "x"
        path = tmp_path / str(i) / name / "rounds/00/base.eval.parquet"
        write_table(path, table)
        assert read_table(path).equals(table)
        path.unlink()
        with pytest.raises(UserError, match="is missing"):
            read_table(path)


def check_a_run_in_folders_of_any_name(folders, tmp_path):
    """Model, data and run below names that others expand; trained, reported, opened."""
    root = tmp_path / "br[1] *?/ünï 50%41 #2"
    root.mkdir(parents=True)
    model = root / "mo[d]el"
    model.symlink_to(folders())
    run = short_run(root, small_config(model, quant="none", bootstrap=20), "ru[n]s", rounds=1)
    assert (run / "summary.json").exists() and read_table(run.parent / "ledger.parquet").height == 1
    report([str(run)])
    assert open_student(run, "1").rounds == 1


def check_a_path_that_is_no_utf_8_is_refused_at_once(tmp_path):
    name = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff"))
    with pytest.raises(UserError, match="is no UTF-8"):
        Folder(name / "run")
    assert not name.exists()
