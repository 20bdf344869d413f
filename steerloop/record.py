"""The run folder with its resolved config, and where log lines go."""

import dataclasses
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from loguru import logger

from steerloop.config import Config
from steerloop.kernels.files import code_version
from steerloop.kernels.folder import Folder, log_to


def open_run(cfg: Config) -> Folder:
    """A new run folder that says what runs. The log goes there and, past bars, to the terminal."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    run = Folder(Path(cfg.runs) / f"{stamp}_{Path(cfg.model).name}_{cfg.barrier}_s{cfg.seed}")
    run.json("config.json", config=dataclasses.asdict(cfg), code=code_version(),
             packages={x: version(x) for x in ("torch", "transformers", "polars")})
    log_to(run.path / "log.txt")
    logger.info(f"run folder {run.path}")
    return run
