"""A folder of results: append-only events, and files that appear whole or not at all."""

import json
from itertools import count
from pathlib import Path
from typing import Any

import polars as pl
from loguru import logger
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from steerloop.kernels.files import write_whole

FORMAT = "{time:HH:mm:ss} {level: <7} {message}"


def log_to(path: Path) -> None:
    """Log lines go to a file and, through tqdm.write so that no bar is torn, to the terminal."""
    logger.remove()
    logger.add(lambda line: tqdm.write(line, end=""), format=FORMAT, level="INFO")
    logger.add(path, format=FORMAT, catch=False)  # a full disk ends the run, in one line


def _made(path: Path) -> bool:
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


class Folder:
    """Writes below a new folder `path`, or `path`-2, -3, … where runs started in one second."""

    def __init__(self, path: Path) -> None:
        names = (path.name if i == 1 else f"{path.name}-{i}" for i in count(1))
        self.path = next(p for p in map(path.with_name, names) if _made(p))

    def events(self) -> list[dict[str, Any]]:
        """The records so far, in order."""
        return [json.loads(x) for x in (self.path / "events.jsonl").read_text().splitlines()]

    def event(self, stage: str, **values: Any) -> None:
        """Append one record to events.jsonl. Raises ValueError on a number that is not finite."""
        line = json.dumps({"stage": stage, **values}, allow_nan=False)
        with (self.path / "events.jsonl").open("a") as file:
            file.write(line + "\n")

    def json(self, name: str, **values: Any) -> None:
        """A JSON document, finite numbers only."""
        text = json.dumps({"schema": 1, **values}, indent=1, allow_nan=False)
        write_whole(self.path / name, lambda path: path.write_text(text))

    def table(self, name: str, frame: pl.DataFrame) -> None:
        """A parquet table."""
        write_whole(self.path / f"{name}.parquet", frame.write_parquet)

    def tensors(self, name: str, tensors: dict[str, Tensor], **note: Any) -> None:
        """A safetensors file; `note` is JSON under the metadata key 'steerloop'."""
        metadata = {"format": "pt", "steerloop": json.dumps({"schema": 1, **note})}
        path = self.path / f"{name}.safetensors"
        write_whole(path, lambda part: save_file(tensors, part, metadata))
