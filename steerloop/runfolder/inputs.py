"""What a run reads: by its knob, the path of every input and the content hash of each of its files.

    "inputs": {"model": {"path": "/…/llama", "name": "llama", "sha256": {"config.json": "…", …}},
               "prompts": {"path": "/…/prompts.txt", "sha256": "…"}, …}

Paths say where to look, hashes what has to be there, the name is for others. A new kind of input is
a line in `record`.
"""

import hashlib
import json
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from loguru import logger

from steerloop import UserError
from steerloop.loading.cache import user_cache
from steerloop.loading.files import model_files, source
from steerloop.loading.hub import SHORT, locate, public_name
from steerloop.runfolder.files import read_document, sha256, write_whole
from steerloop.runfolder.layout import contents
from steerloop.texts.data import FILES, PACKAGE, SEVERAL, keys_of, sources
from steerloop.texts.parts import Part, joined

KNOBS = ("model", *FILES)  # that name inputs
LARGE = 2**24  # bytes from which the hash of a file is kept: others are hashed at once
SETTLED = 2 * 10**9  # ns without a change after which it is: clocks of file systems are coarse

Record = dict[str, dict[str, Any]]  # as above


def kept_hashes() -> Path:
    """Where the hashes of large files are kept, for all runs of a user."""
    return user_cache() / "hashes.json"


def stamp_of(path: Path) -> list[int]:
    """What changes whenever a file does. ctime is among it, which no program can set."""
    x = path.stat()
    return [x.st_dev, x.st_ino, x.st_size, x.st_mtime_ns, x.st_ctime_ns]


def hashes(paths: Iterable[Path]) -> list[str]:
    """sha256 of each file. Those of large files are kept beside their stamps, so that a file which
    has not changed is read once; a list of them that is not there or damaged is begun anew."""
    paths = [x.resolve() for x in paths]
    large = {x: stamp_of(x) for x in paths if x.stat().st_size >= LARGE}
    known = _read_kept() if large else {}
    found = {x: known[str(x)][1] for x in large if known.get(str(x), [None])[0] == large[x]}
    todo = [x for x in dict.fromkeys(paths) if x not in found]
    with ThreadPoolExecutor() as pool:
        found |= zip(todo, pool.map(sha256, todo), strict=True)
    settled = {str(x): [large[x], found[x]] for x in todo if x in large
               and large[x] == stamp_of(x) and abs(time.time_ns() - large[x][4]) > SETTLED}
    if settled:
        try:
            write_whole(kept_hashes(), lambda part: part.write_text(
                json.dumps(_read_kept() | settled), encoding="utf-8"))
        except UserError as e:
            logger.warning(f"hashes of large files are not kept, each start takes them anew: {e}")
    return [found[x] for x in paths]


def _read_kept() -> dict[str, list[Any]]:
    try:
        known = json.loads(kept_hashes().read_text("utf-8"))
        return {k: [list(stamp), str(digest)] for k, (stamp, digest) in known.items()}
    except (OSError, ValueError, AttributeError, TypeError):  # it can be made anew
        return {}


def model_record(model: str) -> dict[str, Any]:
    """Path, hashes and name of a model. Raises UserError where it is not to be had."""
    folder = locate(model)
    name = public_name(folder)[0].rpartition("/")[2]
    return file_record(source(folder), model_files(folder)) | {"name": name}


def file_record(folder: Path, files: list[Path]) -> dict[str, Any]:
    """A folder, or a file that is all of a model, and the hashes of files in it."""
    names = [x.relative_to(folder).as_posix() if x != folder else x.name for x in files]
    path = folder.resolve() if folder.is_dir() else folder.absolute()
    return {"path": str(path), "sha256": dict(zip(names, hashes(files), strict=True))}


def record(cfg: Any, knobs: Iterable[str] = KNOBS) -> Record:
    """The inputs that a config names, of these knobs. Raises UserError for one that is missing."""
    known: Record = {"model": model_record(cfg.model)} if "model" in knobs else {}
    known |= {knob: files_record(many) for knob, many in sources(cfg).items() if knob in knobs}
    return known


def files_record(files: list[tuple[Path, float]]) -> dict[str, Any]:
    """A data file, or several with their weights: how the knob names them by their paths, and
    hashes, by place and weight. So another weight is another input."""
    if [weight for _, weight in files] == [1]:
        return {"path": str(files[0][0].resolve()), "sha256": sha256(files[0][0])}
    return {"path": joined(Part(str(x.resolve()), weight) for x, weight in files),
            "sha256": {f"{i} x {weight!r}": sha256(x) for i, (x, weight) in enumerate(files, 1)}}


def by_file(inputs: Record) -> dict[str, str]:
    """The hash of each data file, keyed as `data_files` has them."""
    known: dict[str, str] = {}
    for knob, x in inputs.items():
        several = list(x["sha256"].values()) if isinstance(x["sha256"], dict) else [x["sha256"]]
        if knob != "model":
            known |= zip(keys_of(knob, len(several)), several, strict=True)
    return known


def fingerprint(inputs: Record) -> str:
    """One hash for all contents."""
    return hashlib.sha256(json.dumps(contents(inputs), sort_keys=True).encode()).hexdigest()


def differences(was: Record, now: Record) -> dict[str, str]:
    """'knob/file' → how its hash changed, for what is not the same in both."""
    a, b = contents(was), contents(now)
    return {k: f"{a.get(k, 'none')[:12]} → {b.get(k, 'none')[:12]}"
            for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)}


def compared(run: Path, cfg: Any, knobs: list[str], force: bool) -> dict[str, str]:
    """Are the inputs that these knobs of `cfg` name the ones that a run was made with? What is not,
    as `differences`, where `force` lets it pass with a warning.

    Raises UserError with what changed, and where it was looked for."""
    was = read_document(run).get("inputs")
    if was is None:
        logger.warning(f"{run} is of a version that did not note its inputs: not compared")
        return {}
    now = record(cfg, knobs)
    changed = differences({k: x for k, x in was.items() if k in knobs}, now)
    places = ", ".join(f"--{k} {now[k]['path']}" for k in knobs if k in now and any(
        x.split("/")[0] == k for x in changed))
    told = "; ".join(f"{k}: {x}" for k, x in changed.items())
    if changed and not force:
        raise UserError(f"{run} was made with other inputs than there are now: {told} ({places}); "
                        "put them back, name where they are, or --force")
    if changed:
        logger.warning(f"forced: {told}")
    return changed


def public(document: dict[str, Any]) -> dict[str, Any]:
    """config.json for others: its inputs by names and hashes. Where they lay, and where the run
    did, is nobody else's business."""
    config, inputs = dict(document["config"]), document.get("inputs", {})
    if "tasks_path" in config:
        config["tasks_path"] = Path(config["tasks_path"]).name
    for knob in config.keys() & {*KNOBS, "runs", "resume"}:
        path = inputs.get(knob, {}).get("path", config[knob])
        paths = [Path(x) for x in (path.split(",") if knob in SEVERAL else [path])]
        if not all(x.is_relative_to(PACKAGE) for x in paths):
            typed = config[knob].split(",") if knob in SEVERAL else [config[knob]]
            config[knob] = ",".join(Path(x).name for x in typed)
    if "model" in inputs:
        name, revision = public_name(Path(inputs["model"]["path"]))
        config["model"] = f"{name}@{revision}" if revision else name
    hashed = {k: {y: x[y] for y in ("name", "sha256") if y in x} for k, x in inputs.items()}
    return document | {"config": config, "inputs": hashed}


def tell(cfg: Any, inputs: Record) -> None:
    """Say where the inputs came from, and which of them only a file in the working directory made
    what they are."""
    here = {k: Path(x["path"]) for k, x in inputs.items()}
    own = [k for k, path in here.items() if path.is_relative_to(PACKAGE)]
    for knob in sorted(here.keys() - own):
        name = getattr(cfg, knob, "")
        file = name.replace("{split}", cfg.split)
        hides = name.lower() in SHORT or (PACKAGE / file).exists()
        beside = Path(file).resolve() == here[knob] and not Path(file).is_absolute()
        logger.log("WARNING" if hides and beside else "INFO", f"{knob}: {here[knob]}")
    if own:
        logger.info(f"{', '.join(own)}: from the package")
