"""A folder of results: append-only events, and files that appear whole or not at all.

Whatever is dear to compute goes through `once`: what is in the folder is read, not made again. So a
run that was cut off goes on by being run again; and since every stage is determined by the config
and what came before it, it ends in the same bits.
"""

import fcntl
import hashlib
import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from shutil import rmtree
from typing import Any

import polars as pl
import torch
from loguru import logger
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from steerloop import UserError
from steerloop.kernels.files import (
    SUMS,
    check_sum,
    checksums,
    event_line,
    read_events,
    sha256,
    write_whole,
)
from steerloop.kernels.live import Rounds

FORMAT = "{time:HH:mm:ss} {level: <7} {message}"
ENDS = (".parquet", ".safetensors", ".json")
KEY = ("stage", "round", "state")  # of an event: each happens once


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


def digest(note: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of a note and of named tensors."""
    found = hashlib.sha256(note.encode())
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


class Nowhere:
    """Keeps nothing: for use without a run folder."""

    def once(
        self, name: str | list[str], make: Callable[..., Any], *args: Any, **note: Any
    ) -> Any:
        return make(*args)

    def tensors(self, name: str, tensors: dict[str, Tensor], **note: Any) -> None:
        pass

    def latest(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return None

    def survived(self, bank: list[pl.DataFrame], wanted: int) -> None:
        pass


NOWHERE = Nowhere()


def work(round: int) -> str:
    """Where a round keeps what it needs until it is over."""
    return f"rounds/{round:02d}/work"


class Folder(Nowhere):
    """Reads and writes below a new folder `path`, or `path`-2, -3, … where runs started in one
    second; below `path` itself with `again`. Tensors that are read go to `device`.

    Raises UserError while another process has the folder open, and where it cannot be written.
    """

    def __init__(self, path: Path, again: bool = False, device: str = "cpu") -> None:
        names = (path.name if i == 1 else f"{path.name}-{i}" for i in count(1))
        try:
            self.path = path if again else next(p for p in map(path.with_name, names) if _made(p))
            self.device, self.lock = device, (self.path / "lock").open("w")  # ends with the process
        except OSError as e:
            raise UserError(f"cannot write below {path.parent} ({e.strerror}): free space, make it "
                            "writable or copy it elsewhere; --runs names another place") from e
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise UserError(f"{self.path} is in use by another process: wait for it, or stop it"
                            ) from e
        for part in self.path.rglob(".*.part"):  # of a process that was killed while it wrote
            part.unlink()
        self.sums, self.rounds = checksums(self.path), Rounds()
        self.known = {self._key(x): x for x in self.events()}

    @staticmethod
    def _key(record: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(record.get(x) for x in KEY)

    def events(self) -> list[dict[str, Any]]:
        """The records so far, in order; what was cut off at the end of the file is cleared away."""
        path = self.path / "events.jsonl"
        if not path.exists():
            return []
        if (whole := path.read_bytes().rpartition(b"\n"))[2]:
            path.write_bytes(whole[0] + whole[1])
        return read_events(self.path)

    def event(self, stage: str, **values: Any) -> None:
        """Append one record to events.jsonl, unless it is there. Raises ValueError on a number that
        is not finite, UserError where a resumed run does not come to what it came to before."""
        record = {"stage": stage, **values}
        line = event_line(record)
        if (before := self.known.get(self._key(record))) is not None:
            if event_line(before) != line:
                raise UserError(f"{self.path / 'events.jsonl'}: {stage} of round "
                                f"{values.get('round')} is not what it was; if this machine is as "
                                "it was (threads, versions), start a new run")
            return
        with (self.path / "events.jsonl").open("a") as file:
            file.write(line)
        self.known[self._key(record)] = record

    def json(self, name: str, **values: Any) -> None:
        """A JSON document, finite numbers only."""
        text = json.dumps({"schema": 1, **values}, indent=1, allow_nan=False)
        write_whole(self.path / name, lambda path: path.write_text(text))

    def table(self, name: str, frame: pl.DataFrame) -> None:
        """A parquet table."""
        write_whole(self.path / f"{name}.parquet", frame.write_parquet)

    def tensors(self, name: str, tensors: dict[str, Tensor], **note: Any) -> None:
        """A safetensors file; `note` is JSON under the metadata key 'steerloop', `digest` of it and
        the tensors beside it."""
        said = json.dumps({"schema": 1, **note})
        metadata = {"format": "pt", "steerloop": said, "digest": digest(said, tensors)}
        path = self.path / f"{name}.safetensors"
        write_whole(path, lambda part: save_file(tensors, part, metadata))

    def once(
        self, name: str | list[str], make: Callable[..., Any], *args: Any, **note: Any
    ) -> Any:
        """What `make(*args)` returns, kept under `name`: made once, read ever after.

        A frame becomes parquet, tensors safetensors with a `note` (vectors by block are stored as
        block.<i>), all else JSON; several names are for as many values. Raises UserError for a file
        that is not what was written.
        """
        names = [name] if isinstance(name, str) else name
        files = [next((x + end for end in ENDS if x + end in self.sums), "") for x in names]
        if all(files) and all((self.path / x).exists() for x in files):
            values = [self._read(x) for x in files]
        else:
            try:
                with self.rounds.stage(names[0]):
                    made = make(*args)
                values = [made] if isinstance(name, str) else list(made)
                for x, value in zip(names, values, strict=True):
                    self._write(x, value, note)
            except KeyboardInterrupt as e:
                raise KeyboardInterrupt(f"every file of {self.path} is whole; --resume {self.path} "
                                        "goes on") from e
        return values[0] if isinstance(name, str) else values

    def _write(self, name: str, value: Any, note: dict[str, Any]) -> None:
        if isinstance(value, pl.DataFrame):
            end = ".parquet"
            self.table(name, value)
        elif isinstance(value, dict) and all(isinstance(x, Tensor) for x in value.values()):
            end = ".safetensors"
            blocks = all(isinstance(k, int) for k in value)
            self.tensors(name, {f"block.{k}": x for k, x in value.items()} if blocks else value,
                         **note)
        else:
            end = ".json"
            self.json(f"{name}.json", value=value)
        self.sums[name + end] = sha256(self.path / (name + end))
        self._write_sums()

    def _write_sums(self) -> None:
        text = "".join(f"{digest}  {name}\n" for name, digest in sorted(self.sums.items()))
        write_whole(self.path / SUMS, lambda path: path.write_text(text))

    def _read(self, file: str) -> Any:
        path = self.path / file
        check_sum(self.path, file, self.sums[file])
        if path.suffix == ".parquet":
            return pl.read_parquet(path)
        if path.suffix == ".json":
            return json.loads(path.read_text())["value"]
        found = load_file(path, self.device)
        blocks = all(k.startswith("block.") for k in found)
        return {int(k[6:]): x for k, x in found.items()} if blocks else found

    def latest(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The state of work in progress as it was last written by `tensors`, and its note.

        Raises UserError where it is not what was written. (It has no line in checksums.txt: it is
        written over and over, and a kill between the two files must not spoil it.)"""
        path = self.path / f"{name}.safetensors"
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                said = file.metadata()
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118, no mapping
            whole = said["digest"] == digest(said["steerloop"], tensors)
        except (SafetensorError, TypeError, KeyError):
            whole = False
        if not whole:
            raise UserError(f"{path} is damaged: delete it and resume, its stage starts anew")
        return {k: x.to(self.device) for k, x in tensors.items()}, json.loads(said["steerloop"])

    def survived(self, bank: list[pl.DataFrame], wanted: int) -> None:
        """Shows how many of the judged rows were kept so far."""
        kept, rows = (sum(x) for x in zip(*((x["keep"].sum(), len(x)) for x in bank), strict=True))
        self.rounds.note(kept=f"{kept} of {wanted}", survival=f"{kept / rows:.0%}")

    def done(self, name: str) -> None:
        """Work in progress below `name` is over: what was kept to go on from is cleared away."""
        self.sums = {k: x for k, x in self.sums.items() if not k.startswith(f"{name}/")}
        self._write_sums()
        rmtree(self.path / name, ignore_errors=True)
