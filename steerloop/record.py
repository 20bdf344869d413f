"""The run folder: resolved config, append-only events, tables and tensors; and the log."""

import dataclasses
import json
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl
from loguru import logger
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from steerloop.config import Config
from steerloop.kernels.files import PACKAGE, write_whole

FORMAT = "{time:HH:mm:ss} {level: <7} {message}"


def log_to_terminal() -> None:
    """Log lines go through tqdm.write, so that they do not tear the progress bars."""
    logger.remove()
    logger.add(lambda line: tqdm.write(line, end=""), format=FORMAT, level="INFO")


class Run:
    """Writes one run. Every file but the event log and the log text appears whole or not at all."""

    def __init__(self, cfg: Config) -> None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        name = f"{stamp}_{Path(cfg.model).name}_{cfg.barrier}_s{cfg.seed}"
        taken = sum(1 for _ in Path(cfg.runs).glob(f"{name}*"))
        self.path = Path(cfg.runs) / (f"{name}-{taken}" if taken else name)
        self.path.mkdir(parents=True)
        logger.add(self.path / "log.txt", format=FORMAT)
        git = ["git", "-C", str(PACKAGE), "describe", "--always", "--dirty=+", "--exclude=*"]
        self.json("config.json", schema=1, config=dataclasses.asdict(cfg),
                  code=subprocess.run(git, capture_output=True, text=True).stdout.strip(),
                  packages={x: version(x) for x in ("torch", "transformers", "polars")})

    def event(self, stage: str, **values: Any) -> None:
        """Append one record. Raises ValueError on a number that is not finite."""
        with (self.path / "events.jsonl").open("a") as file:
            file.write(json.dumps({"stage": stage, **values}, allow_nan=False) + "\n")

    def json(self, name: str, **values: Any) -> None:
        """A JSON document, finite numbers only."""
        text = json.dumps(values, indent=1, allow_nan=False)
        write_whole(self.path / name, lambda path: path.write_text(text))

    def table(self, name: str, frame: pl.DataFrame) -> None:
        """A parquet table."""
        write_whole(self.path / f"{name}.parquet", frame.write_parquet)

    def tensors(self, name: str, tensors: dict[str, Tensor], **note: Any) -> None:
        """A safetensors file; `note` is JSON under the metadata key 'steerloop'."""
        metadata = {"format": "pt", "steerloop": json.dumps({"schema": 1, **note})}
        path = self.path / f"{name}.safetensors"
        write_whole(path, lambda part: save_file(tensors, part, metadata))
