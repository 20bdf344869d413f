"""Files that appear whole or not at all, and are what was written. No torch: reports read run
folders with it."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
from safetensors import SafetensorError

from steerloop import UserError
from steerloop.runfolder.events import read_events
from steerloop.runfolder.layout import CONFIG, EVENTS, SUMMARY, SUMS, upgraded, upgraded_summary


def write_whole(path: Path, writer: Callable[[Path], Any]) -> None:
    """`writer` fills a temporary file beside `path`, which then takes the name at once.

    Raises UserError when it cannot be written; what was at `path` stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer(temporary)
        ordinary(temporary)
        with temporary.open("rb+") as file:  # on the disk before it has the name
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name, too
        finally:
            os.close(folder)
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


def sha256(path: Path) -> str:
    """Checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(run: Path) -> dict[str, str]:
    """What sha256 every kept file of a run should have, by its path in the folder.

    Raises UserError where the list itself is damaged.
    """
    path = run / SUMS
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    if not all(re.fullmatch(r"[0-9a-f]{64}  .+", x) for x in lines):
        raise UserError(f"{path} is damaged: delete it, then `python -m steerloop.train --resume "
                        f"{run}` makes everything anew")
    return {name: digest for digest, name in (x.split("  ", 1) for x in lines)}


def check_sum(run: Path, name: str, digest: str) -> None:
    """Raises UserError where a kept file is not what was written."""
    if sha256(run / name) != digest:
        raise UserError(f"{run / name} is damaged: delete it, then `python -m steerloop.train "
                        f"--resume {run}` makes it anew")


def verify(run: Path) -> None:
    """`check_sum` of every kept file that is there, and the records of a finished run counted."""
    for name, digest in checksums(run).items():
        if (run / name).exists():
            check_sum(run, name, digest)
    if lost := records_lost(run):
        raise UserError(f"{run / EVENTS} is damaged, {lost} records are gone: delete it, "
                        f"then `python -m steerloop.train --resume {run}` makes it anew")


def read_summary(run: Path) -> dict[str, Any]:
    """summary.json as it would be written now, {} where there is none. Raises UserError where it is
    damaged."""
    path = run / SUMMARY
    if not path.exists():
        return {}
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return {"ended": known["ended"], **upgraded_summary(known)}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path} is damaged: delete it, then `python -m steerloop.train --resume "
                        f"{run}` makes it anew") from e


def ending(run: Path) -> dict[str, Any]:
    """`read_summary` of a run that came to its end, {} of another."""
    summary = read_summary(run)
    return summary if summary.get("ended") else {}


def records_lost(run: Path) -> int:
    """How many lines events.jsonl of a finished run has lost."""
    wanted, path = ending(run).get("records", 0), run / EVENTS
    return max(0, wanted - len(read_events(run))) if path.exists() else wanted


def read_document(run: Path) -> dict[str, Any]:
    """config.json of a run folder: the config, as it would be written now, and what else made the
    run what it is. Raises UserError where there is none."""
    try:
        known = json.loads((run / CONFIG).read_text(encoding="utf-8"))
        return known | {"config": upgraded(known["config"])}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{run} is not a run folder (no readable {CONFIG} in it): name one below "
                        "runs/, `python -m steerloop.train` makes one") from e


def read_config(run: Path) -> dict[str, Any]:
    """The config of a run by knob (see `read_document`). Raises UserError."""
    return read_document(run)["config"]
