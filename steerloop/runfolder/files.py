"""Files that appear whole or not at all, and are what was written. No torch: reports read run
folders with it."""

import errno
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
from loguru import logger
from safetensors import SafetensorError

from steerloop import UserError
from steerloop.runfolder.events import crc, read_events
from steerloop.runfolder.layout import (
    CONFIG,
    EVENTS,
    LOCK,
    SUMMARY,
    SUMS,
    is_work,
    run_of,
    upgraded,
    upgraded_summary,
)

UNABLE = {  # what a file system answers that cannot do this at all
    errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOLCK, errno.EPERM}
FREE = {"resume", "force", "runs", "tasks_path", "track"}  # knobs that say where and how, not what
SEAL = "# sha256 of what is below: "  # first line of checksums.txt: sha256sum skips it
_said: set[str] = set()


def unable(error: OSError, what: str) -> None:
    """Go on without what a file system cannot do, saying so once. Raises any other error anew."""
    if error.errno not in UNABLE:
        raise error
    if what not in _said:
        _said.add(what)
        logger.warning(f"this file system cannot {what} ({error.strerror or error})")


def _sync(path: Path, flags: int) -> None:
    """What was written to a file, or a folder's names, is on the disk."""
    number = os.open(path, flags)
    try:
        os.fsync(number)
    except OSError as e:
        unable(e, "wait until a file is on the disk: after a power cut, or where the machine "
                  "stops, a file may be damaged; that is noticed")
    finally:
        os.close(number)


def left_behind(path: Path) -> list[Path]:
    """The temporary files of `path` whose processes are no more."""
    left = []
    for part in path.parent.glob(".*.part"):
        name, _, number = part.name[1:].removesuffix(".part").rpartition(".")
        if name == path.name and number.isdecimal() and not running(int(number)):
            left.append(part)
    return left


def running(process: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(process, 0)  # sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def write_whole(path: Path, writer: Callable[[Path], Any]) -> None:
    """`writer` fills a temporary file beside `path`, which then takes the name at once.

    Raises UserError when it cannot be written; what was at `path` stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for part in left_behind(path):
            part.unlink(missing_ok=True)
        writer(temporary)
        ordinary(temporary)
        _sync(temporary, os.O_RDWR)  # on the disk before it has the name
        os.replace(temporary, path)
        _sync(path.parent, os.O_RDONLY)  # the name, too
    except (OSError, SafetensorError, pl.exceptions.PolarsError) as e:
        raise UserError(f"cannot write {path}: {e}; what was written before it is whole: free space"
                        " or make the folder writable, then go on (a run: --resume)") from e
    finally:
        with suppress(OSError):  # nothing there, or a disk that is read only: that has been said
            temporary.unlink()


def ordinary(path: Path) -> None:
    """The mode that new files have here: safetensors makes its own for its owner alone. Where a
    file system knows no modes, nothing changes."""
    mask = os.umask(0)
    os.umask(mask)
    with suppress(OSError):
        path.chmod(0o666 & ~mask)


def write_table(path: Path, table: pl.DataFrame) -> None:
    """A parquet file, whole (see `write_whole`), whatever its path is made of."""
    def write(part: Path) -> None:
        with part.open("wb") as file:
            table.write_parquet(file)

    write_whole(path, write)


def kept_so_far(path: Path) -> pl.DataFrame | None:
    """A table that is written over and over while work goes on, and that nothing depends on; None
    where it is gone, or torn."""
    try:
        return read_table(path)
    except UserError:
        return None


def read_table(path: Path) -> pl.DataFrame:
    """A parquet file of a run, whatever its path is made of: no pattern, no address. Raises
    UserError where it is gone or damaged."""
    try:
        with path.open("rb") as file:
            return pl.read_parquet(file)
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as e:
        raise UserError(f"{path} is {'missing' if isinstance(e, OSError) else 'damaged'}: delete "
                        "it if it is there, then `python -m steerloop.train --resume "
                        f"{run_of(path)}` makes it anew") from e


def table_size(path: Path) -> tuple[int, int]:
    """Rows and columns of a parquet file by its header; no value is read. Raises OSError and
    PolarsError."""
    with path.open("rb") as file:
        table = pl.scan_parquet(file)
        return table.select(pl.len()).collect().item(), len(table.collect_schema())


def sealed(record: dict[str, Any]) -> str:
    """A record → JSON text that says whether it is what was written. Raises ValueError on a number
    that is not finite."""
    text = json.dumps(record, allow_nan=False)
    return json.dumps({**record, "crc": crc(text)}, indent=1)


def unsealed(text: str) -> dict[str, Any]:
    """`sealed` backwards; text of before there were seals is taken as it is. Raises ValueError
    where it is not what was written."""
    record = json.loads(text)
    if not isinstance(record, dict):
        raise ValueError("no record")
    said = record.pop("crc", None)
    if said is not None and said != crc(json.dumps(record)):
        raise ValueError("not what was written")
    return record


def sha256(path: Path) -> str:
    """Checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(run: Path, sums: dict[str, str]) -> None:
    """checksums.txt, under a line that vouches for it."""
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    head = f"{SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n"
    write_whole(run / SUMS, lambda path: path.write_text(head + text, encoding="utf-8"))


def checksums(run: Path) -> dict[str, str]:
    """What sha256 every kept file of a run should have, by its path in the folder.

    Raises UserError where the list itself is damaged.
    """
    path = run / SUMS
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    head, _, body = text.partition("\n") if text.startswith("#") else ("", "", text)
    whole = not head or head == SEAL + hashlib.sha256(body.encode()).hexdigest()
    lines = [x for x in body.split("\n") if x]
    if not whole or not all(re.fullmatch(r"[0-9a-f]{64}  .+", x) for x in lines):
        raise UserError(f"{path} is damaged: delete it, then `python -m steerloop.train --resume "
                        f"{run}` makes everything anew")
    return {name: digest for digest, name in (x.split("  ", 1) for x in lines)}


def check_sum(run: Path, name: str, digest: str) -> None:
    """Raises UserError where a kept file is not what was written."""
    if sha256(run / name) != digest:
        raise UserError(f"{run / name} is damaged: delete it, then `python -m steerloop.train "
                        f"--resume {run}` makes it anew")


def verify(run: Path) -> None:
    """`check_sum` of every kept file that is there, and the records of a finished run counted.
    Raises UserError, too, where the list of checksums is gone."""
    sums = checksums(run)
    listed = (run / SUMS).exists() and (run / SUMS).stat().st_size
    if not listed and recorded(run) and any(x["stage"] == "evaluate" for x in read_events(run)):
        raise UserError(f"{run / SUMS} is missing, so no file can be told from another: `python -m "
                        f"steerloop.train --resume {run}` makes everything anew")
    for name, digest in sums.items():
        if (run / name).exists():
            check_sum(run, name, digest)
    if lost := records_lost(run):
        raise UserError(f"{run / EVENTS} is damaged, {lost} records are gone: delete it if it is "
                        f"there, then `python -m steerloop.train --resume {run}` makes it anew")


def check_complete(run: Path) -> None:
    """Raises UserError where a kept file is gone, but for work in progress: without it a page
    would leave out, in silence, what was in it."""
    for name in checksums(run):
        if not (run / name).exists() and not is_work(name):
            raise UserError(f"{run / name} is missing: `python -m steerloop.train --resume {run}` "
                            "makes it anew")


def read_summary(run: Path) -> dict[str, Any]:
    """summary.json as it would be written now, {} where there is none. Raises UserError where it is
    damaged, or no summary of a run."""
    path = run / SUMMARY
    try:
        if os.access(run, os.X_OK) and not os.path.lexists(path):
            return {}
        if not path.is_file():  # a pipe would be waited for
            raise ValueError("no file")
        known = unsealed(path.read_text(encoding="utf-8"))
        return {"ended": known["ended"], **upgraded_summary(known)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(f"{path} is damaged: delete it, then `python -m steerloop.train --resume "
                        f"{run}` makes it anew") from e


def held(run: Path) -> bool:
    """Whether a process works on a run: its lock is asked for, and given back at once."""
    try:
        with (run / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock, or a file system that knows none
        return False
    return False


def ending(run: Path) -> dict[str, Any]:
    """`read_summary` of a run that came to its end, {} of another."""
    summary = read_summary(run)
    return summary if summary.get("ended") else {}


def records_lost(run: Path) -> int:
    """How many lines events.jsonl of a finished run has lost."""
    wanted, path = ending(run).get("records", 0), run / EVENTS
    return max(0, wanted - len(read_events(run))) if path.exists() else wanted


def told_of(document: dict[str, Any]) -> dict[str, Any]:
    """Of config.json what makes a run what it is, wherever it lies, as JSON has it."""
    config = {k: x for k, x in document["config"].items() if k not in FREE}
    kept = {k: x for k, x in document.items() if k not in ("schema", "code")}
    return json.loads(json.dumps(kept | {"config": config}))


def recorded(run: Path) -> dict[str, Any]:
    """What the run last recorded itself to be (see `told_of`), its config as it would be written
    now; {} where it did not yet. Raises UserError where its records are damaged."""
    known = read_events(run) if (run / EVENTS).is_file() else []
    was = next((x["document"] for x in reversed(known) if x["stage"] == "config"), {})
    return was and was | {"config": upgraded(was["config"])}


def flat(tree: dict[str, Any], stem: str = "") -> dict[str, Any]:
    """Nested dicts → one, keys joined by dots."""
    leaves = {}
    for name, x in tree.items():
        leaves |= flat(x, f"{stem}{name}.") if isinstance(x, dict) else {f"{stem}{name}": x}
    return leaves


def changes(was: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """What differs between two documents: 'key.key' → 'before → now'."""
    a, b = flat(was), flat(now)
    return {k: f"{a.get(k)} → {b.get(k)}" for k in sorted(a.keys() | b.keys())
            if a.get(k) != b.get(k)}


def read_document(run: Path) -> dict[str, Any]:
    """config.json of a run folder: the config, as it would be written now, and what else made the
    run what it is. Raises UserError where there is none, or it is not what the run wrote."""
    was = recorded(run)
    mend = f"then `python -m steerloop.train --resume {run}` makes it anew"
    try:
        text = (run / CONFIG).read_text(encoding="utf-8")
        known = json.loads(text)
        known |= {"config": upgraded(known["config"])}
        known.pop("crc", None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        if was:
            raise UserError(f"{run / CONFIG} is missing or damaged: delete it if it is there, "
                            f"{mend}") from e
        raise UserError(f"{run} is not a run folder (no readable {CONFIG} in it): name one below "
                        "runs/, `python -m steerloop.train` makes one") from e
    if was and (other := changes(was, told_of(known))):
        said = "; ".join(f"{k}: {x}" for k, x in other.items())
        raise UserError(f"{run / CONFIG} is not what the run wrote ({said}): undo that, or `python "
                        f"-m steerloop.train --resume {run} --force` goes on with it, recorded")
    try:
        unsealed(text)
    except ValueError as e:
        raise UserError(f"{run / CONFIG} is damaged: delete it, {mend}") from e
    return known


def read_recorded(run: Path) -> dict[str, Any]:
    """`read_document` as the run recorded it, whatever was done to the file since. Raises
    UserError."""
    return recorded(run) or read_document(run)


def read_config(run: Path) -> dict[str, Any]:
    """The config of a run by knob (see `read_document`). Raises UserError."""
    return read_document(run)["config"]
