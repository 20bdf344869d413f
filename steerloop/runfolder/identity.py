"""What a run is a run of: config, code, versions, hardware, model and data; and whether a run that
is resumed is still the same."""

import hashlib
import shutil
import subprocess
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from loguru import logger

from steerloop import UserError
from steerloop.kernels.hardware import precision
from steerloop.ranks import count
from steerloop.runfolder.files import (
    FREE,
    checksums,
    ending,
    flat,
    read_recorded,
    records_lost,
    verify,
)
from steerloop.runfolder.inputs import KNOBS, differences, record
from steerloop.runfolder.layout import MADE
from steerloop.texts.data import PACKAGE

PACKAGES = ("torch", "transformers", "polars")
SPREAD = ("hardware.ranks", "hardware.threads")  # which change nothing but rounding


def source() -> str:
    """Hash of the package's code, checks left out: what a commit means, whether or not there is
    one."""
    files = [x for x in sorted(PACKAGE.rglob("*.py")) if "checks" not in x.parts]
    return hashlib.sha256(b"".join(x.read_bytes() for x in files)).hexdigest()


def identity(cfg: Any, device: str) -> dict[str, Any]:
    """All that makes a run what it is, beside its config."""
    return {
        "code": code_version(),
        "source": source(),
        "packages": {x: version(x) for x in PACKAGES},
        "hardware": {"device": device, "threads": torch.get_num_threads()} | (
            {"ranks": count()} if count() > 1 else {}),
        "inputs": record(cfg),
    }


def resolved(cfg: Any, device: str) -> dict[str, Any]:
    """The config as it runs: `auto` is the dtype that it came to."""
    dtype = str(precision(cfg.dtype, torch.device(device))).removeprefix("torch.")
    return asdict(cfg) | {"dtype": dtype}


def accepted(run: Path, now: dict[str, Any], force: bool) -> dict[str, Any]:
    """What config.json says from now on, of a run that is resumed as `now`: more rounds and
    another number of ranks are welcome, other changes need `force` and are recorded.

    Raises UserError with the differences, or where there is nothing left to do.
    """
    before = read_recorded(run)
    noted = {"resumed": before.pop("resumed", [])}
    before.pop("schema", None)
    was, is_ = (flat({**x, "code": "", "inputs": "", "config": {
        k: v for k, v in x["config"].items() if k not in (*FREE, *KNOBS)}}) for x in (before, now))
    more = is_["config.rounds"] > was["config.rounds"]
    changed = {k: f"{was.get(k)} → {is_.get(k)}" for k in sorted(was.keys() | is_.keys())
               if was.get(k) != is_.get(k) and not (more and k == "config.rounds")}
    others = differences(before.get("inputs", {}), now["inputs"])
    changed |= others
    spread = {k: x for k, x in changed.items() if k in SPREAD} if SPREAD[0] in changed else {}
    changed = {k: x for k, x in changed.items() if k not in spread}
    if changed and not force:
        told = "; ".join(f"{k}: {x}" for k, x in changed.items())
        raise UserError(f"{run} cannot go on as it began: {told}; undo that, or --force")
    sums = checksums(run)  # without any, all is made anew
    whole = bool(sums) and all((run / x).exists() for x in (*MADE, *sums))
    if ending(run) and whole and not (records_lost(run) or more or changed):  # else it is mended
        verify(run)
        raise UserError(f"{run} is finished; --rounds N, more than {was['config.rounds']}, goes on")
    for key, change in changed.items():
        logger.warning(f"forced: {key}: {change}; what is done already stays as it is")
    if changed or more or spread:
        rounds = {"config.rounds": is_["config.rounds"]} if more else {}
        noted["resumed"].append(changed | spread | rounds)
    moved = {x.partition("/")[0] for x in others}
    kept = {k: before["config"][k] for k in KNOBS  # as typed
            if k in before["config"] and k not in moved}
    return {**now, **noted, "config": now["config"] | {"resume": "", "force": False} | kept}


def code_version() -> str:
    """Commit of this code, '+' if changed since; '' outside a git checkout.

    Nothing is locked or written: a run that is killed here must not leave the user's repository
    locked, as `git describe --dirty` would.
    """
    if shutil.which("git") is None:
        return ""

    def git(*argv: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(PACKAGE), *argv]
        done = subprocess.run(command, capture_output=True)
        return done.stdout.decode("utf-8", "replace").strip()

    commit = git("describe", "--always", "--exclude=*")
    return commit + "+" * bool(git("status", "--porcelain", "--untracked-files=no"))
