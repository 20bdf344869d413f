"""The run folder with its resolved config, and where log lines go."""

from datetime import UTC, datetime
from pathlib import Path

from loguru import logger

from steerloop.config import Config
from steerloop.kernels.folder import Folder, log_to
from steerloop.kernels.identity import accepted, identity, resolved


def open_run(cfg: Config, device: str) -> Folder:
    """A new run folder that says what runs, or that of --resume; tensors read from it go to
    `device`. The log goes there and, past bars, to the terminal.

    Raises UserError where --resume finds the run finished, in use, or another one than `cfg` says.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    name = f"{stamp}_{Path(cfg.model).name}_{cfg.barrier}_s{cfg.seed}"
    run = Folder(Path(cfg.resume or f"{cfg.runs}/{name}"), bool(cfg.resume), device)
    now = {"config": resolved(cfg, device), **identity(cfg, device)}
    run.json("config.json", **(accepted(run.path, now, cfg.force) if cfg.resume else now))
    log_to(run.path / "log.txt")
    logger.info(f"run folder {run.path}")
    return run
