"""Read small text files with errors that name the file; write files whole or not at all."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import polars as pl
from safetensors import SafetensorError

from steerloop import UserError
from steerloop.kernels.foundations import FOUNDATIONS, foundation

SUMS = "checksums.txt"  # in the format of sha256sum
PACKAGE = Path(__file__).parents[1]
H = [f"h_{f}" for f in FOUNDATIONS]


@dataclass
class Data:
    """What a run reads. `up` and `down` name the foundations that the persona pairs should move."""

    pairs: list[tuple[str, str]]
    up: str
    down: str
    contexts: list[str]
    prompts: list[str]
    vignettes: pl.DataFrame
    mundane: pl.DataFrame
    labelled: pl.DataFrame


def read_data(cfg: Any) -> Data:
    """Every data file that a config names, by its path or inside the package; {split} is filled in.

    Raises UserError naming the file and what it lacks.
    """
    judged = table("prompt", "text", "label", "note")
    asked, mundane = (x.replace("{split}", cfg.split) for x in (cfg.vignettes, cfg.mundane))
    return Data(
        *read(cfg.persona, persona),
        contexts=read(cfg.contexts, lines)[: cfg.max_contexts],
        prompts=read(cfg.prompts, lines)[: cfg.n_prompts],
        vignettes=read(asked, vignettes).gather_every(cfg.every),
        mundane=read(mundane, table("prompt", "text")),
        labelled=read(cfg.labelled, judged) if cfg.labelled else judged(""),
    )


def read(name: str, parse: Callable[[str], Any]) -> Any:
    """`parse` the text of a file, found by its own path or inside the package.

    Raises UserError with one line when it is missing, malformed or holds nothing.
    """
    path = Path(name) if Path(name).exists() else PACKAGE / name
    try:
        found = parse(path.read_text())
    except (OSError, ValueError, pl.exceptions.PolarsError) as e:
        raise UserError(f"cannot read {name}: {str(e).splitlines()[0]}") from e
    if len(found) == 0:
        raise UserError(f"cannot read {name}: there is nothing in it")
    return found


def lines(text: str) -> list[str]:
    """One text a line; blank lines and those that start with # do not count."""
    return [x.strip() for x in text.splitlines() if x.strip() and not x.startswith("#")]


def table(*columns: str) -> Callable[[str], pl.DataFrame]:
    """JSON lines → a frame of these text columns."""

    def parse(text: str) -> pl.DataFrame:
        found = pl.read_ndjson(text.encode()) if text.strip() else pl.DataFrame()
        if not len(found):
            return pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
        if not set(columns) <= set(found.columns) or found.select(columns).null_count().row(0) != (
                0,) * len(columns):
            raise ValueError(f"every line needs {' and '.join(columns)}")
        return found.select(pl.col(columns).cast(pl.String))

    return parse


def vignettes(text: str) -> pl.DataFrame:
    """JSON lines of moral vignettes, as published ones are: `text`, `foundation_coarse`, and where
    people rated them human_<foundation> → text, label, and h_<foundation> as shares of their sum.

    The label is what most people chose where that is known, else foundation_coarse; a line without
    any rating has shares of 0. Raises ValueError for a foundation that is none, or that has no
    rating.
    """
    found = table("text", "foundation_coarse")(text)
    if not len(found):
        return found
    rated = pl.read_ndjson(text.encode()).select("^human_.*$")
    label = pl.col("foundation_coarse").map_elements(foundation, pl.String)
    if not rated.width:
        return found.select("text", label=label)
    rated = rated.rename(lambda x: "h_" + foundation(x.removeprefix("human_"))).fill_null(0.0)
    if missing := {f"h_{f}" for f in FOUNDATIONS} - set(rated.columns):
        raise ValueError(f"human ratings lack {', '.join(sorted(missing))}")
    shares = rated.select(pl.col(H) / pl.max_horizontal(pl.sum_horizontal(H), 1e-9))
    best = [FOUNDATIONS[row.index(max(row))] if max(row) > 0 else coarse for row, coarse in zip(
        shares.rows(), found.select(label).to_series(), strict=True)]
    return pl.concat([found.select("text", label=pl.Series(best)), shares], how="horizontal")


def persona(text: str) -> tuple[list[tuple[str, str]], str, str]:
    """TOML with `positive` and `negative` lists → pairs, and the axis (up, down) they move."""
    found = tomllib.loads(text)
    poles = [found.get(pole, []) for pole in ("positive", "negative")]
    texts = all(isinstance(x, list) and all(isinstance(t, str) for t in x) for x in poles)
    if not texts or not poles[0] or len(poles[0]) != len(poles[1]):
        raise ValueError("two poles are needed, equally long lists 'positive' and 'negative'")
    up, down = (foundation(found.get(*x)) for x in (("up", "care"), ("down", "authority")))
    if up == down:
        raise ValueError(f"'up' and 'down' are both {up}")
    return list(zip(*poles, strict=True)), up, down


def write_whole(path: Path, writer: Callable[[Path], Any]) -> None:
    """`writer` fills a temporary file beside `path`, which then takes the name at once.

    Raises UserError when it cannot be written; what was at `path` stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer(temporary)
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


def sha256(path: Path) -> str:
    """Checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(run: Path) -> dict[str, str]:
    """What sha256 every kept file of a run should have, by its path in the folder.

    Raises UserError where the list itself is damaged.
    """
    path = run / SUMS
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
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
        raise UserError(f"{run / 'events.jsonl'} is damaged, {lost} records are gone: delete it, "
                        f"then `python -m steerloop.train --resume {run}` makes it anew")


def ending(run: Path) -> dict[str, Any]:
    """summary.json of a run that came to its end, {} of another. Raises UserError where it is
    damaged."""
    path = run / "summary.json"
    try:
        found = json.loads(path.read_text()) if path.exists() else {"ended": False}
        return found if found["ended"] else {}
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} is damaged: delete it, then `python -m steerloop.train --resume "
                        f"{run}` makes it anew") from e


def records_lost(run: Path) -> int:
    """How many lines events.jsonl of a finished run has lost."""
    wanted, path = ending(run).get("records", 0), run / "events.jsonl"
    return max(0, wanted - len(read_events(run))) if path.exists() else wanted


def event_line(record: dict[str, Any]) -> str:
    """A record → its line in events.jsonl, with a checksum at its end.

    Raises ValueError on a number that is not finite.
    """
    text = json.dumps(record, allow_nan=False)
    return f'{text[:-1]}, "crc": "{crc32(text.encode()):08x}"}}\n'


def read_events(run: Path) -> list[dict[str, Any]]:
    """The records of a run, in order. A last line that was cut off is not one yet.

    Raises UserError naming a line that is not what was written.
    """
    found, text = [], (run / "events.jsonl").read_text(errors="replace")
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            record = json.loads(line)
            good = record.pop("crc", None) in (None, event_line(record)[-11:-3])
        except (ValueError, AttributeError):
            good = False
        if not good:
            raise UserError(f"{run / 'events.jsonl'}, line {number} is damaged: delete the file, "
                            f"`python -m steerloop.train --resume {run}` writes it anew")
        found.append(record)
    return found


def code_version() -> str:
    """Commit of this code, '+' if changed since; '' outside a git checkout."""
    command = ["git", "-C", str(PACKAGE), "describe", "--always", "--dirty=+", "--exclude=*"]
    if shutil.which("git") is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()
