"""A run folder that says what runs, or the one that a run goes on in; and where log lines go."""

import sys
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loguru import logger
from tqdm import tqdm

from steerloop import UserError
from steerloop.runfolder.folder import Folder
from steerloop.runfolder.identity import accepted, identity, resolved
from steerloop.runfolder.inputs import tell
from steerloop.runfolder.layout import LOG

FORMAT = "{time:HH:mm:ss} {level: <7} {message}"


def log_to(path: Path) -> None:
    """Log lines go to a file and, through tqdm.write so that no bar is torn, to the terminal."""
    logger.remove()
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


def open_run(cfg: Any, device: str) -> Folder:
    """A new run folder for a config, or that of --resume; tensors read from it go to `device`. The
    log goes there and, past bars, to the terminal.

    Raises UserError where --resume finds the run finished, in use, or another one than `cfg` says.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    name = f"{stamp}_{Path(cfg.model).name}_{cfg.barrier}_s{cfg.seed}"
    run = Folder(Path(cfg.resume or f"{cfg.runs}/{name}"), bool(cfg.resume), device)
    now = {"config": resolved(cfg, device), **identity(cfg, device)}
    run.document(**(accepted(run.path, now, cfg.force) if cfg.resume else now))
    log_to(run.path / LOG)
    logger.info(f"run folder {run.path}")
    tell(cfg, now["inputs"])
    return run
