"""What reasons, contrast and said take together, beside all else that an evaluation reads: digits
with thought and free answer, probes, ordinary text."""

from typing import Any

import torch

from steerloop.bench.measure import race
from steerloop.bench.work import Figures, ours_of
from steerloop.config import Config
from steerloop.model import load
from steerloop.readouts.contrast import contrast
from steerloop.readouts.forced_choice import choices
from steerloop.readouts.mundane import mundane
from steerloop.readouts.probes import probed
from steerloop.readouts.reasons import reasons
from steerloop.readouts.said import said
from steerloop.texts.data import read_data

BESIDE = "digits, probes, ordinary text"


@torch.no_grad()
def run(cfg: Config, repeats: int) -> Figures:
    """Of a fresh student, on the items that a run of `cfg` reads. `share` is the time of the three
    together, of that of the rest, by the clock and by the CPU: what they may cost is 1."""
    model, data = load(cfg), read_data(cfg)

    def beside() -> Any:
        return choices(model, data.vignettes, cfg), probed(model, cfg), mundane(model, data, cfg)

    work = {"reasons": lambda: reasons(model, data, cfg, [data.down, data.up]),
            "contrast": lambda: contrast(model, data, cfg),
            "said": lambda: said(model, data, cfg, {}, 0.0), BESIDE: beside}
    runners = {name: ours_of(model, do) for name, do in work.items()}
    figures = race(runners, repeats, model.device.type == "cuda")
    share = {}
    for clock in ("seconds", "cpu_seconds"):
        taken = {name: x[clock] for name, x in figures.items()}
        rest = taken.pop(BESIDE)
        share[clock] = sum(taken.values()) / rest
    held = data.contrast.filter("held")
    return {"vignettes": len(data.vignettes), "contrasted": len(held.gather_every(cfg.every)),
            "answers": min(len(held), cfg.said_prompts), "unit": "evaluation",
            "runners": figures, "share": share}
