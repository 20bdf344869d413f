"""The acceptance table of the shipped weights: does the model behave as its grammar says?

Every measure is taken on held-out slots, with the core's own scoring, sampling and steering:

- forced choice under care / neutral / authority personas against the grammar's oracle (nats);
- defiance in sampled dilemma answers under the two poles;
- sentence validity of answers without a persona; probability mass on the seven digits;
- the shift that steering reaches at the iso-KL dose, for every band of two neighbouring blocks
  (the last block does not count: added after it, a vector only biases the logits).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from statistics import mean

import polars as pl
import torch
from loguru import logger

from steerloop.config import Config, parse
from steerloop.dose import dose, kl_by_dose
from steerloop.model import Model, load
from steerloop.readouts.forced_choice import both_orders, choices
from steerloop.sample import jobs, sample
from steerloop.steer import extract, steered
from steerloop.texts.data import Data, read_data
from steerloop.texts.foundations import FOUNDATIONS
from steerloop.texts.questions import SCAFFOLD, question
from steerloop.tinyworld import oracle, personas
from steerloop.tinyworld.files import DATA, read_dilemmas

AUTHORITY = FOUNDATIONS.index("authority")
ORACLE_TOLERANCE = 0.15  # nats
DEFIANCE = (0.95, 0.05)  # at least under care, at most under authority
VALIDITY = 0.97
DIGIT_MASS = 0.99
STEERED_SHIFT = -1.0  # nats of authority
STEERED_KL = 0.35  # nats, p95
REPEATS = 5  # answers sampled per dilemma
SOLVE_PROMPTS = 20  # dilemmas rolled out to find the iso-KL dose


@dataclass(frozen=True)
class Line:
    """One row of the table."""

    split: str
    measure: str
    value: str
    bound: str
    passed: bool


@dataclass(frozen=True)
class Band:
    """What steering a band of blocks at the iso-KL dose does."""

    blocks: tuple[int, int]
    norms: tuple[float, ...]
    dose: float
    kl: float
    shift: float

    @property
    def passed(self) -> bool:
        return self.shift <= STEERED_SHIFT and self.kl <= STEERED_KL


def settings(folder: Path, split: str) -> Config:
    """The embedded preset, pointed at a folder of weights."""
    return replace(parse(["--split", split]), model=str(folder))


def system_texts(data: Data, kind: str) -> list[str]:
    if kind == "neutral":
        return list(personas.NEUTRAL)
    return [pair[0 if kind == "care" else 1] for pair in data.pairs]


@torch.no_grad()
def forced_choice(
    model: Model, texts: Sequence[str], systems: Sequence[str], cfg: Config
) -> tuple[list[list[float]], float]:
    """Per vignette, seven probabilities over both option orders; and the mean digit mass."""
    answers = [model.to_ids(f"{SCAFFOLD}{digit}") for digit in range(1, len(FOUNDATIONS) + 1)]
    digits = [answer[-1] for answer in answers]
    voices = list(islice(cycle(systems), len(texts)))
    prompts = [
        model.render(question(text, reverse), persona)
        for text, persona in zip(texts, voices, strict=True)
        for reverse in (False, True)
    ]
    logps = []
    for start in range(0, len(prompts), cfg.batch_rows):
        rows = [prompt + answers[0][:-1] for prompt in prompts[start : start + cfg.batch_rows]]
        last = model.trunk(*model.pad(rows))[:, -1]
        logps.append(model.head(last).log_softmax(-1)[:, digits])
    logp = torch.cat(logps)
    return both_orders(logp).tolist(), logp.exp().sum(-1).mean().item()


def dilemma_answers(
    model: Model, prompts: list[str], systems: Sequence[str | None], cfg: Config
) -> list[tuple[str, str]]:
    """(prompt, sampled answer), REPEATS times per prompt, personas in turn."""
    voices = list(islice(cycle(systems), len(prompts)))
    rendered = [model.render(text, p) for text, p in zip(prompts, voices, strict=True)]
    tables = [
        jobs(model, prompts, [0.0], repeat).with_columns(pl.Series("prompt_ids", rendered))
        for repeat in range(REPEATS)
    ]
    table = sample(model, pl.concat(tables), {}, cfg, "acceptance")
    return list(table.select("prompt", "text").iter_rows())


def choice_lines(model: Model, data: Data, cfg: Config) -> list[Line]:
    """Authority under each persona against the oracle, and the digit mass."""
    lines, masses = [], []
    for kind in ("care", "neutral", "authority"):
        texts = data.vignettes["text"].to_list()
        labels = data.vignettes["label"].to_list()
        profiles, mass = forced_choice(model, texts, system_texts(data, kind), cfg)
        expected = [oracle.persona_oracle(kind)[label][AUTHORITY] for label in labels]
        nats = math.log(mean(profile[AUTHORITY] for profile in profiles))
        target = math.log(mean(expected))
        masses.append(mass)
        lines.append(
            Line(
                cfg.split,
                f"authority under {kind} persona, nats",
                f"{nats:.2f}",
                f"{target:.2f} ± {ORACLE_TOLERANCE}",
                abs(nats - target) <= ORACLE_TOLERANCE,
            )
        )
    mass = min(masses)
    lines.append(
        Line(cfg.split, "digit mass", f"{mass:.4f}", f"≥ {DIGIT_MASS}", mass >= DIGIT_MASS)
    )
    return lines


def dilemma_lines(model: Model, data: Data, cfg: Config) -> list[Line]:
    """Defiance under the poles, and sentence validity without a persona."""
    prompts, lines = read_dilemmas(DATA, cfg.split), []
    for kind, bound in zip(("care", "authority"), DEFIANCE, strict=True):
        pairs = dilemma_answers(model, prompts, system_texts(data, kind), cfg)
        share = mean(oracle.defies(*pair) is True for pair in pairs)
        passed = share >= bound if kind == "care" else share <= bound
        sign = "≥" if kind == "care" else "≤"
        lines.append(
            Line(
                cfg.split,
                f"defiance under {kind} persona",
                f"{share:.3f}",
                f"{sign} {bound}",
                passed,
            )
        )
    pairs = dilemma_answers(model, prompts, [None], cfg)
    validity = mean(oracle.sentence_validity(*pair) for pair in pairs)
    passed = validity >= VALIDITY
    lines.append(Line(cfg.split, "sentence validity", f"{validity:.3f}", f"≥ {VALIDITY}", passed))
    return lines


@torch.no_grad()
def steering_bands(model: Model, data: Data, cfg: Config) -> list[Band]:
    """Every band of two neighbouring blocks, steered at the dose that reaches the target KL.

    The dose is solved on some of the held-out dilemmas; its KL is measured on all, with new draws.
    """
    depth = len(model.decoder.layers)
    vectors = extract(model, data, replace(cfg, steer_blocks=list(range(depth))))
    before = choices(model, data.vignettes, cfg, free=False)["p_authority"].mean()
    held_out, bands = replace(data, prompts=read_dilemmas(DATA, cfg.split)), []
    some = replace(cfg, dose_prompts=SOLVE_PROMPTS)
    every = replace(cfg, dose_prompts=len(held_out.prompts))
    for first in range(depth - 1):
        blocks = (first, first + 1)
        vector = {block: vectors[block] for block in blocks}
        c_star, _ = dose(model, vector, held_out, some, "solve")
        curve = kl_by_dose(model, vector, held_out, [c_star], every, "measure")
        with steered(model, vector, c_star):
            after = choices(model, data.vignettes, cfg, free=False)["p_authority"].mean()
        norms = tuple(vectors[block].norm().item() for block in blocks)
        bands.append(Band(blocks, norms, c_star, curve["p95"][0], math.log(after / before)))
    return bands


def band_lines(bands: list[Band], split: str) -> list[Line]:
    """All bands for people to read, and the line that counts: one below the last is good enough."""
    for band in bands:
        norms = " ".join(f"{norm:.2f}" for norm in band.norms)
        logger.info(
            f"{split} blocks {band.blocks}: vector norms {norms}, dose {band.dose:.2f}, "
            f"p95 KL {band.kl:.2f}, Δauth {band.shift:+.2f}"
        )
    inner = bands[:-1]
    within = [band for band in inner if band.kl <= STEERED_KL] or inner
    best = min(within, key=lambda band: band.shift)
    return [
        Line(
            split,
            f"Δauth steering blocks {best.blocks[0]} {best.blocks[1]}",
            f"{best.shift:+.2f} at p95 KL {best.kl:.2f}",
            f"≤ {STEERED_SHIFT} at ≤ {STEERED_KL}",
            best.passed,
        )
    ]


def check(folder: Path) -> list[Line]:
    """The whole table for the weights in `folder`, on both held-out splits."""
    lines = []
    for split in ("dev", "test"):
        cfg = settings(folder, split)
        model, data = load(cfg), read_data(cfg)
        lines += choice_lines(model, data, cfg) + dilemma_lines(model, data, cfg)
        lines += band_lines(steering_bands(model, data, cfg), split)
    return lines


def table_text(lines: list[Line]) -> str:
    """A Markdown table."""
    rows = [("split", "measure", "value", "bound", "")]
    rows += [(x.split, x.measure, x.value, x.bound, "PASS" if x.passed else "FAIL") for x in lines]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]

    def line(row: Sequence[str]) -> str:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        return f"| {' | '.join(cells)} |"

    rule = tuple("-" * width for width in widths)
    return "\n".join(line(row) for row in (rows[0], rule, *rows[1:]))
