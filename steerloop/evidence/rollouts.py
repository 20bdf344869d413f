"""Per-token KL along long rollouts: steered below, at and beyond the dose c*, and of the healed
student. What calibration by KL rests on is seen here text by text: where a dose breaks the text,
the KL of its tokens has left the target long before; and where a student walks away from its base
over the length of an answer, a mean over tokens would not show it.
"""

from dataclasses import replace

import polars as pl
import torch
from torch import Tensor

from steerloop.config import Config
from steerloop.loading.fit import positions
from steerloop.model import Model
from steerloop.readouts.states import Vector
from steerloop.sample import completion_losses, jobs, sample
from steerloop.texts.data import Data
from steerloop.texts.faults import alive

PROMPTS = 3  # of the loop, rolled out in each state and at each dose
TIMES = (0.5, 1.0, 2.0, 4.0)  # doses, as multiples of c*
LONG = 3  # times as long as the rollouts that c* was found on


def length(model: Model, prompts: list[str], cfg: Config) -> int:
    """Limit of a rollout in tokens: `LONG` times that of dose calibration, as far as the positions
    of the model allow after the longest of the prompts."""
    wanted, most = LONG * cfg.dose_tokens, positions(model.hf)
    if most is None:
        return wanted
    return min(wanted, most - max(len(model.render(x)) for x in prompts))


@torch.no_grad()
def rollouts(
    model: Model, data: Data, cfg: Config, vector: Vector, c_star: float, round: int
) -> pl.DataFrame:
    """Rollouts after the fold of `round`, one a row: `state`, `times` (c*) and `dose` (units of
    the vector), prompt_id, prompt, text, `completion_ids`, `cut` (the length limit ended it),
    `alive` (it neither loops nor repeats), and `kl`, its tokens' KLs in order, nats.

    "steered" is the student as it was before this round, at every dose: KL(steered ‖ unsteered).
    "healed" is the student, unsteered, `times` null and dose 0: KL(student ‖ base).
    """
    prompts = data.prompts[:PROMPTS]
    tokens = length(model, prompts, cfg)
    rows = max(1, cfg.batch_rows * cfg.max_new_tokens // max(tokens, cfg.max_new_tokens))
    long = replace(cfg, max_new_tokens=tokens, batch_rows=rows)  # no more memory than elsewhere
    doses = [x * c_star for x in TIMES]
    with model.gates(model.gates.before(round)):
        table = sample(model, jobs(model, prompts, doses), vector, long, f"{round}|rollouts")
        _, kls = completion_losses(model, table, long, vector)
    steered = told(model, table, kls, cfg, "steered")
    table = sample(model, jobs(model, prompts, [0.0]), {}, long, f"{round}|own rollouts")
    _, kls = completion_losses(model, table, long, ref=model.gates.before(0))
    return pl.concat([steered, told(model, table, kls, cfg, "healed")])


def told(
    model: Model, table: pl.DataFrame, kls: list[Tensor], cfg: Config, state: str
) -> pl.DataFrame:
    """Sampled rows and their KLs, as `rollouts` returns them, in the order of their doses."""
    times = pl.lit(TIMES).list.get("multiple") if state == "steered" else pl.lit(None, pl.Float64)
    ended = pl.col("completion_ids").list.last().is_in(model.stop_ids)
    table = table.with_columns(
        pl.lit(state).alias("state"), times.alias("times"), cut=~ended.fill_null(False),
        alive=pl.Series(alive(table["text"], cfg)),
        kl=pl.Series([x.tolist() for x in kls], dtype=pl.List(pl.Float64)))
    return table.sort("dose", "prompt_id").select(
        "state", "times", "dose", "prompt_id", "prompt", "text", "completion_ids", "cut", "alive",
        "kl")
