"""Bundles that somebody has been at: bytes, members, or fields whose hashes were made to fit."""

import gzip
import hashlib
import io
import json
import tarfile
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from steerloop.runfolder.events import event_line
from steerloop.runfolder.files import SEAL, sealed, told_of

WRONG = [None, True, "x", "", -1, 0, 7, 1.5, 10**9, 10**30, -1e300, [], {}, [[]], {"a": 1},
         "\ud800", "../x", [1e9]]


def members(bundle: Path) -> dict[str, bytes]:
    """Name → content, in order."""
    with tarfile.open(bundle) as tar:
        return {x.name: tar.extractfile(x).read() for x in tar}


def packed(files: list[tuple[str, bytes]], out: Path) -> Path:
    """A tar.gz of these members as they are, whatever they are."""
    with (out.open("wb") as file, gzip.GzipFile("", "wb", 1, file, mtime=0) as stream,
          tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar):
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return out


def fitting(files: dict[str, bytes], out: Path, record: bool = True) -> Path:
    """The same with all that vouches for it made to fit what the files are now: the seals of config
    and summary, checksums and manifest; with `record` the one of the config among the events."""
    files = dict(files)
    with suppress(LookupError, TypeError, ValueError, AttributeError):  # what is no config has none
        known = json.loads(files["config.json"])
        known.pop("crc", None)
        files["config.json"] = sealed(known).encode()
        document = told_of(known)
        lines = [json.loads(x) for x in files["events.jsonl"].splitlines()] if record else []
        for x in lines:
            del x["crc"]
            x |= {"document": document} if x["stage"] == "config" else {}
        if record:
            files["events.jsonl"] = "".join(map(event_line, lines)).encode()
    if "summary.json" in files:
        known = json.loads(files["summary.json"])
        known.pop("crc", None)
        files["summary.json"] = sealed(known).encode()
    digests = {k: hashlib.sha256(x).hexdigest() for k, x in files.items()}
    lines = files["checksums.txt"].decode().splitlines()
    names = [x.split("  ", 1)[1] for x in lines if not x.startswith("#")]
    body = "".join(f"{digests[x]}  {x}\n" for x in names if x in digests).encode()
    seal = f"{SEAL}{hashlib.sha256(body).hexdigest()}\n".encode()
    files["checksums.txt"] = seal + body
    digests["checksums.txt"] = hashlib.sha256(files["checksums.txt"]).hexdigest()
    manifest = json.loads(files["bundle.json"])
    manifest["files"] = {k: x for k, x in digests.items() if k != "bundle.json"}
    files["bundle.json"] = json.dumps(manifest).encode()
    return packed(list(files.items()), out)


def leaves(value: Any, at: tuple = ()) -> list[tuple]:
    """Paths to all values in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(
        value, list) else ()
    return [at] * bool(at) + [x for k, v in inner for x in leaves(v, (*at, k))]


def changed(value: Any, rng: Random) -> tuple[Any, str]:
    """A JSON value with one entry changed or gone, and the path to it."""
    value = json.loads(json.dumps(value))
    path = rng.choice(leaves(value))
    holder = value
    for k in path[:-1]:
        holder = holder[k]
    old, said = holder[path[-1]], "/".join(map(str, path))
    if rng.random() < 0.2:
        del holder[path[-1]]
        return value, said
    near = [old * 1.5 + 1] if type(old) in (int, float) else [old + "x"] if type(
        old) is str else [not old]
    holder[path[-1]] = rng.choice([x for x in [*near * 6, *WRONG] if x != old])
    return value, said


def with_one_field_changed(files: dict[str, bytes], rng: Random) -> tuple[dict[str, bytes], str]:
    """Members of which one JSON document or record has another field, and where: 'name: path'."""
    name = rng.choice([x for x in files if x.endswith((".json", ".jsonl"))
                       and not x.startswith("data/")])
    if name == "events.jsonl":
        lines = [json.loads(x) for x in files[name].splitlines()]
        for x in lines:
            del x["crc"]
        at = rng.randrange(len(lines))
        lines[at], where = changed(lines[at], rng)
        text, where = "".join(map(event_line, lines)), f"{lines[at].get('stage')}/{where}"
    else:
        known, where = changed(json.loads(files[name]), rng)
        text = json.dumps(known)
    return files | {name: text.encode()}, f"{name}: {where}"


def damaged(raw: bytes, rng: Random) -> bytes:
    """An archive with a bit turned, a piece cut out, doubled, or put in; or cut short."""
    at, size = rng.randrange(len(raw)), rng.choice([1, 8, 512, 1024])
    return rng.choice([
        lambda: raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1:],
        lambda: raw[:at] + raw[at + size:],
        lambda: raw[:at] + raw[at : at + size] + raw[at:],
        lambda: raw[:at] + rng.randbytes(size) + raw[at:],
        lambda: raw[:at],
    ])()
