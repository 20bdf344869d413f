"""Bundles that somebody has been at: bytes, members, or fields whose hashes were made to fit."""

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from random import Random
from typing import Any

from safetensors.torch import load, save

from steerloop.runfolder.events import event_line
from steerloop.runfolder.files import SEAL, told_of
from steerloop.runfolder.files import sealed as seal
from steerloop.runfolder.folder import digest

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


def refit(name: str, content: bytes) -> bytes:
    """A file whose own word on whether it is whole was made to fit what is in it now."""
    if name in ("config.json", "summary.json"):
        record = json.loads(content)
        record.pop("crc", None)
        return seal(record).encode()
    if name.endswith(".safetensors"):
        tensors, size = load(content), int.from_bytes(content[:8], "little")
        said = json.loads(content[8 : 8 + size])["__metadata__"]
        now = digest(said["steerloop"], tensors)
        return content if said["digest"] == now else save(tensors, said | {"digest": now})
    return content


def recorded(files: dict[str, bytes]) -> dict[str, bytes]:
    """The members with records that say what config.json says."""
    now = told_of(json.loads(files["config.json"]))
    lines = [json.loads(x) for x in files["events.jsonl"].splitlines()]
    for x in lines:
        del x["crc"]
        if x["stage"] == "config":
            x["document"] = {k: v for k, v in now.items() if k != "crc"}
    return files | {"events.jsonl": "".join(map(event_line, lines)).encode()}


def sealed(files: dict[str, bytes], out: Path) -> Path:
    """The same, what the files say of themselves, checksums and manifest made to fit what they are
    now."""
    files = {k: refit(k, x) for k, x in files.items()}
    digests = {k: hashlib.sha256(x).hexdigest() for k, x in files.items()}
    names = [x.split("  ", 1)[1] for x in files["checksums.txt"].decode().split("\n")[1:-1]]
    text = "".join(f"{digests[x]}  {x}\n" for x in names if x in digests)
    head = SEAL + hashlib.sha256(text.encode()).hexdigest()
    files["checksums.txt"] = f"{head}\n{text}".encode()
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
    files = files | {name: text.encode()}
    if name == "config.json" and isinstance(known.get("config"), dict):
        files = recorded(files)
    return files, f"{name}: {where}"


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
