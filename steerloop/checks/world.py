"""The embedded model as the checks use it: loaded once, with what a run would measure at start."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from random import Random

import polars as pl

from steerloop.config import Config, parse
from steerloop.filter import calibrate, filter
from steerloop.model import Model, load
from steerloop.texts.data import PACKAGE, Data, read_data
from steerloop.tinyworld import grammar, oracle

WEIGHTS = PACKAGE / "tinyworld/model/model.safetensors"


@dataclass
class World:
    """Model, config and data of the embedded default."""

    cfg: Config
    model: Model
    data: Data

    @cached_property
    def limit(self) -> float:
        """The perplexity limit, as a run calibrates it."""
        return calibrate(self.model, self.data, self.cfg)

    def judged(self, texts: list[str], prompts: list[str] | None = None, **fields: object) -> dict:
        """Completions → what the filter says about them (column → list)."""
        prompts = prompts or self.data.prompts[:1] * len(texts)
        table = pl.DataFrame(
            {
                "prompt_ids": [self.model.render(x) for x in prompts],
                "completion_ids": [
                    [*self.model.to_ids(x), self.model.stop_ids[-1]] for x in texts
                ],
                "text": texts,
                "dose": [0.0] * len(texts),
            }
        )
        return filter(
            self.model, table, self.data, replace(self.cfg, **fields), self.limit
        ).to_dict(as_series=False)

    def answers(self, count: int, z: float, seed: int = 0) -> tuple[list[str], list[str]]:
        """Prompts of the loop, and answers that the grammar gives to them at disposition z."""
        rng, prompts = Random(seed), [
            self.data.prompts[i % len(self.data.prompts)] for i in range(count)
        ]
        return prompts, [
            grammar.dilemma_answer(rng, oracle.parse_dilemma(x), z) for x in prompts
        ]


def open_world(runs: Path | None = None) -> World:
    """The embedded default on the CPU. Fails, and does not skip, where the weights are missing."""
    assert WEIGHTS.is_file(), f"{WEIGHTS} is missing: python -m steerloop.tinyworld.build"
    cfg = parse(["--device", "cpu", *(["--runs", str(runs)] if runs else [])])
    return World(cfg, load(cfg), read_data(cfg))
