"""The seven-way forced choice: how its answers are read.

Asked in both option orders, position and digit priors cancel. (The questions: texts/questions.py.)

Letters: v vignettes, o orders, b rows (v × o, forward and reversed in turn), f foundations, s
tokens of scaffold and digit.
"""

from collections.abc import Callable

import polars as pl
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from steerloop import UserError
from steerloop.barrier import token_losses
from steerloop.config import Config
from steerloop.kernels.caches import empty_cache
from steerloop.kernels.decode import generate, greedy
from steerloop.kernels.graphs import steps
from steerloop.kernels.prefix import follow, paired
from steerloop.model import Model
from steerloop.ranks import dealt, gathered
from steerloop.runfolder.progress import Bar
from steerloop.texts.foundations import FOUNDATIONS
from steerloop.texts.questions import SCAFFOLD, parses, question

JSON_TOKENS = 16  # length limit of the free answer


def answers(encode: Callable[[str], list[int]], think: bool) -> list[list[int]]:
    """Token ids of the scaffold with each digit in turn; they differ in the last token alone.

    Raises UserError where the tokenizer does not give the digit a token of its own.
    """
    scaffold = encode(prefix := "\n" * think + SCAFFOLD)
    ends = [encode(f"{prefix}{i}") for i in range(1, len(FOUNDATIONS) + 1)]
    if any(ids[:-1] != scaffold for ids in ends):
        raise UserError("this model's tokenizer: the answer digit is not a token of its own")
    return ends


def by_order(logp: Float[Tensor, "b f"]) -> Float[Tensor, "o v f"]:
    """Log-probabilities of the digits → those of the foundations, by order of the options."""
    forward, backward = rearrange(logp, "(v o) f -> o v f", o=2)
    return torch.stack([forward, backward.flip(-1)])


def both_orders(logp: Float[Tensor, "b f"]) -> Float[Tensor, "v f"]:
    """Log-probabilities of the digits → p per foundation, renormalised over the seven."""
    return by_order(logp).mean(0).softmax(-1)


@torch.no_grad()
def choices(model: Model, vignettes: pl.DataFrame, cfg: Config, free: bool = True) -> pl.DataFrame:
    """One row per vignette: vignette, foundation, p_<foundation>, the same by either order alone
    (forward_<foundation>, reverse_<foundation>), p_ans_any, scaffold_nll, top1, json_is_valid (left
    out without the `free` greedy answers), and human ratings where known. No row where there are no
    vignettes.

    Raises UserError where the tokenizer does not give the answer digit a token of its own.
    """
    if not len(vignettes):
        return pl.DataFrame(schema={"vignette": pl.String, "foundation": pl.String})
    think, texts = cfg.think_tokens > 0, vignettes["text"].to_list()
    mine = dealt(texts)
    ends, size = answers(model.to_ids, think), max(1, cfg.batch_rows // 2)
    digits = [ids[-1] for ids in ends]
    logps: list[Tensor] = []
    nlls: list[Tensor] = []
    written: list[list[str]] = []
    for at in Bar(range(0, len(mine), size), "evaluate"):
        asked = []
        for text in mine[at : at + size]:
            asked += [model.render(question(text, reverse, think)) for reverse in (False, True)]
        h, said = read(model, asked, ends[0][:-1], cfg.think_tokens, free)
        nlls += scaffold_nll(model, h, ends[0][:-1]).cpu().split(2)
        logps += model.head(h[:, -1]).log_softmax(-1)[:, digits].cpu().split(2)
        written += [said[i : i + 2] for i in range(0, len(said), 2)]
    logps, nlls, written = gathered(logps), gathered(nlls), gathered(written)
    logp = torch.cat(logps)
    p, alone = both_orders(logp), by_order(logp).softmax(-1)
    rows = {"p_ans_any": logp.exp().sum(-1), "scaffold_nll": torch.cat(nlls)}
    if free:
        rows["json_is_valid"] = torch.tensor([float(parses(x)) for both in written for x in both])
    labels = vignettes["label"].to_list()
    columns = {"vignette": texts, "foundation": labels}
    for name, values in (("p", p), ("forward", alone[0]), ("reverse", alone[1])):
        columns |= {f"{name}_{f}": x.tolist() for f, x in zip(FOUNDATIONS, values.T, strict=True)}
    for name, values in rows.items():
        columns[name] = rearrange(values, "(v o) -> v o", o=2).mean(1).tolist()
    picks = [FOUNDATIONS[i] for i in p.argmax(-1)]
    columns["top1"] = [float(a == b) for a, b in zip(picks, labels, strict=True)]
    return pl.DataFrame(columns | vignettes.select("^h_.*$").to_dict())


def read(
    model: Model, asked: list[list[int]], scaffold: list[int], think: int, free: bool
) -> tuple[Float[Tensor, "b s d"], list[str]]:
    """Prompts, two to a vignette → the states from which scaffold and digit are predicted, after a
    thought of `think` tokens; and the greedy answers of rows that were left to themselves."""
    with model.dense():
        share = not model.trunk.stepwise  # reading on by single tokens costs more than it spares
        rows = paired(model.trunk, model.pad, empty_cache(model.hf), asked, think, share)
        step = steps(model.trunk, model.head, rows)
        generate(step, rows, greedy, model.stop_ids, stops=False)
        said = []
        if free:
            apart = rows.fork(torch.arange(len(asked)), JSON_TOKENS)
            step = steps(model.trunk, model.head, apart)
            ids = generate(step, apart, greedy, model.stop_ids)
            said = [model.to_text(x) for x in ids]
        return follow(model.trunk, rows, scaffold), said


def scaffold_nll(
    model: Model, h: Float[Tensor, "b s d"], scaffold: list[int]
) -> Float[Tensor, "b"]:
    """Mean NLL of the scaffold's tokens, nats."""
    b = len(h)
    targets = torch.tensor(scaffold, device=model.device).repeat(b)
    flat = rearrange(h[:, :-1], "b s d -> (b s) d")
    nll, _ = token_losses(flat, None, targets, model.head)
    return rearrange(nll, "(b s) -> b s", b=b).mean(1)
