"""A run folder that says what runs, or the one that a run goes on in; and where log lines go."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loguru import logger
from tqdm import tqdm

from steerloop.runfolder.folder import Folder
from steerloop.runfolder.identity import accepted, identity, resolved
from steerloop.runfolder.inputs import tell
from steerloop.runfolder.layout import LOG

FORMAT = "{time:HH:mm:ss} {level: <7} {message}"


def log_to(path: Path) -> None:
    """Log lines go to a file and, through tqdm.write so that no bar is torn, to the terminal."""
    logger.remove()
    logger.add(lambda line: tqdm.write(line, end=""), format=FORMAT, level="INFO")
    logger.add(path, format=FORMAT, catch=False)  # a full disk ends the run, in one line


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
