"""What is damaged or gone from a run folder: the message says what to do, and doing just that ends
in the run as it was. Meanwhile `report` is a page or one line. What was edited by hand is noticed.
"""

import dataclasses
import json
import re
from itertools import product
from pathlib import Path
from random import Random
from shutil import copytree, rmtree

import polars as pl
import pytest
from safetensors.torch import load_file, save_file

from steerloop import UserError
from steerloop.checks.killed import ended, print_of
from steerloop.checks.small import short_config, small_config
from steerloop.cli.entry import command
from steerloop.cli.parsing import parse
from steerloop.config import Config
from steerloop.export.student import open_student
from steerloop.report.__main__ import main as report
from steerloop.runfolder.files import checksums, read_document, sealed, unsealed, write_checksums
from steerloop.runfolder.folder import read_adapter, read_vector
from steerloop.train import train

HARMS = ("deleted", "truncated", "flipped", "emptied")


def harm(path, how, rng):
    """Damage a file."""
    data = path.read_bytes()
    at = rng.randrange(len(data))
    if how == "deleted":
        path.unlink()
    elif how == "flipped":
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1:])
    else:
        path.write_bytes(data[:at] if how == "truncated" else b"")


def resume(run, *flags):
    """`--resume` on the command line: its last word, or ""."""
    return ended(lambda: command(lambda argv: parse(Config, argv, ""), train,
                                 ["--resume", str(run), *flags]))


def followed(run, most=5):
    """Do what the messages say, to the letter, until the run is finished."""
    for _ in range(most):
        said = resume(run)
        if not said or " is finished; " in said:
            return
        assert said.startswith("error: ") and "\n" not in said and "--resume" in said, said
        named = re.findall(r"^error: (.+?)(?:, line \d+)? is [^:]*: delete ", said)
        assert len(named) == 1, said
        (name,) = named
        Path(name).unlink()
    raise AssertionError(f"{said}: the advice leads nowhere")


@pytest.fixture(scope="module")
def cfg(folders, tmp_path_factory):
    small = small_config(folders(), quant="none")
    return short_config(tmp_path_factory.mktemp("data"), small, bootstrap=20)


@pytest.fixture(scope="module")
def whole(cfg, tmp_path_factory):
    """A finished run, in a place where each of its copies can lie by turns."""
    return train(dataclasses.replace(cfg, runs=str(tmp_path_factory.mktemp("whole") / "runs")))


@pytest.fixture(scope="module")
def pristine(whole):
    """A copy that stays as it is, and what it says."""
    kept = whole.parent.with_name("kept")
    copytree(whole.parent, kept)
    return kept, print_of(kept)


def again(whole, pristine):
    """The run, as it was."""
    rmtree(whole.parent)
    copytree(pristine[0], whole.parent)


def mended(whole, pristine, name, how, seed):
    """Damage one file, look at it, follow the advice: is it the run that it was?"""
    again(whole, pristine)
    harm(whole / name, how, Random(seed))
    said = ended(lambda: report([str(whole)]))
    assert not said or (said.startswith("error: ") and "\n" not in said), (name, how, said)
    again(whole, pristine)
    harm(whole / name, how, Random(seed))
    followed(whole)
    ended(lambda: report([str(whole)]))  # a page that was damaged is rewritten
    now = print_of(whole.parent)
    other = {x for x in now.keys() | pristine[1].keys() if now.get(x) != pristine[1].get(x)}
    assert not other, (name, how, seed, other)


SAMPLE = [("rounds/01/healed.eval.parquet", "deleted"), ("rounds/00/base.eval.parquet", "flipped"),
          ("config.json", "deleted"), ("config.json", "truncated"), ("summary.json", "flipped"),
          ("map.html", "deleted"), ("checksums.txt", "emptied")]


@pytest.mark.parametrize(("name", "how"), SAMPLE)
def check_the_advised_repair_works(whole, pristine, name, how):
    mended(whole, pristine, name, how, 0)


@pytest.mark.long
def check_every_file_can_be_repaired(whole, pristine):
    names = sorted(str(x.relative_to(whole)) for x in whole.rglob("*")
                   if x.is_file() and x.name not in ("lock", "log.txt"))
    assert len(names) > 35
    for name, how in product(names, HARMS):
        mended(whole, pristine, name, how, 1)


def check_a_config_edited_by_hand_is_noticed(whole, pristine):
    """By whoever reads it; what changed is said; --force goes on with it, and notes it."""
    again(whole, pristine)
    path = whole / "config.json"
    edited = json.loads(path.read_text())
    lam = edited["config"]["lam"]
    edited["config"] |= {"lam": 9.5, "lr": 0.5}
    for text in (json.dumps(edited), sealed({k: x for k, x in edited.items() if k != "crc"})):
        path.write_text(text)
        change = rf"config\.lam: {lam} → 9\.5; config\.lr: 0\.01 → 0\.5"
        for reader in (lambda: report([str(whole)]), lambda: open_student(whole),
                       lambda: read_document(whole), lambda: command(
                           lambda argv: parse(Config, argv, ""), train, ["--resume", str(whole)])):
            with pytest.raises((UserError, SystemExit), match=f"{change}.*--force"):
                reader()
    assert resume(whole, "--force") == ""
    assert unsealed(path.read_text())["resumed"] == [
        {"config.lam": f"{lam} → 9.5", "config.lr": "0.01 → 0.5"}]
    assert read_document(whole)["config"]["lam"] == 9.5
    assert "is finished" in resume(whole)


def check_files_of_another_round_do_not_pass(whole, pristine):
    """Adapters, or vectors, that changed places: without the list of checksums nothing is read, and
    under a list that was made to fit them the files themselves say where they belong."""
    again(whole, pristine)
    for name in ("adapter", "vector"):
        a, b = (whole / f"rounds/0{i}/{name}.safetensors" for i in (0, 1))
        first = a.read_bytes()
        a.write_bytes(b.read_bytes())
        b.write_bytes(first)
    with pytest.raises(UserError, match=r"is damaged"):
        open_student(whole, "2")
    (whole / "checksums.txt").unlink()
    with pytest.raises(UserError, match=r"checksums\.txt is missing.*--resume"):
        open_student(whole, "2")
    for read in (read_adapter, read_vector):
        with pytest.raises(UserError, match=r"belongs elsewhere \(its round.*--resume"):
            read(whole, 0)
    path = whole / "rounds/00/adapter.safetensors"
    save_file(load_file(path), path, {"steerloop": json.dumps({"round": 0, "rows": "0" * 64})})
    with pytest.raises(UserError, match=r"belongs elsewhere \(its rows are"):
        read_adapter(whole, 0)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="missing or damaged"):
        read_adapter(whole, 0)


def check_a_list_that_vouches_for_itself(tmp_path):
    """Any change of a line of checksums.txt shows, and so does one that is missing; older lists,
    which have no first line, are read."""
    rng = Random(0)
    sums = {f"rounds/{i:02d}/a b[{i}].json": f"{rng.getrandbits(256):064x}" for i in range(9)}
    write_checksums(tmp_path, sums)
    assert checksums(tmp_path) == sums
    text = (path := tmp_path / "checksums.txt").read_bytes()
    lines = text.splitlines(keepends=True)
    for _ in range(1500):
        at = rng.randrange(1, len(text))
        path.write_bytes(text[:at] + bytes([text[at] ^ 1 << rng.randrange(7)]) + text[at + 1:])
        with pytest.raises(UserError, match="is damaged: delete it"):
            checksums(tmp_path)
    for gone in range(1, len(lines)):
        path.write_bytes(b"".join(lines[:gone] + lines[gone + 1:]))
        with pytest.raises(UserError, match="is damaged: delete it"):
            checksums(tmp_path)
    path.write_bytes(b"".join(lines[1:]))
    assert checksums(tmp_path) == sums


def check_any_flip_of_a_sealed_text_shows_or_says_the_same():
    rng, record = Random(0), {"a": [1, 2.5, None], "b": {"c": "x\u00e4", "d": -0.125}, "e": 1e-9}
    text = sealed(record)
    assert unsealed(text) == record == unsealed(json.dumps(record))
    for _ in range(1500):
        at = rng.randrange(len(text))
        changed = text[:at] + chr(ord(text[at]) ^ 1 << rng.randrange(7)) + text[at + 1:]
        try:
            found = unsealed(changed)
        except ValueError:
            continue
        assert {k: found.get(k) for k in record} == record, changed


@pytest.mark.long
def check_a_run_given_more_rounds_gives_up_what_it_never_measures_again(whole, pristine):
    """What stood beside the old last round may go; nothing else may, and the run ends."""
    again(whole, pristine)
    assert resume(whole, "--rounds", "3") == ""
    before = print_of(whole.parent)
    copytree(whole.parent, longer := whole.parent.with_name("longer"))
    beside = "rounds/01/matched.eval.parquet"
    for name, how in ((beside, "deleted"), (beside, "flipped"), ("events.jsonl", "deleted")):
        again(whole, [longer])
        harm(whole / name, how, Random(0))
        assert (whole / name).name in ended(lambda: report([str(whole)]))
        followed(whole)
        assert "is finished" in resume(whole) and ended(lambda: report([str(whole)])) == ""
        now = print_of(whole.parent)
        assert {x for x in before if x.endswith(("parquet", "safetensors"))
                and "ledger" not in x and now.get(x) != before[x]} <= {f"{whole.name}/{beside}"}
    assert pl.read_parquet(whole / "rounds/02/matched.eval.parquet").height
