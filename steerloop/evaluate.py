"""Foundation axes and coherence of the model as it stands: gated, steered or bare.

Letters: v vignettes, b rows (v × 2 option orders), f foundations, s tokens of scaffold and digit.
"""

from collections.abc import Callable

import polars as pl
import torch
from einops import rearrange

from steerloop.barrier import token_losses
from steerloop.config import Config
from steerloop.kernels.decode import decode, greedy
from steerloop.kernels.files import Data
from steerloop.kernels.forced_choice import FOUNDATIONS, answers, both_orders, parses, question
from steerloop.kernels.live import Bar
from steerloop.kernels.prefix import follow, paired
from steerloop.model import Model
from steerloop.sample import score

JSON_TOKENS = 16  # length limit of the free answer
Probe = Callable[[Model, Config], dict[str, list[float]]]


@torch.no_grad()
def choices(model: Model, vignettes: pl.DataFrame, cfg: Config, free: bool = True) -> pl.DataFrame:
    """One row per vignette: vignette, foundation, p_<foundation>, p_ans_any, scaffold_nll, top1,
    json_is_valid (left out without the `free` greedy answers), and human ratings where known.

    Raises UserError where the tokenizer does not give the answer digit a token of its own.
    """
    think, texts = cfg.think_tokens, vignettes["text"].to_list()
    ends, size = answers(model.encode, think > 0), max(1, cfg.batch_rows // 2)
    scaffold = torch.tensor(ends[0][:-1], device=model.device)
    logps, nlls, written = [], [], []
    for at in Bar(range(0, len(texts), size), "evaluate"):
        asked = [model.render(question(x, reverse, think > 0)) for x in texts[at : at + size]
                 for reverse in (False, True)]
        with model.dense():
            rows = paired(model, asked, think)
            decode(model, rows, greedy, stops=False)
            if free:
                apart = rows.fork(torch.arange(len(asked)), JSON_TOKENS)
                written += map(model.decode, decode(model, apart, greedy))
            h = follow(model, rows, ends[0][:-1])
        flat = rearrange(h[:, :-1], "b s d -> (b s) d")
        nll, _ = token_losses(flat, None, scaffold.repeat(len(asked)), model.head)
        nlls.append(rearrange(nll, "(b s) -> b s", b=len(asked)).mean(1))
        logps.append(model.head(h[:, -1]).log_softmax(-1)[:, [x[-1] for x in ends]])
    p = both_orders(logp := torch.cat(logps).cpu())
    rows = {"p_ans_any": logp.exp().sum(-1), "scaffold_nll": torch.cat(nlls).cpu()}
    if free:
        rows["json_is_valid"] = torch.tensor([float(parses(x)) for x in written])
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
