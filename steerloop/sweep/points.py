"""The rows of a sweep, one JSON line each, appended as arms end: what is there is not run again."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from loguru import logger

from steerloop.config import parse
from steerloop.kernels.files import code_version, read_data
from steerloop.sweep.arms import REGIMES, SWEEPS
from steerloop.sweep.climb import climb, start


@dataclass(frozen=True)
class Group:
    """Arms that share their first round."""

    sweep: str
    model: str
    split: str
    regime: str
    seed: int
    out: Path

    @property
    def key(self) -> dict[str, str | int]:
        """The columns of its points."""
        return {"model": Path(self.model).name, "split": self.split, "regime": self.regime,
                "seed": self.seed}


def run(group: Group) -> None:
    """Append the missing points of a group to its file, each line whole."""
    path, sweep = group.out / f"{group.sweep}.jsonl", SWEEPS[group.sweep]
    known = [json.loads(x) for x in path.read_text().splitlines()] if path.is_file() else []
    ours = [x for x in known if group.key.items() <= x.items()]
    done = {(x["family"], x["setting"]) for x in ours
            if x["round"] == sweep.rounds or x["ended"]}
    todo = [arm for arm in sweep.arms if (arm.family, arm.setting) not in done]
    if not todo:
        return
    torch.set_num_threads(1)
    cfg = parse(["--seed", str(group.seed), "--split", group.split, "--device", "cpu",
                 "--rounds", str(sweep.rounds), "--batch", "6", "--accumulate", "1"])
    cfg.model, cfg.probes = group.model, [f"steerloop.tinyworld.probes:{x}" for x in sweep.probes]
    for name, value in REGIMES[group.regime].items():
        setattr(cfg, name, value)
    data = read_data(cfg)
    first = start(data, cfg)
    for arm in todo:
        code, name = code_version(), {"family": arm.family, "setting": arm.setting}
        rows = [group.key | name | row | {"code": code}
                for row in climb(data, cfg, arm, first, sweep)]
        with path.open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
        logger.info(f"{group.key} {name} {rows[-1]}")
