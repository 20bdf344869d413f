"""A run in one file that someone else can check: config, versions, seed, hashes of data and model,
the data themselves, vectors, adapters, tables. `verify` runs the cheap parts again:

    files      every file is what the manifest says
    tables     the measures in events.jsonl follow from the saved rows
    model      the base here has the same weights
    answers    forced choice of base and last student, computed anew, against the saved tables
    vector     round 1's vector, extracted anew from the base

A bundle is other people's input: only plain files with relative names are unpacked, and the probes
that its config names are not run.
"""

import dataclasses
import gzip
import io
import json
import platform
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from loguru import logger

from steerloop import UserError, report
from steerloop.config import Config
from steerloop.export.student import (
    Student,
    config_of,
    finished_rounds,
    open_student,
    read_vector,
    records,
)
from steerloop.kernels.spectral import cosine
from steerloop.loading.hub import locate
from steerloop.readouts.forced_choice import choices
from steerloop.report.text import markdown
from steerloop.runfolder import layout
from steerloop.runfolder.files import read_document, read_table, sha256, write_whole
from steerloop.runfolder.files import verify as verify_run
from steerloop.runfolder.identity import code_version
from steerloop.steer import extract
from steerloop.texts.data import Data, data_files, read_data
from steerloop.texts.foundations import FOUNDATIONS

MANIFEST = "bundle.json"
PACKAGES = ("torch", "transformers", "polars", "numpy", "safetensors")
NEAR = {"float32": 1e-3, "bfloat16": 5e-2}  # probability, and 1 - cosine of the vector


class Compared(NamedTuple):
    """One line of a comparison. `same` None: a difference that explains, but does not count."""

    part: str
    same: bool | None
    said: str


def here() -> dict[str, str]:
    """Versions of what computes, and the commit of this code."""
    return {x: version(x) for x in PACKAGES} | {
        "python": platform.python_version(), "steerloop": code_version()}


def model_hashes(model: str) -> dict[str, str]:
    """Weight file → SHA-256."""
    return {x.name: sha256(x) for x in sorted(locate(model).glob("*.safetensors"))}


def write_bundle(run: Path, out: Path) -> Path:
    """Pack a run into `out` (.tar.gz); the same run gives the same bytes. Raises UserError for a
    run without a finished round, with a damaged file, or whose data are gone."""
    cfg = config_of(run)
    if not finished_rounds(run):
        raise UserError(f"{run} has no finished round to share")
    data = data_files(cfg)
    if gone := [str(x) for x in data.values() if not x.is_file()]:
        raise UserError(f"{run} was made with {gone[0]}, which is not there any more")
    verify_run(run)
    files = {str(x.relative_to(run)): x for kind in layout.SHARED for x in sorted(run.glob(kind))
             if x.is_file()}
    files |= {f"data/{k}{x.suffix}": x for k, x in data.items()}
    manifest = {
        "schema": 1, "run": run.name, "model": cfg.model, "seed": cfg.seed,
        "weights": model_hashes(cfg.model), "versions": here(),
        "made_with": read_document(run).get("code", ""),
        "files": {name: sha256(x) for name, x in sorted(files.items())},
    }

    def write(path: Path) -> None:
        with (path.open("wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed,
              tarfile.open(fileobj=packed, mode="w") as tar):
            _add(tar, MANIFEST, json.dumps(manifest, indent=1).encode())
            for name, x in sorted(files.items()):
                _add(tar, name, x.read_bytes())

    write_whole(out, write)
    return out


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def unpack(bundle: Path, into: Path) -> dict:
    """Unpack plain files with relative names, and return the manifest. Raises UserError."""
    try:
        with tarfile.open(bundle) as tar:
            for entry in tar:
                name = PurePosixPath(entry.name)
                if not entry.isfile() or name.is_absolute() or ".." in name.parts:
                    raise UserError(f"{bundle} holds {entry.name!r}, which is no plain file below "
                                    "it: not unpacked")
                (into / name).parent.mkdir(parents=True, exist_ok=True)
                (into / name).write_bytes(tar.extractfile(entry).read())
        return json.loads((into / MANIFEST).read_text())
    except (OSError, tarfile.TarError, ValueError, EOFError) as e:
        raise UserError(f"{bundle} is no bundle: {e}") from e


def check_files(folder: Path, manifest: dict) -> Compared:
    """Is every file there, and what it was?"""
    wrong = [name for name, digest in manifest["files"].items()
             if not (folder / name).is_file() or sha256(folder / name) != digest]
    return Compared("files", not wrong, ", ".join(wrong) or f"{len(manifest['files'])} as packed")


def check_versions(manifest: dict) -> Compared:
    """Versions here and there."""
    now = here()
    other = [f"{k} {v} there, {now.get(k, 'none')} here"
             for k, v in manifest["versions"].items() if v != now.get(k)]
    return Compared("versions", None if other else True, "; ".join(other) or "the same")


def check_data(folder: Path, cfg: Config) -> Compared:
    """Do the names in the config mean the same files here? The bundle's own are used anyway."""
    other = []
    for name, path in data_files(cfg).items():
        packed = next(x for x in folder.glob("data/*") if x.stem == name)
        if not path.is_file() or sha256(path) != sha256(packed):
            other.append(name)
    said = f"other here: {', '.join(other)}; the bundle's are used" if other else "the same"
    return Compared("data", None if other else True, said)


def check_tables(folder: Path) -> Compared:
    """Do the recorded measures follow from the saved rows?"""
    worst, count = 0.0, 0
    for event in records(folder, "evaluate"):
        at = folder, int(event["round"]), event["state"]
        again = report.measures(read_table(layout.rows(*at)),
                                read_table(layout.items(*at)))
        worst = max([worst, *(abs(again.get(k, float("inf")) - v)
                              for k, v in event["measures"].items())])
        count += 1
    return Compared("tables", worst < 1e-6, f"{count} states, largest difference {worst:.1e}")


def check_model(manifest: dict, cfg: Config) -> Compared:
    """Are the weights of the base the same here?"""
    now = model_hashes(cfg.model)
    return Compared("model", now == manifest["weights"],
                    "the same weights" if now == manifest["weights"] else "other weights here")


@torch.no_grad()
def check_answers(student: Student, data: Data) -> list[Compared]:
    """Forced choice of base and student, computed anew, against the saved rows."""
    model, cfg, parts = student.model, student.cfg, []
    columns = [f"p_{f}" for f in FOUNDATIONS]
    for state, gates, round in (("base", 0 * student.gates, 0),
                                ("healed", student.gates, student.rounds - 1)):
        saved = read_table(layout.rows(student.run, round, state))
        with model.gates(gates):
            now = choices(model, data.vignettes, cfg, free=False)
        pair = [x.sort("vignette").select(columns).to_numpy() for x in (saved, now)]
        worst = abs(pair[0] - pair[1]).max().item() if len(saved) == len(now) else float("inf")
        parts.append(Compared(f"answers of {state}", worst < NEAR[cfg.dtype],
                              f"{len(now)} vignettes, largest difference of a probability "
                              f"{worst:.1e}"))
    return parts


@torch.no_grad()
def check_extraction(student: Student, data: Data) -> Compared:
    """Round 1's vector, extracted anew from the base."""
    model, cfg = student.model, student.cfg
    saved = read_vector(student.run, 1, model.device)
    with model.gates(model.gates.before(0)):
        now = extract(model, data, dataclasses.replace(cfg, steer_blocks=sorted(saved)))
    gap = 1 - cosine(saved, now)
    return Compared("vector of round 1", gap < NEAR[cfg.dtype], f"1 - cosine {gap:.1e}")


def compare_bundle(bundle: Path, device: str = "") -> list[Compared]:
    """Every comparison, cheap ones first. Raises UserError where a bundle is none, or its model is
    not to be had here."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = unpack(bundle, folder)
        files = check_files(folder, manifest)
        if not files.same:
            return [files]
        cfg = config_of(folder)
        parts = [files, check_versions(manifest), check_data(folder, cfg), check_tables(folder),
                 check_model(manifest, cfg)]
        student = open_student(folder, str(finished_rounds(folder)), "1", device)
        packed = {x.stem: str(x) for x in folder.glob("data/*") if x.stem in data_files(cfg)}
        data = read_data(dataclasses.replace(cfg, **packed))
        return [*parts, *check_answers(student, data), check_extraction(student, data)]


def verify(bundle: Path, device: str = "") -> None:
    """Print what is the same and what is not. Raises UserError where a part that counts differs."""
    parts = compare_bundle(bundle, device)
    words = {True: "same", False: "DIFFERS", None: "differs, explains"}
    logger.info(markdown([{"part": x.part, "": words[x.same], "found": x.said} for x in parts]))
    if wrong := [x.part for x in parts if x.same is False]:
        raise UserError(f"{bundle} is not reproduced here: {', '.join(wrong)}; see the table")
