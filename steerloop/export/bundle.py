"""A run in one file that someone else can check: config, versions, seed, hashes of data and model,
the data themselves, vectors, adapters, tables. `verify` computes again what can be:

    files      every file is what the manifest says, and no other is there
    records    manifest, config, checksums, records and the files of the stages agree
    tables     the measures in events.jsonl follow from the saved rows
    summary    summary.json follows from them, and so do verdicts.md and diary.md
    model      the base here has the same weights
    answers    forced choice and ordinary text of base and students, anew, against the saved tables
    vectors    extracted anew from base and students

and says what it took on trust. A bundle is other people's input (`unpack`, `proof`): nothing in it
is run, and what it asks for is bounded by what it holds.
"""

import dataclasses
import gzip
import hashlib
import io
import json
import platform
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

from loguru import logger

from steerloop import UserError
from steerloop.config import Config
from steerloop.export.proof import (
    FAULTS,
    TRUSTED,
    Compared,
    bounded,
    check_answers,
    check_record,
    check_summary,
    check_tables,
    check_texts,
    check_vector,
    check_words,
    part,
    restated,
)
from steerloop.export.student import config_of, finished_rounds, open_student
from steerloop.export.unpack import MANIFEST, SCHEMA, said, unpack
from steerloop.loading.hub import locate, public_name
from steerloop.report.text import inline, markdown
from steerloop.runfolder import layout
from steerloop.runfolder.events import event_line, read_events
from steerloop.runfolder.files import read_document, sealed, sha256, write_whole
from steerloop.runfolder.files import verify as verify_run
from steerloop.runfolder.identity import code_version
from steerloop.runfolder.inputs import KNOBS, compared, model_record, public
from steerloop.texts.data import data_files, located_at, read_data

OPENED = ".opened"  # the run as it is opened here, beside what was unpacked
PACKAGES = ("torch", "transformers", "polars", "numpy", "safetensors")


def here() -> dict[str, str]:
    """Versions of what computes, and the commit of this code."""
    return {x: version(x) for x in PACKAGES} | {
        "python": platform.python_version(), "steerloop": code_version()}


def own_records(run: Path) -> dict[str, bytes]:
    """config.json and events.jsonl of a run as others get them: inputs by names and hashes."""
    lines = [event_line(x | {"document": public(x["document"])} if "document" in x else x)
             for x in read_events(run)]
    return {layout.CONFIG: sealed(public(read_document(run))).encode(),
            layout.EVENTS: "".join(lines).encode()}


def write_bundle(run: Path, out: Path, model: str = "", force: bool = False) -> Path:
    """Pack a run into `out` (.tar.gz); the same run gives the same bytes. `model` is where the base
    is now, if it was moved. Raises UserError for a run without a finished round, with a damaged
    file, or whose inputs are gone, or are not what they were unless `force` lets that pass."""
    cfg = config_of(run)
    cfg = dataclasses.replace(cfg, model=model or cfg.model)
    if not finished_rounds(run):
        raise UserError(f"{run} has no finished round to share")
    data = data_files(cfg)
    if gone := [str(x) for x in data.values() if not x.is_file()]:
        raise UserError(f"{run} was made with {gone[0]}, which is not there any more")
    verify_run(run)
    compared(run, cfg, list(KNOBS), force)  # who verifies a forced one sees that it differs
    files = {str(x.relative_to(run)): x for kind in layout.SHARED for x in sorted(run.glob(kind))
             if x.is_file() and x.name != layout.LOG}  # which says where everything lies
    files |= {f"data/{k}{x.suffix}": x for k, x in data.items()}
    contents = {name: x.read_bytes() for name, x in files.items()} | own_records(run)
    manifest = {
        "schema": SCHEMA, "run": run.name, "model": public_name(locate(cfg.model))[0],
        "seed": cfg.seed, "weights": model_record(cfg.model)["sha256"], "versions": here(),
        "made_with": read_document(run).get("code", ""),
        "files": {name: hashlib.sha256(x).hexdigest() for name, x in sorted(contents.items())},
    }

    def write(path: Path) -> None:
        with (path.open("wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed,
              tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar):
            _add(tar, MANIFEST, json.dumps(manifest, indent=1).encode())
            for name, content in sorted(contents.items()):
                _add(tar, name, content)

    write_whole(out, write)
    return out


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def check_versions(manifest: dict) -> Compared:
    """Versions here and there."""
    now = here()
    other = [f"{k} {v} there, {now.get(k, 'none')} here"
             for k, v in manifest["versions"].items() if v != now.get(k)]
    return Compared("versions", None if other else True, "; ".join(other) or "the same")


def check_data(name: str, packed: dict[str, Path], cfg: Config) -> Compared:
    """Do the names in the config mean the same files here? The bundle's own are used anyway."""
    other = []
    for knob, path in data_files(cfg).items():
        size = packed[knob].stat().st_size  # one of another size is not read
        if not path.is_file() or path.stat().st_size != size or sha256(path) != sha256(
                packed[knob]):
            other.append(knob)
    said = f"other here: {', '.join(other)}; the bundle's are used" if other else "the same"
    return Compared(name, None if other else True, said)


def check_model(name: str, manifest: dict, cfg: Config) -> Compared:
    """Are the files of the base the same here? (Weights, configuration, tokenizer, template.)"""
    now, was = model_record(cfg.model)["sha256"], manifest["weights"]
    other = sorted(x for x in now.keys() | was.keys() if now.get(x) != was.get(x))
    return Compared(name, not other, f"other here: {', '.join(other)}" if other else "the same")


def data_of(folder: Path, cfg: Config) -> dict[str, Path]:
    """Knob → data file of an unpacked bundle. Raises UserError where one is missing."""
    there = sorted(folder.glob("data/*.*"))
    packed = {k: [x for x in there if x.name.partition(".")[0] == k] for k in data_files(cfg)}
    if wrong := [k for k, paths in packed.items() if len(paths) != 1]:
        raise UserError(f"it holds no data file {wrong[0]}, or several")
    return {k: paths[0] for k, paths in packed.items()}


def from_tables(folder: Path, manifest: dict) -> tuple[list[Compared], Config]:
    """What follows from the bundle alone, in an unpacked one; and its config. Raises UserError
    where that asks for more than the bundle can need, or a kind of file is missing."""
    cfg, versions = bounded(folder), check_versions(manifest)
    packed = data_of(folder, cfg)
    hashes = {k: manifest["files"][x.relative_to(folder).as_posix()] for k, x in packed.items()}
    return [
        versions, part("data", check_data, packed, cfg),
        part("records", check_record, folder, manifest, hashes),
        part("tables", check_tables, folder),
        part("summary", check_summary, folder, manifest["run"]),
        part("words", check_words, folder, bool(versions.same)),
    ], cfg


def from_model(folder: Path, manifest: dict, cfg: Config, device: str) -> list[Compared]:
    """What takes the model that it was made with. Raises UserError where that is not to be had."""
    same = part("model", check_model, manifest, cfg)
    opened = folder.with_name(OPENED)
    packed = located_at(cfg, data_of(folder, cfg))
    cfg = restated(folder, dataclasses.replace(cfg, **packed), opened)
    data = read_data(cfg)
    check_texts(data)
    student = open_student(opened, str(cfg.rounds), "1", device, force=True)
    parts = [same, part("answers of base", check_answers, student, data, 0, layout.BASE)]
    for k in range(cfg.rounds):
        parts += [part(f"answers after round {k + 1}", check_answers, student, data, k,
                       layout.HEALED),
                  part(f"vector of round {k + 1}", check_vector, student, data, k)]
    return parts


def compare_bundle(bundle: Path, device: str = "", model: str = "") -> list[Compared]:
    """Every comparison, cheap ones first. `model` says where its base is here, if not by the name
    that it had. Raises UserError, naming the bundle, where it is none, or its model is not to be
    had here."""
    with tempfile.TemporaryDirectory() as name:
        manifest, wrong = unpack(bundle, Path(name) / "unpacked")
        files = Compared("files", not wrong, ", ".join(wrong) or
                         f"{len(manifest['files'])} as packed, and no other")
        if wrong:
            return [files]
        folder = (Path(name) / "unpacked").rename(Path(name) / manifest["run"])
        try:
            parts, cfg = from_tables(folder, manifest)
            cfg = dataclasses.replace(cfg, model=model or cfg.model)
            parts = [files, *parts, *from_model(folder, manifest, cfg, device)]
        except FAULTS as e:
            raise UserError(f"{bundle}: {named(said(e), folder)}") from e
        return [x._replace(said=named(x.said, folder)) for x in parts]


def named(text: str, folder: Path) -> str:
    """A text that names members of the bundle, not the temporary folders where they lie."""
    for place in (folder, folder.with_name(OPENED)):
        text = text.replace(f"{place}/", "").replace(str(place), "it")
    return text


def verify(bundle: Path, device: str = "", model: str = "") -> None:
    """Print what was computed again, and whether it is the same, and what was taken on trust.
    Raises UserError where a part that counts differs."""
    parts = compare_bundle(bundle, device, model)
    words = {True: "same", False: "DIFFERS", None: "differs, explains"}
    logger.info(f"{inline(str(bundle))}, recomputed here:\n" + markdown(
        [{"part": x.part, "": words[x.same], "found": x.said} for x in parts]))
    logger.info("taken on trust:\n" + markdown(
        [{"part": k, "what nothing here can tell": x} for k, x in TRUSTED.items()]))
    if wrong := [x.part for x in parts if x.same is False]:
        raise UserError(f"{bundle} is not reproduced here: {', '.join(wrong)}; see the table")
