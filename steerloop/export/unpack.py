"""A bundle → a folder. It is other people's input: whatever it declares is checked before it is
believed, and nothing is written that the manifest does not list.

The manifest comes first. Then plain files with relative names, each once, no larger in all than a
share of the archive's own size. Headers are read block by block: the library's reader takes long
names and extensions into memory whole, however long they say they are.
"""

import gzip
import hashlib
import json
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from textwrap import shorten
from typing import Any

from steerloop import UserError
from steerloop.texts.printable import printable

MANIFEST, SCHEMA = "bundle.json", 1
BLOCK, CHUNK = 512, 2**20  # bytes: of a tar, and read at once
RATIO, SLACK = 20, 2**24  # most bytes unpacked: 20 times those of the archive and 16 MB
LARGEST = 2**22  # bytes of a manifest
MEMBERS, LONGEST = 10_000, 200  # files, and bytes of a run's name
FAULTS = (OSError, EOFError, ValueError, zlib.error, tarfile.TarError)


def unpack(bundle: Path, into: Path) -> tuple[dict[str, Any], list[str]]:
    """Unpack into the folder `into`; returns the manifest, and the names of files that are missing
    or are not what it says. Raises UserError, naming bundle and member, for anything but that."""
    try:
        with bundle.open("rb") as file, gzip.GzipFile(fileobj=file, mode="rb") as stream:
            found = members(bundle, stream, SLACK + RATIO * bundle.stat().st_size)
            manifest = first(bundle, found)
            wrong, seen = [], {MANIFEST}
            for name, read in found:
                if name in seen:
                    raise UserError(f"{bundle} holds {name!r} twice")
                seen.add(name)
                if (wanted := manifest["files"].get(name)) is None:
                    raise UserError(f"{bundle} holds {name!r}, which its {MANIFEST} does not list")
                wrong += [name] * (written(read, into / name) != wanted)
    except FAULTS as e:
        raise UserError(f"{bundle} is no bundle, or damaged: {said(e)}") from e
    return manifest, sorted([*wrong, *(manifest["files"].keys() - seen)])


def said(e: BaseException) -> str:
    """An error in one line, without the remedies for run folders."""
    text = re.split(r"[:,] (?:delete|undo) ", str(e))[0]
    return shorten(text, 300, placeholder=" ...") or type(e).__name__


def members(
    bundle: Path, stream: gzip.GzipFile, most: int
) -> Iterator[tuple[str, Callable[[], Iterator[bytes]]]]:
    """Name and content (to be read once, before the next) of every file in a tar of `most` bytes at
    most. Raises UserError for any other kind of member."""
    left = most
    for count in range(MEMBERS + 1):
        header = stream.read(BLOCK)
        if not header.strip(b"\0") and len(header) == BLOCK:
            break
        entry = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        name = PurePosixPath(entry.name)
        if (entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or name.is_absolute()
                or ".." in name.parts or str(name) != entry.name or "\0" in entry.name):
            raise UserError(f"{bundle} holds {entry.name!r}, which is no plain file below it: not "
                            "unpacked")
        left -= BLOCK + entry.size
        if left < 0 or entry.size < 0 or count == MEMBERS:
            raise UserError(f"{bundle} holds more than its size can: {entry.name!r} is not "
                            f"unpacked ({most / 2**20:.0f} MB and {MEMBERS} files are the most)")
        yield entry.name, lambda size=entry.size: content(stream, size)
    while rest := stream.read(CHUNK):
        left -= len(rest)
        if left < 0 or rest.strip(b"\0"):
            raise UserError(f"{bundle} goes on after its end: not unpacked")


def content(stream: gzip.GzipFile, size: int) -> Iterator[bytes]:
    """The bytes of a member, chunk by chunk, and past the padding after them. Raises EOFError where
    there are fewer."""
    padding = -size % BLOCK
    while size:
        chunk = stream.read(min(CHUNK, size))
        if not chunk:
            raise EOFError("it ends in the middle of a file")
        size -= len(chunk)
        yield chunk
    if stream.read(padding).strip(b"\0"):
        raise ValueError("there is something between two files")


def written(read: Callable[[], Iterator[bytes]], path: Path) -> str:
    """Write a member; returns its SHA-256."""
    digest = hashlib.sha256()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        for chunk in read():
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def first(bundle: Path, found: Iterator[tuple[str, Callable[[], Iterator[bytes]]]]
          ) -> dict[str, Any]:
    """The manifest, which is the first member. Raises UserError where it is none of ours."""
    name, read = next(found, ("", None))
    if name != MANIFEST or read is None:
        raise UserError(f"{bundle} is no bundle: {MANIFEST} is not the first thing in it")
    text = b""
    for chunk in read():
        text += chunk
        if len(text) > LARGEST:
            raise UserError(f"{bundle}: its {MANIFEST} is too large to be one")
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{bundle}: its {MANIFEST} is damaged: {said(e)}") from e
    if wrong := faults(manifest):
        raise UserError(f"{bundle}: its {MANIFEST} {wrong}")
    return manifest


def faults(manifest: Any) -> str:
    """What is wrong with a manifest; '' for a sound one."""
    if not isinstance(manifest, dict) or type(manifest.get("schema")) is not int:
        return "says no schema"
    if manifest["schema"] != SCHEMA:
        return (f"is of schema {manifest['schema']}, and this version knows {SCHEMA}: take the "
                "version that made it")
    kinds = {"run": str, "model": str, "seed": int, "weights": dict, "versions": dict,
             "made_with": str, "files": dict}
    for name, kind in kinds.items():
        if type(manifest.get(name)) is not kind:
            return f"has no {name} of type {kind.__name__}"
    texts = [x for name in ("weights", "versions", "files") for x in manifest[name].values()]
    if not all(isinstance(x, str) for x in texts):
        return "has hashes or versions that are no text"
    name = manifest["run"]
    if re.match(r"\.|$", name) or re.search(r"[/\n\t]", name) or printable(name) != name or len(
            name.encode()) > LONGEST:
        return "names a run that no folder can be called"
    if not manifest["files"]:
        return "lists no file"
    if not all(re.fullmatch("[0-9a-f]{64}", x) for x in manifest["files"].values()):
        return "has a hash that is none"
    return ""
