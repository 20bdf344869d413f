"""A folder of results: append-only events, and files that appear whole or not at all.

Whatever is dear to compute goes through `once`: what is in the folder is read, not made again. So a
run that was cut off goes on by being run again; and since every stage is determined by the config
and what came before it, it ends in the same bits.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from shutil import rmtree
from typing import Any

import polars as pl
import torch
from loguru import logger
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from steerloop import UserError
from steerloop.ranks import told
from steerloop.runfolder.events import event_line, read_events
from steerloop.runfolder.files import (
    check_sum,
    checksums,
    read_table,
    sealed,
    sha256,
    told_of,
    unable,
    write_checksums,
    write_table,
    write_whole,
)
from steerloop.runfolder.layout import CONFIG, EVENTS, LOCK, LOG, adapter, completions, run_of
from steerloop.runfolder.layout import vector as vector_of

ENDS = (".parquet", ".safetensors", ".json")
KEY = ("stage", "round", "state")  # of an event: each happens once


def _made(path: Path) -> bool:
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def digest(note: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of a note and of named tensors."""
    hash = hashlib.sha256(note.encode())
    for name in sorted(tensors):
        hash.update(name.encode())
        hash.update(tensors[name].cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return hash.hexdigest()


def read_tensors(path: Path, device: str = "cpu", **said: Any) -> dict[str, Tensor]:
    """The tensors of a file of a run, by name, whole by its own word; what its note says, as far
    as it says it, has to be what is `said` here.

    Raises UserError where it is gone or damaged, or belongs to another round or run.
    """
    mend = (f"delete it if it is there, then `python -m steerloop.train --resume {run_of(path)}` "
            "makes it anew")
    tensors, note = _opened(path)
    if note is None:
        raise UserError(f"{path} is missing or damaged: {mend}")
    other = {k: note[k] for k, x in said.items() if k in note and note[k] != x}
    if other:
        raise UserError(f"{path} belongs elsewhere (its {' and '.join(other)} are not those of its "
                        f"place): {mend}")
    return {k: x.to(device) for k, x in tensors.items()}


def _opened(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Tensors and note of a file; no note where they are not what was written. (Older files have
    no digest, those of other programs no note: {}.)"""
    try:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118, no mapping
        if said.get("digest", "") not in ("", digest(said.get("steerloop", ""), tensors)):
            return {}, None
        return tensors, json.loads(said.get("steerloop", "{}"))
    except (OSError, SafetensorError, TypeError, ValueError):
        return {}, None


def read_adapter(run: Path, round: int, device: str = "cpu") -> dict[str, Tensor]:
    """The folded Δ of a round (from 0), trained on the rows that are kept beside it. Raises
    UserError (see `read_tensors`)."""
    rows = completions(run, round)
    beside = {"rows": sha256(rows)} if rows.is_file() else {}
    return read_tensors(adapter(run, round), device, round=round, **beside)


def read_vector(run: Path, round: int, device: str = "cpu") -> dict[int, Tensor]:
    """The vector of a round (from 0), by block. Raises UserError (see `read_tensors`)."""
    tensors = read_tensors(vector_of(run, round), device, round=round)
    return {int(k.removeprefix("block.")): x for k, x in tensors.items()}


class Folder:
    """Reads and writes below a new folder `path`, or `path`-2, -3, … where runs started in one
    second; below `path` itself with `again`. Tensors that are read go to `device`.

    Raises UserError while another process has the folder open, and where it cannot be written.
    """

    def __init__(self, path: Path, again: bool = False, device: str = "cpu") -> None:
        names = (path.name if i == 1 else f"{path.name}-{i}" for i in count(1))
        try:
            str(path.absolute()).encode()
        except UnicodeEncodeError as e:
            raise UserError(f"{str(path.absolute())!r} is no UTF-8, so pages cannot name it: "
                            "rename it") from e
        try:
            self.path = path if again else next(p for p in map(path.with_name, names) if _made(p))
            self.device, self.lock = device, (self.path / LOCK).open("wb")  # ends with the process
        except OSError as e:
            raise UserError(f"cannot write below {path.parent} ({e.strerror}): free space, make it "
                            "writable or copy it elsewhere; --runs names another place") from e
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise UserError(f"{self.path} is in use by another process: wait for it, or stop it"
                            ) from e
        except OSError as e:
            unable(e, "lock a file: nothing keeps two processes from working on one run")
        for part in self.path.rglob(".*.part"):  # of a process that was killed while it wrote
            part.unlink()
        self.sums = checksums(self.path)
        self.known = {self._key(x): x for x in self.events()}
        self.behind = False  # whether the record that came last has others after it already
        self.origin = self.path  # of which this is a copy, where it is one
        self.mirror: Callable[[dict[str, Any]], None] = lambda record: None  # hears new records

    def close(self, error: BaseException | None = None) -> None:
        """It is free for another process. A copy goes, unless its log says why it ended."""
        self.lock.close()
        if self.path != self.origin and not any(LOG in x for x in getattr(error, "__notes__", [])):
            rmtree(self.path.parent, ignore_errors=True)

    @staticmethod
    def _key(record: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(record.get(x) for x in KEY)

    def events(self) -> list[dict[str, Any]]:
        """The records so far, in order; what was cut off at the end of the file is cleared away."""
        path = self.path / EVENTS
        if not path.exists():
            return []
        data = path.read_bytes()
        if (whole := data.rfind(b"\n") + 1) < len(data):
            os.truncate(path, whole)
        return read_events(self.path)

    def event(self, stage: str, **values: Any) -> None:
        """Append one record to events.jsonl, unless it is there. Raises ValueError on a number that
        is not finite, UserError where a resumed run does not come to what it came to before."""
        record = {"stage": stage, **values}
        line, key = event_line(record), self._key(record)
        if (before := self.known.get(key)) is not None:
            if event_line(before) != line:
                raise UserError(f"{self.path / EVENTS}: {stage} of round "
                                f"{values.get('round')} is not what it was; if this machine is as "
                                "it was (threads, versions), start a new run")
            self.behind = key != next(reversed(self.known))
            return
        try:
            with (self.path / EVENTS).open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as e:
            raise UserError(f"cannot write {self.path / EVENTS} ({e.strerror}): free space or make "
                            f"it writable, then --resume {self.path}") from e
        self.known[key], self.behind = record, False
        self.mirror(record)

    def document(self, **values: Any) -> None:
        """config.json: what the run is. It is recorded among the events, too, so that what was
        edited by hand shows, and what was lost comes back."""
        values = {"schema": 1, "resumed": [], **values}
        text, now = sealed(values), told_of(values)
        write_whole(self.path / CONFIG, lambda path: path.write_text(text, encoding="utf-8"))
        before = [x for key, x in self.known.items() if key[0] == "config"]
        if not before or before[-1]["document"] != now:
            self.event("config", state=len(before), document=now)

    def json(self, name: str, **values: Any) -> None:
        """A JSON document, finite numbers only."""
        text = json.dumps({"schema": 1, **values}, indent=1, allow_nan=False)
        write_whole(self.path / name, lambda path: path.write_text(text, encoding="utf-8"))

    def table(self, name: str, frame: pl.DataFrame) -> None:
        """A parquet table."""
        write_table(self.path / f"{name}.parquet", frame)

    def tensors(self, name: str, tensors: dict[str, Tensor], **note: Any) -> None:
        """A safetensors file; `note` is JSON under the metadata key 'steerloop', `digest` of it and
        the tensors beside it."""
        said = json.dumps({"schema": 1, **note})
        metadata = {"format": "pt", "steerloop": said, "digest": digest(said, tensors)}
        path = self.path / f"{name}.safetensors"
        write_whole(path, lambda part: save_file(tensors, part, metadata))

    def _file(self, name: str) -> str:
        return next((name + end for end in ENDS if name + end in self.sums), "")

    def has(self, names: list[str]) -> bool:
        """Whether all that is kept under these names is there."""
        files = [self._file(x) for x in names]
        return all(files) and all((self.path / x).exists() for x in files)

    def once(
        self, name: str | list[str], make: Callable[..., Any], *args: Any, **note: Any
    ) -> Any:
        """What `make(*args)` returns, kept under `name`: made once, read ever after.

        A frame becomes parquet, tensors safetensors with a `note` (vectors by block are stored as
        block.<i>), all else JSON; several names are for as many values. Raises UserError for a file
        that is not what was written.
        """
        names = [name] if isinstance(name, str) else name
        if self.has(names):
            values = [self._read(self._file(x)) for x in names]
        else:
            made = told(make(*args), self.device)
            values = [made] if isinstance(name, str) else list(made)
            for x, value in zip(names, values, strict=True):
                self._write(x, value, note)
        return values[0] if isinstance(name, str) else values

    def read(self, name: str) -> Any:
        """What is kept under a name. Raises UserError where it is not there, or not what was
        written."""
        if not self.has([name]):
            raise UserError(f"{self.path} has no {name}: `python -m steerloop.train --resume "
                            f"{self.path}` makes it")
        return self._read(self._file(name))

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
        write_checksums(self.path, self.sums)

    def _read(self, file: str) -> Any:
        path = self.path / file
        check_sum(self.path, file, self.sums[file])
        if path.suffix == ".parquet":
            return read_table(path)
        if path.suffix == ".json":
            return json.loads(path.read_text(encoding="utf-8"))["value"]
        tensors = read_tensors(path, self.device)
        blocks = all(k.startswith("block.") for k in tensors)
        return {int(k[6:]): x for k, x in tensors.items()} if blocks else tensors

    def latest(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The state of work in progress as it was last written by `tensors`, and its note.

        Raises UserError where it is not what was written. (It has no line in checksums.txt: it is
        written over and over, and a kill between the two files must not spoil it.)"""
        path = self.path / f"{name}.safetensors"
        if not path.exists():
            return None
        tensors, note = _opened(path)
        if not note:  # of work in progress all files have one
            raise UserError(f"{path} is damaged: delete it and resume, its stage starts anew")
        return {k: x.to(self.device) for k, x in tensors.items()}, note

    def done(self, name: str) -> None:
        """Work in progress below `name` is over: what was kept to go on from is cleared away."""
        self.sums = {k: x for k, x in self.sums.items() if not k.startswith(f"{name}/")}
        write_checksums(self.path, self.sums)
        try:
            rmtree(self.path / name)
        except FileNotFoundError:
            pass
        except OSError as e:
            logger.warning(f"cannot clear away {self.path / name} ({e.strerror}): nothing reads it "
                           "any more, delete it")

    def settle(self) -> None:
        """All that the run makes is there: what is gone all the same is kept no longer. Raises
        UserError where a file is not what was written."""
        gone = [x for x in self.sums if not (self.path / x).exists()]
        if gone:
            logger.warning(f"gone, and not made by this run any more: {', '.join(gone)}")
            self.sums = {k: x for k, x in self.sums.items() if k not in gone}
            write_checksums(self.path, self.sums)
        for name, digest in self.sums.items():
            check_sum(self.path, name, digest)
