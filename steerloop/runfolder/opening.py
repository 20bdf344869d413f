"""A run folder that says what runs, or the one that a run goes on in; and where log lines go."""

import os
import sys
import tarfile
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.parse import quote

from loguru import logger
from tqdm import tqdm

from steerloop import UserError
from steerloop.loading.cache import user_cache
from steerloop.ranks import count, own, told
from steerloop.runfolder.files import write_whole
from steerloop.runfolder.folder import Folder
from steerloop.runfolder.identity import accepted, identity, resolved
from steerloop.runfolder.inputs import tell
from steerloop.runfolder.layout import LOCK, LOG, TRACKED

FORMAT = "{time:HH:mm:ss} {level: <7} {message}"


def log_to(path: Path) -> None:
    """Log lines go to a file and, through tqdm.write so that no bar is torn, to the terminal."""
    logger.remove()
    if own() == 0:
        logger.add(show, format=FORMAT, level="INFO", catch=False)
    logger.add(path, format=FORMAT, catch=False)  # a full disk ends the run, in one line


def show(line: str) -> None:
    """Write to the terminal, past bars; what it cannot show is replaced."""
    if sys.stdout is not None:
        encoding = sys.stdout.encoding or "utf-8"
        tqdm.write(line.encode(encoding, "replace").decode(encoding), end="")


def note_end(error: BaseException, path: Path, go_on: str) -> None:
    """What ended the work in a folder before its time: its traceback goes into the log, and to the
    log alone; how to `go_on` and where the traceback is become notes of the error. One that was
    foreseen needs no traceback, and one that names the folder has its remedy."""
    foreseen = isinstance(error, UserError)
    if not (foreseen and str(path) in str(error)):
        error.add_note(go_on)
    with suppress(OSError, UnicodeError):  # a full disk: nothing is noted that is not there
        logger.debug("".join(traceback.format_exception(error)))
        if not foreseen and not isinstance(error, KeyboardInterrupt):
            error.add_note(f"its traceback is in {path / LOG}")


def opened(path: Path, again: bool, device: str) -> Folder:
    """The folder that rank 0 opens, and for every other rank a copy of its own: there it reads and
    writes what rank 0 does, and nobody looks."""
    if own() == 0:
        run = Folder(path, again, device)
        note_launch(run.path)
        if count() > 1:
            told((run.path, packed(run.path)))
        return run
    origin, files = told((path, b""))
    copy = Path(mkdtemp(prefix="steerloop-rank-")) / origin.name
    copy.mkdir()
    with tarfile.open(fileobj=BytesIO(files)) as tar:
        tar.extractall(copy, filter="data")
    run = Folder(copy, True, device)
    run.origin = origin
    return run


def packed(path: Path) -> bytes:
    """A folder as bytes, its lock and what trackers keep in it left out."""
    data = BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for x in sorted(path.rglob("*")):
            name = x.relative_to(path)
            if x.is_file() and x.name != LOCK and name.parts[0] not in TRACKED:
                tar.add(x, str(name))
    return data.getvalue()


def launch() -> Path | None:
    """Where the folder of a launch of torchrun is noted; None outside of one. (Without a name of
    its own it is called after the process that watches over its ranks.)"""
    if (name := os.environ.get("TORCHELASTIC_RUN_ID")) is None:
        return None
    return user_cache() / "launches" / (f"{os.getppid()}" if name == "none" else quote(name, ""))


def note_launch(path: Path) -> None:
    """A run began in this folder."""
    if (note := launch()) is not None:
        note.parent.mkdir(parents=True, exist_ok=True)
        text = str(path.absolute())
        write_whole(note, lambda part: part.write_text(text, encoding="utf-8"))


def forget_launch() -> None:
    """The run of this launch came to its end."""
    if own() == 0 and (note := launch()) is not None:
        note.unlink(missing_ok=True)


def begun() -> Path | None:
    """The folder in which the launch that this rank is of began; None where it did not."""
    note = launch()
    if note is None or not note.is_file():
        return None
    return Path(note.read_text(encoding="utf-8"))


def open_run(cfg: Any, device: str) -> Folder:
    """A new run folder for a config, or that of --resume; tensors read from it go to `device`. The
    log goes there and, past bars, to the terminal.

    Raises UserError where --resume finds the run finished, in use, or another one than `cfg` says.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    name = f"{stamp}_{Path(cfg.model).name}_{cfg.barrier}_s{cfg.seed}"
    run = opened(Path(cfg.resume or f"{cfg.runs}/{name}"), bool(cfg.resume), device)
    now = {"config": resolved(cfg, device), **identity(cfg, device)}
    goes_on = bool(cfg.resume) and own() == 0  # which rank 0 decides
    now = told(accepted(run.path, now, cfg.force) if goes_on else now)
    run.document(**now)
    log_to(run.path / LOG)
    logger.info(f"run folder {run.path}")
    tell(cfg, now["inputs"])
    return run
