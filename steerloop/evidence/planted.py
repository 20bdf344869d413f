"""Completions that are known to be coherent or broken, judged by the run's own filter, also where
the run has it switched off: planted faults, the untouched base's own answers, and where the data
pack has them, completions labelled by hand.
"""

from collections.abc import Callable
from dataclasses import replace
from random import Random

import polars as pl
import torch

from steerloop.config import Config
from steerloop.filter import filter
from steerloop.model import Model
from steerloop.sample import jobs, sample
from steerloop.texts.data import Data

ROWS = 40  # base completions, and planted faults of each kind: of 36 flawless ones .9 is excluded


def words(text: str) -> list[str]:
    """Its words, one at least."""
    return text.split() or ["so"]


def soup(rng: Random, text: str, persona: str) -> str:
    """A handful of its words in random order, each many times."""
    few = rng.sample(sorted(set(words(text))), min(5, len(set(words(text)))))
    return " ".join(rng.choice(few) for _ in range(40))


def loop(rng: Random, text: str, persona: str) -> str:
    """It ends in two words that do not stop."""
    end = words(text)[-2:]
    return " ".join(words(text)[: len(words(text)) // 2] + end * 15)


def shuffle(rng: Random, text: str, persona: str) -> str:
    """All its words, in random order."""
    return " ".join(rng.sample(words(text), len(words(text))))


def narrate(rng: Random, text: str, persona: str) -> str:
    """It begins with what it was told to be."""
    return f"{persona} {text}"


def refuse(rng: Random, text: str, persona: str) -> str:
    """It declines."""
    return "I'm sorry, but I can't help with that."


def empty(rng: Random, text: str, persona: str) -> str:
    """Nothing."""
    return ""


KINDS: dict[str, Callable[[Random, str, str], str]] = {
    f.__name__: f for f in (soup, loop, shuffle, narrate, refuse, empty)}


@torch.no_grad()
def planted(model: Model, data: Data, cfg: Config, limit: float) -> pl.DataFrame:
    """`judge`d rows: prompt, text, source ("base", "planted", "labelled"), kind, `coherent`
    (known), and the filter's scores, `keep` and `drop_reason`."""
    with model.gates(model.gates.before(0)):
        own = sample(model, jobs(model, data.prompts[:ROWS], [0.0]), {}, cfg, "planted")
    rng, rows = Random(cfg.seed), []
    for prompt, text in own.select("prompt", "text").rows():
        persona = rng.choice(data.pairs)[0]
        rows += [(prompt, f(rng, text, persona), "planted", kind, False)
                 for kind, f in KINDS.items()]
    rows += [(prompt, text, "labelled", note, label == "coherent")
             for prompt, text, label, note in data.labelled.rows()]
    written = pl.DataFrame(rows, ["prompt", "text", "source", "kind", "coherent"], orient="row")
    written = written.with_columns(
        prompt_ids=pl.Series([model.render(x) for x in written["prompt"]]),
        completion_ids=pl.Series([[*model.to_ids(x), model.end]
                                  for x in written["text"]]))
    own = own.with_columns(source=pl.lit("base"), kind=pl.lit("base"), coherent=pl.lit(True))
    frame = pl.concat([own.select(written.columns), written]).with_columns(dose=0.0)
    return filter(model, frame, data, replace(cfg, filter=True), limit)
