"""Which blocks to steer: candidate bands at one KL, by what the steered base says.

Judged on training prompts, so that what is held out is still unseen when U0 judges the choice.
"""

from dataclasses import replace

import polars as pl

from steerloop import UserError
from steerloop.config import Config
from steerloop.loading.layers import band
from steerloop.model import Model
from steerloop.readouts.states import Vector, mixed
from steerloop.report.sight import RESAMPLES, SEED, odd
from steerloop.report.stats import difference
from steerloop.sample import jobs
from steerloop.sight.nulls import at_cost, top_kls
from steerloop.sight.responses import ROWS, TOKENS, Direction, uttered
from steerloop.texts.data import Data

WIDTH = 0.1  # of a candidate, as a fraction of depth
STEPS = 4  # of the search for a dose, which sets out from 1 in every band
NEAR = 2.0  # a KL that misses the target by this factor is another dose
LOWS = [x / 100 for x in range(5, 90, 10)]


def candidates(cfg: Config, depth: int) -> list[list[int]]:
    """Blocks of each band, none twice; training has to reach what is steered."""
    trained = band(cfg.lora_blocks, cfg.lora_band, depth, "lora")
    found: list[list[int]] = []
    for low in LOWS:
        blocks = [i for i in range(depth) if low <= i / depth <= low + WIDTH]
        if blocks and max(blocks) >= min(trained) and blocks not in found:
            found.append(blocks)
    return found


def settled(cfg: Config, table: pl.DataFrame) -> Config:
    """The config with the best band of `bands`."""
    return replace(cfg, steer_blocks=table["blocks"][0].to_list())


def bands(model: Model, data: Data, cfg: Config) -> pl.DataFrame:
    """A row per candidate, the best first: blocks, dose (units of the vector), kl (p95 per token,
    which is close to --target_kl, or the band is left out), and what the base says under it:
    response (nats towards `up`, half of the change from -dose to +dose), low, high. Raises
    UserError where no band comes close."""
    depth = len(model.decoder.layers)
    some = candidates(cfg, depth)
    every = sorted({b for blocks in some for b in blocks})
    own = replace(data, guide=[]) if cfg.teacher == "pack" else data  # what `said` should see
    each = mixed(model, own, every, cfg.batch_rows)
    mean = {b: x.mean(0) for b, x in each.items()}
    vectors: list[Vector] = [{b: v * (b in blocks) for b, v in mean.items()} for blocks in some]
    rollout = replace(cfg, max_new_tokens=min(TOKENS, cfg.max_new_tokens))
    asked = jobs(model, data.prompts[:ROWS], [0.0])
    doses = at_cost(model, asked, rollout, cfg.target_kl, vectors, [1.0] * len(vectors), STEPS)
    directions = [Direction(str(i), v, dose)
                  for i, (v, dose) in enumerate(zip(vectors, doses, strict=True))]
    own = replace(data, contrast=pl.DataFrame({"prompt": data.prompts[: cfg.u0_items]}))
    steps, rows = odd(uttered(model, own, cfg, directions)), []
    kls = top_kls(model, asked, rollout, vectors, doses)
    for blocks, direction, kl in zip(some, directions, kls, strict=True):
        if not 1 / NEAR <= kl / cfg.target_kl <= NEAR:
            continue
        response, low, high = difference(steps[direction.name, "said"], SEED, RESAMPLES)
        rows.append({"blocks": blocks, "dose": direction.dose, "kl": kl, "response": response,
                     "low": low, "high": high})
    if not rows:
        raise UserError(f"no band comes to --target_kl {cfg.target_kl:g}: check the persona pairs")
    return pl.DataFrame(rows).sort("response", descending=True, maintain_order=True)
