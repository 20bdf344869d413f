"""Run folders as a finished run leaves them, without the minutes: random rounds, small models."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import polars as pl
import torch
from safetensors.torch import load_file

from steerloop import lora
from steerloop.checks.small import Small, completions
from steerloop.config import Config
from steerloop.evaluate import evaluate
from steerloop.report import measures
from steerloop.runfolder.folder import Folder
from steerloop.steer import extract
from steerloop.texts.data import read_data


def made_run(folder: Path, cfg: Config, size: float = 0.3) -> Path:
    """Three folded random rounds with vectors, completions and doses, saved as `train` does."""
    s, run = Small(replace(cfg, rounds=3)), Folder(folder / "run")
    run.json("config.json", config=asdict(s.cfg), code="", packages={})
    rows = completions(6, seed=1).with_columns(keep=pl.lit(True), train=pl.lit(True))
    for k in range(3):
        s.stir(seed=k, size=size)
        name = f"rounds/{k:02d}"
        run.tensors(f"{name}/adapter", s.fold(), round=k)
        vector = s.vector(seed=k)
        run.tensors(f"{name}/vector", {f"block.{b}": v for b, v in vector.items()})
        run.table(f"{name}/completions", rows)
        run.event("sample", round=k, c_star=0.5 + k)
    run.json("summary.json", best_round=1, healed=[], ended=True)
    return run.path


@torch.no_grad()
def measured_run(folder: Path, cfg: Config) -> Path:
    """`made_run` with what a run measures: base and students, and a first vector that was
    extracted. `cfg` names data files."""
    path, s, data = made_run(folder, cfg), Small(replace(cfg, rounds=3)), read_data(cfg)
    run = Folder(path, again=True)

    base: list[pl.DataFrame] = []

    def measure(state: str, round: int) -> None:
        frames = evaluate(s.model, data, s.cfg)
        base.extend(frames if state == "base" else [])
        for name, frame in zip(("eval", "items", "said"), frames, strict=True):
            run.table(f"rounds/{round:02d}/{state}.{name}", frame)
        known = measures(frames, base, s.cfg.ppl_factor)
        run.event("evaluate", round=round, state=state, dose=0.0, measures=known)

    vector = extract(s.model, data, s.cfg)
    run.tensors("rounds/00/vector", {f"block.{b}": v for b, v in vector.items()})
    measure("base", 0)
    for k in range(3):
        lora.fold(s.model.layers, s.model.gates,
                  load_file(path / f"rounds/{k:02d}/adapter.safetensors"))
        measure("healed", k)
    return path


def change_json(path: Path, **values: object) -> None:
    """Overwrite entries of a JSON document."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest absolute difference."""
    return (a.double() - b.double()).abs().max().item()
