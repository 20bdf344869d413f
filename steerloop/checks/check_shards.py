"""Several jobs write the rows of one sweep: each line stays whole, none is lost, twice or of
another model; jobs of an array share out all groups; a sweep takes any model, or says why not."""

import json
import multiprocessing
import shutil
from io import FileIO
from itertools import chain

import pytest

from steerloop import UserError
from steerloop.loading.hub import locate
from steerloop.sweep.__main__ import groups_of, main, parse
from steerloop.sweep.points import Group, append, config, point, read_rows, write

KEY = {"model": "m", "weights": "0", "split": "test", "regime": "dirty", "arm": "nll",
       "family": "nll", "setting": "", "ended": ""}
MANY = 60


def row(seed, round, **more):
    return KEY | {"seed": seed, "round": round, "answers": ["said " * 400]} | more


def writes(path, seed):
    """Arms of two rows, each arm a second time."""
    for count in range(2 * MANY):
        append(path, [row(seed, 2 * (count // 2)), row(seed, 2 * (count // 2) + 1)])


def check_two_writers_at_once_lose_and_tear_nothing(tmp_path):
    path = tmp_path / "frontier.jsonl"
    path.write_text('{"model": "m", "cut off')
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=writes, args=(path, x)) for x in (0, 1)]
    for x in writers:
        x.start()
    for x in writers:
        x.join()
    rows = read_rows(path)
    assert len(rows) == len({point(x) for x in rows}) == 2 * 2 * MANY
    assert path.read_text().count("\n") == len(rows) and path.read_text().endswith("}\n")
    assert [x["round"] for x in rows if x["seed"] == 0] == list(range(2 * MANY))


def check_rows_that_are_there_stay_and_those_of_another_model_are_refused(tmp_path):
    path = tmp_path / "frontier.jsonl"
    assert append(path, [row(0, 1)]) == [row(0, 1)]
    assert append(path, [row(0, 1, shift=1.0), row(0, 2)]) == [row(0, 2)]
    with pytest.raises(UserError, match="another model m"):
        append(path, [row(0, 3, weights="1")])
    assert read_rows(path) == [row(0, 1), row(0, 2)]


def check_a_full_disk_leaves_no_half_a_row(tmp_path):
    class Full(FileIO):
        def write(self, data):
            if self.tell() > 5:
                raise OSError("no space")
            return super().write(data[:3])

    (path := tmp_path / "rows").write_bytes(b"rows\n")
    with Full(path, "a+") as file, pytest.raises(OSError, match="no space"):
        write(file, b"a line\n", 5)
    assert path.read_bytes() == b"rows\n"


def check_jobs_of_an_array_share_out_all_groups(tmp_path):
    command = ["frontier", "--seeds", *"01234", "0", "--points", str(tmp_path)]
    whole = groups_of(parse(command))
    parts = [groups_of(parse([*command, "--shard", f"{k}/4"])) for k in (1, 2, 3, 4)]
    assert len(whole) == 10 and [len(x) for x in parts] == [3, 3, 2, 2]
    assert sorted(map(str, chain(*parts))) == sorted(map(str, whole))
    assert groups_of(parse([*command, "--shard", "11/11"])) == []


@pytest.mark.parametrize(("more", "message"), [
    (["--shard", "0/4"], "K/N"), (["--shard", "5/4"], "K/N"), (["--shard", "1"], "K/N"),
    (["--shard", "1/2", "--on", "ray"], "give one of them"), (["--address", "auto"], "--on ray"),
    (["--on", "ray", "--address", "ray://host:1"], "ray job submit"),
    (["--gpus-per-run", "1.5"], "whole number"),
])
def check_options_that_cannot_be_are_refused(more, message, capsys):
    with pytest.raises(SystemExit):
        main(["frontier", *more])
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def check_models_of_one_name_are_refused(tmp_path):
    command = ["frontier", "--points", str(tmp_path), "--models"]
    with pytest.raises(UserError, match="two of the name m"):
        groups_of(parse([*command, "a/m", "b/m"]))
    assert len(groups_of(parse([*command, "embedded", "embedded"]))) == 10


def check_a_model_has_the_settings_of_its_kind(tmp_path, folders):
    """The micro-world's preset for those that speak of it alone, their own for all others."""
    twin = shutil.copytree(locate("embedded"), tmp_path / "twin")
    ours, other = (config(Group("frontier", str(x), "test", "dirty", 0, tmp_path, None, "cuda", 3))
                   for x in (twin, folders()))
    assert ours.trait.endswith("tinyworld/data") and ours.probes and ours.steer_blocks
    assert not other.trait.endswith("tinyworld/data") and not other.probes
    assert not other.steer_blocks and other.multiples == ours.multiples
    assert (other.device, other.threads, other.model) == ("cuda", 3, str(folders()))
    with pytest.raises(UserError, match="published models"):
        Group("real", str(twin), "test", "mood", 0, tmp_path).check()


def check_tables_of_a_model_without_a_probe_of_opening_mass(tmp_path, monkeypatch):
    """Its rows have no such column: tables leave it out."""
    monkeypatch.chdir(tmp_path)
    rows = [row(0, 1, arm=x, family=x, setting=str(i), read_by="said", shift=0.3 * i, ppl=1.0,
                coherence=1.0, coherence_base=1.0, active=None, code="c", kl_base=0.1, score=1.0,
                beaten="", sentence_validity=1.0, **{"Δsaid": 0.1})
            for x in ("nll", "kl_rev, ref base") for i in range(4)]
    for name in ("frontier", "references", "barrier", "rounds", "baselines"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    main(["--points", ".", "--out", "page.md"])
    text = (tmp_path / "page.md").read_text()
    assert "coherence, dirty" in text and "opening mass, dirty" not in text
