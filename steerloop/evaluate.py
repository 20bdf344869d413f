"""Foundation axes and coherence of the model as it stands: gated, steered or bare.

Letters: v vignettes, b rows (v × 2 option orders), f foundations, s tokens of scaffold and digit.
"""

from collections.abc import Callable

import polars as pl
import torch
from einops import rearrange

from steerloop.barrier import token_losses
from steerloop.config import Config
from steerloop.kernels.files import Data
from steerloop.kernels.forced_choice import FOUNDATIONS, answers, both_orders, parses, question
from steerloop.model import Model
from steerloop.sample import sample, score

JSON_TOKENS = 16  # length limit of the free answer
Probe = Callable[[Model, Config], dict[str, list[float]]]


@torch.no_grad()
def choices(model: Model, vignettes: pl.DataFrame, cfg: Config, free: bool = True) -> pl.DataFrame:
    """One row per vignette: vignette, foundation, p_<foundation>, p_ans_any, scaffold_nll, top1,
    json_is_valid (left out without the `free` greedy answers), and human ratings where known.

    Raises UserError where the tokenizer does not give the answer digit a token of its own.
    """
    think, texts = cfg.think_tokens > 0, vignettes["text"].to_list()
    ends = answers(model.encode, think)
    asked = [model.render(question(x, reverse, think)) for x in texts for reverse in (False, True)]
    table = pl.DataFrame({"prompt_ids": asked, "prompt_id": range(len(asked))}).with_columns(
        dose=0.0, copy=0)
    if think:
        table = sample(model, table, {}, cfg, "evaluate|think", cfg.think_tokens, 0.0, stops=False)
        table = table.with_columns(prompt_ids=pl.concat_list("prompt_ids", "completion_ids"))
    columns = table["prompt_ids"].to_list(), [ends[0]] * len(table), [0.0] * len(table)
    nlls, logps = [], []
    for batch in model.batches(columns, cfg.batch_rows):
        h = model.hidden(batch)
        nll, _ = token_losses(h, None, batch.targets, model.head)
        nlls.append(rearrange(nll, "(b s) -> b s", s=len(ends[0]))[:, :-1].mean(1))
        last = rearrange(h, "(b s) d -> b s d", s=len(ends[0]))[:, -1]
        logps.append(model.head(last).log_softmax(-1)[:, [ids[-1] for ids in ends]])
    p = both_orders(logp := torch.cat(logps).cpu())
    rows = {"p_ans_any": logp.exp().sum(-1), "scaffold_nll": torch.cat(nlls).cpu()}
    if free:
        text = sample(model, table[::2], {}, cfg, "evaluate|json", JSON_TOKENS, 0.0)["text"]
        rows["json_is_valid"] = torch.tensor([parses(x) for x in text]).float().repeat_interleave(2)
    labels = vignettes["label"].to_list()
    return pl.DataFrame(
        {"vignette": texts, "foundation": labels}
        | {f"p_{f}": p[:, i].tolist() for i, f in enumerate(FOUNDATIONS)}
        | {k: rearrange(x, "(v o) -> v o", o=2).mean(1).tolist() for k, x in rows.items()}
        | {"top1": [float(FOUNDATIONS[i] == f) for i, f in zip(p.argmax(-1), labels, strict=True)]}
        | vignettes.select("^h_.*$").to_dict())


@torch.no_grad()
def evaluate(model: Model, data: Data, cfg: Config, probes: list[Probe]) -> list[pl.DataFrame]:
    """Measure the model in its current state: a row per vignette (see `choices`), and (measure,
    item, value) for mundane text and for what the probes return."""
    texts = pl.DataFrame({"prompt_ids": [model.render(x) for x in data.mundane["prompt"]],
                          "completion_ids": [model.encode(x) for x in data.mundane["text"]]})
    nlls, _ = score(model, texts.with_columns(dose=0.0), cfg)
    items = {"mundane_nll": [x.mean().item() for x in nlls]}
    for probe in probes:
        items |= probe(model, cfg)
    long = [(name, i, x) for name, values in items.items() for i, x in enumerate(values)]
    return [choices(model, data.vignettes, cfg),
            pl.DataFrame(long, ["measure", "item", "value"], orient="row")]
