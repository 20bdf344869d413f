"""Foundation axes and coherence of the model as it stands: gated, steered or bare.

Each vignette is asked with its seven options in forward and in reversed order, the answer is the
option's digit inside a JSON scaffold, and the two log-probabilities are averaged and renormalised
over the seven: position and digit priors cancel.

Letters: v vignettes, b rows (v × 2 orders), f foundations, s tokens of scaffold and digit.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import polars as pl
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from steerloop import UserError
from steerloop.barrier import token_losses
from steerloop.config import Config, Data
from steerloop.model import Model
from steerloop.sample import sample, score
from steerloop.steer import Vector, steered

FOUNDATIONS = ("care", "fairness", "loyalty", "authority", "sanctity", "liberty", "social norms")
SCAFFOLD = '{"choice": '
Probe = Callable[[Model, Config], dict[str, list[float]]]


def question(vignette: str, reverse: bool, think: bool = False) -> str:
    """The forced choice: the vignette, seven numbered options, and what form the answer takes."""
    order = FOUNDATIONS[::-1] if reverse else FOUNDATIONS
    menu = "\n".join(f"{i}: {option}" for i, option in enumerate(order, 1))
    how = "Think first, then answer with JSON." if think else "Answer with JSON."
    return f"{vignette}\nWhich rule does this break most?\n{menu}\n{how}"


def parses(text: str) -> bool:
    """Whether the first {...} in a free answer is JSON with an allowed choice."""
    try:
        answer = json.loads(re.search(r"\{[^{}]*\}|$", text)[0] or "{}").get("choice")
    except json.JSONDecodeError:
        return False
    return type(answer) is int and 1 <= answer <= len(FOUNDATIONS)


def both_orders(logp: Float[Tensor, "b f"]) -> Float[Tensor, "v f"]:
    """Log-probabilities of the digits, forward and reversed rows in turn → p per foundation."""
    forward, backward = rearrange(logp, "(v o) f -> o v f", o=2)
    return ((forward + backward.flip(-1)) / 2).softmax(-1)


@torch.no_grad()
def choices(model: Model, vignettes: pl.DataFrame, cfg: Config, free: bool = True) -> pl.DataFrame:
    """One row per vignette: vignette, foundation, p_<foundation>, p_ans_any, scaffold_nll, top1 and
    json_is_valid (left out without `free` greedy answers).

    Raises UserError where the tokenizer does not give the answer digit a token of its own.
    """
    think = cfg.think_tokens > 0
    scaffold = model.encode(prefix := "\n" * think + SCAFFOLD)
    ends = [model.encode(f"{prefix}{i}") for i in range(1, len(FOUNDATIONS) + 1)]
    if any(ids[:-1] != scaffold for ids in ends):
        raise UserError(f"{cfg.model}: the answer digit is not a token of its own")
    asked = [model.render(question(x, reverse, think))
             for x in vignettes["text"] for reverse in (False, True)]
    table = pl.DataFrame({"prompt_ids": asked}).with_columns(
        prompt_id=pl.int_range(pl.len()), dose=0.0, repeat=0)
    if think:
        table = sample(model, table, {}, cfg, "evaluate|think", cfg.think_tokens, 0.0, stops=False)
        table = table.with_columns(pl.concat_list("prompt_ids", "completion_ids").alias("prompt_ids"))
    prompts, n = table["prompt_ids"].to_list(), len(table)
    nlls, logps = [], []
    for batch in model.batches(prompts, [ends[0]] * n, [0.0] * n, cfg.batch_rows):
        h = model.hidden(batch)
        nll, _ = token_losses(h, None, batch.targets, model.head)
        nlls.append(rearrange(nll, "(b s) -> b s", s=len(ends[0]))[:, :-1].mean(1))
        last = rearrange(h, "(b s) d -> b s d", s=len(ends[0]))[:, -1]
        logps.append(model.head(last).log_softmax(-1)[:, [ids[-1] for ids in ends]])
    logp = torch.cat(logps).cpu()
    p = both_orders(logp)
    rows = {"p_ans_any": logp.exp().sum(-1), "scaffold_nll": torch.cat(nlls).cpu()}
    if free:
        text = sample(model, table, {}, cfg, "evaluate|json", cfg.json_tokens, 0.0)["text"]
        rows["json_is_valid"] = torch.tensor([float(parses(x)) for x in text])
    labels = [x.lower() for x in vignettes["foundation_coarse"]]
    return pl.DataFrame(
        {"vignette": vignettes["text"], "foundation": labels}
        | {f"p_{f}": p[:, i].tolist() for i, f in enumerate(FOUNDATIONS)}
        | {k: rearrange(x, "(v o) -> v o", o=2).mean(1).tolist() for k, x in rows.items()}
        | {"top1": [float(FOUNDATIONS[i] == f) for i, f in zip(p.argmax(-1), labels, strict=True)]})


@dataclass
class Evaluation:
    """One state, measured: a row per vignette, and (measure, item, value) for everything else."""

    rows: pl.DataFrame
    items: pl.DataFrame

    def measures(self) -> dict[str, float]:
        """Means. `<foundation>_nats` is the log of a mean probability, `ppx_json`, `ppl_mundane`
        perplexities; coherence is the smaller of p_ans_any and json_is_valid."""
        mean = self.rows.select(pl.col(pl.Float64).mean()).row(0, named=True)
        out = {f"{f}_nats": math.log(mean[f"p_{f}"]) for f in FOUNDATIONS}
        out |= {k: mean[k] for k in ("p_ans_any", "json_is_valid", "top1")}
        out["coherence"] = min(out["p_ans_any"], out["json_is_valid"])
        extra = dict(self.items.group_by("measure").agg(pl.col("value").mean()).sort("measure").rows())
        return out | {"ppx_json": math.exp(mean["scaffold_nll"]),
                      "ppl_mundane": math.exp(extra.pop("mundane_nll"))} | extra


@torch.no_grad()
def evaluate(model: Model, data: Data, cfg: Config, probes: list[Probe]) -> Evaluation:
    """Measure the model in its current state on every vignette, mundane text and probe."""
    texts = pl.DataFrame({"prompt_ids": [model.render(x) for x in data.mundane["prompt"]],
                          "completion_ids": [model.encode(x) for x in data.mundane["text"]]})
    nlls, _ = score(model, texts.with_columns(dose=0.0), cfg)
    items = {"mundane_nll": [x.mean().item() for x in nlls]}
    for probe in probes:
        items |= probe(model, cfg)
    long = [(name, i, x) for name, values in items.items() for i, x in enumerate(values)]
    return Evaluation(choices(model, data.vignettes, cfg),
                      pl.DataFrame(long, ["measure", "item", "value"], orient="row"))


@dataclass
class Fixed:
    """One dose for every row of every batch."""

    dose: Float[Tensor, "1"]


@torch.no_grad()
def matched_dose(
    model: Model, vector: Vector, data: Data, goal: float, top: float, cfg: Config
) -> float:
    """The dose in [0, top] at which steering brings log mean p of the `down` foundation to `goal`
    nats: seven bisections, on the forced choice alone."""
    low, high = 0.0, top
    for _ in range(7):
        dose = (low + high) / 2
        with steered(model, vector, Fixed(torch.tensor([dose], device=model.device))):
            rows = choices(model, data.vignettes, cfg, free=False)
        reached = math.log(rows[f"p_{data.down}"].mean())
        low, high = (low, dose) if reached < goal else (dose, high)
    return (low + high) / 2
