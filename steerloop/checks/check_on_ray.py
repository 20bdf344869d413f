"""Sweeps on a Ray cluster of two nodes come to the rows of a serial one, whoever is killed on the
way; and what a worker refuses, it refuses in one line. See checks/dealt.py for what is swept."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from steerloop import UserError
from steerloop.checks.dealt import SEEN, dealt
from steerloop.checks.small import save_small
from steerloop.sweep.__main__ import groups_of, parse
from steerloop.sweep.on_ray import DEATHS, Asked, drive, task
from steerloop.sweep.points import append, point, read_rows

ROOT = Path(__file__).parents[2]
ARMS = ("nll", "nll, learning rate", "nll, epochs")  # eight points a group
SWEEP = ["frontier", "--models", "one", "two", "--seeds", "0", "--arms", *ARMS]
EARLY, LATER, ALL = 6, 14, 32
PATIENCE = 240  # seconds


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two models of different weights."""
    folder = tmp_path_factory.mktemp("place")
    save_small(folder / "one")
    save_small(folder / "two", width=40)
    return folder


@pytest.fixture(scope="module")
def serial(place):
    """The rows of all groups, one after another in this process."""
    with pytest.MonkeyPatch.context() as m:
        m.chdir(place)
        (place / "serial").mkdir()
        for group in groups_of(parse([*SWEEP, "--points", "serial"])):
            for rows in dealt(group, []):
                append(Path("serial/frontier.jsonl"), rows)
    rows = read_rows(place / "serial/frontier.jsonl")
    assert len(rows) == ALL and len({x["weights"] for x in rows}) == 2
    return rows


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Two nodes of one CPU each, started in another folder than sweeps are."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'steerloop[ray]'")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("STEERLOOP_TYPECHECK", raising=False)  # of other processes: it takes time
    monkeypatch.chdir(tmp_path)
    short = tempfile.mkdtemp(prefix="ray-")  # paths of sockets may not be long
    nodes = Cluster(True, head_node_args={"num_cpus": 1, "include_dashboard": False,
                                          "temp_dir": short})
    nodes.other = nodes.add_node(num_cpus=1)
    yield nodes
    nodes.shutdown()
    shutil.rmtree(short, ignore_errors=True)


def started(cluster, place, name):
    """The command, on the cluster, as a process."""
    argv = [*SWEEP, "--points", name, "--out", f"{name}.md", "--on", "ray", "--address",
            cluster.address]
    with (place / f"{name}.log").open("a") as log:
        return subprocess.Popen([sys.executable, "-m", "steerloop.checks.dealt", *argv], cwd=place,
                                stdout=log, stderr=log)


def until(process, place, name, rows):
    """Wait for so many rows of a sweep that goes on."""
    deadline = time.monotonic() + PATIENCE
    while len(read_rows(place / name / "frontier.jsonl")) < rows:
        assert process.poll() is None and time.monotonic() < deadline, said(place, name)
        time.sleep(0.05)


def said(place, name):
    """What the command said."""
    return (place / f"{name}.log").read_text()


def notes(place, name):
    """What its workers noted."""
    return [json.loads(x.read_text()) for x in (place / name / SEEN).iterdir()]


def in_the_middle_on(node, process, place, name):
    """Wait until a node is in the middle of a group."""
    while not any(x["node"] == node and x["arms"] < 7 and there(x["pid"])
                  for x in notes(place, name)):
        assert process.poll() is None, said(place, name)
        time.sleep(0.05)


def there(pid):
    """Whether a process is."""
    state = Path(f"/proc/{pid}/stat")
    try:
        return state.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def same(rows, serial):
    """Row for row; none lost, none twice. (Somebody may edit the code meanwhile.)"""
    def plain(rows):
        return [x | {"code": ""} for x in sorted(rows, key=point)]

    assert plain(rows) == plain(serial)


@pytest.mark.long
def check_two_nodes_come_to_the_rows_of_one_process(cluster, place, serial):
    process = started(cluster, place, "whole")
    assert process.wait(PATIENCE) == 0, said(place, "whole")
    same(read_rows(place / "whole/frontier.jsonl"), serial)
    assert len({x["node"] for x in notes(place, "whole")}) == 2
    assert "32 of 32 arms are done" in said(place, "whole")
    assert "frontier" in (place / "whole.md").read_text()


@pytest.mark.long
def check_a_killed_worker_and_a_removed_node_change_no_row(cluster, place, serial):
    process = started(cluster, place, "struck")
    until(process, place, "struck", EARLY)
    latest = max((place / "struck" / SEEN).iterdir(), key=lambda x: x.stat().st_mtime)
    os.kill(int(latest.stem), signal.SIGKILL)
    until(process, place, "struck", LATER)
    assert said(place, "struck").count("its worker or node died") == 1
    in_the_middle_on(cluster.other.node_id, process, place, "struck")
    cluster.remove_node(cluster.other, allow_graceful=False)
    assert process.wait(PATIENCE) == 0, said(place, "struck")
    assert said(place, "struck").count("its worker or node died") == 2
    same(read_rows(place / "struck/frontier.jsonl"), serial)
    assert len({x["pid"] for x in notes(place, "struck")}) == 4 + 2


@pytest.mark.long
def check_a_killed_driver_is_started_again(cluster, place, serial):
    """Killed, then stopped by Ctrl-C; what came is kept, and no worker outlives it."""
    process = started(cluster, place, "again")
    until(process, place, "again", EARLY)
    process.kill()
    process.wait()
    kept = read_rows(place / "again/frontier.jsonl")
    process = started(cluster, place, "again")
    until(process, place, "again", len(kept) + EARLY)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, said(place, "again")
    assert said(place, "again").rstrip().endswith("interrupted")
    deadline = time.monotonic() + 10
    while any(there(x["pid"]) for x in notes(place, "again")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert EARLY < len(kept) + EARLY <= len(read_rows(place / "again/frontier.jsonl")) < ALL
    process = started(cluster, place, "again")
    assert process.wait(PATIENCE) == 0, said(place, "again")
    rows = read_rows(place / "again/frontier.jsonl")
    same(rows, serial)
    assert rows[:len(kept)] == kept


def struck(group, there):
    """A group that kills its worker, one that is refused, and one that is well."""
    if group.regime == "dirty":
        os._exit(1)
    if group.model == "two":
        raise UserError("no two")
    yield from dealt(group, there)


@pytest.mark.long
def check_a_group_that_kills_its_workers_is_left_and_others_are_not(
        cluster, place, serial, monkeypatch):
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.chdir(place)
    Path("left").mkdir()
    for models, message in ((["one"], rf"frontier one test dirty 0: left, workers died {DEATHS}"),
                            (["two"], "^no two$")):
        groups = groups_of(parse([*SWEEP, "--models", *models, "--points", "left"]))
        if models == ["two"]:
            groups = groups[:1]
        with pytest.raises(UserError, match=message):
            list(drive(groups, struck, Asked(cluster.address)))
    same(read_rows(Path("left/frontier.jsonl")),
         [x for x in serial if x["model"] == "one" and x["regime"] == "filtered"])


@pytest.mark.long
def check_a_point_of_the_embedded_model_by_the_command_itself(cluster, place):
    argv = ["frontier", "--seeds", "0", "--regimes", "dirty", "--arms", "nll"]
    for name, more in (("beside", []), ("far", ["--on", "ray", "--address", cluster.address])):
        done = subprocess.run(
            [sys.executable, "-m", "steerloop.sweep", *argv, *more, "--points", name, "--out",
             f"{name}.md"], cwd=place, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr
    (one,), (other,) = (read_rows(place / x / "frontier.jsonl") for x in ("beside", "far"))
    same([one], [other])
    assert one["opening_mass"] > 0.5


def check_what_a_worker_refuses(place, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    group, *_ = groups_of(parse([*SWEEP, "--points", str(tmp_path)]))
    asked = Asked()
    for weights, given, message in (
            (group.weights, Asked(source="0"), "another version of steerloop"),
            ("0123", asked, "another model of the name one")):
        with pytest.raises(UserError, match=message):
            list(task(group, [], weights, lambda *_: iter([[{}]]), given))
    assert [x for _, x in task(group, [], group.weights, lambda *_: iter([[{}]]), asked)] == [[{}]]


def check_without_ray_the_remedy_is_said(place, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'steerloop\[ray\]'"):
        list(drive(groups_of(parse([*SWEEP, "--points", str(tmp_path)])), dealt, Asked()))


def check_where_no_cluster_answers_that_is_said(place, monkeypatch, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'steerloop[ray]'")
    monkeypatch.chdir(place)
    groups = groups_of(parse([*SWEEP, "--points", str(tmp_path)]))
    with pytest.raises(UserError, match=r"--address 127\.0\.0\.1:1: no cluster that can be joined"):
        list(drive(groups, dealt, Asked("127.0.0.1:1")))
