"""What endings of a prompt cost the model, what several have in common read once.

Letters: p prompts of a batch, k endings of each, b rows (p k), t tokens of an ending.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from steerloop.barrier import token_losses
from steerloop.kernels.batch import Ids, pad
from steerloop.kernels.caches import arrange, empty_cache
from steerloop.kernels.prefix import common
from steerloop.model import Model
from steerloop.ranks import dealt, gathered
from steerloop.runfolder.progress import Bar

SHARE = 4  # rows of a batch here, multiples of one of whole completions: endings are short


@torch.no_grad()
def endings(
    model: Model, prompts: Ids, texts: list[Ids], size: int, bar: str
) -> Float[Tensor, "p k"]:
    """Mean log-probability per token, nats, of each of k `texts` after its prompt; as many for each
    prompt. `size`: rows of one batch of completions. On the CPU."""
    k = len(texts[0])
    step = max(1, SHARE * size // k)
    means: list[Tensor] = []
    prompts, texts = dealt(prompts), dealt(texts)
    with model.dense():
        for i in Bar(range(0, len(prompts), step), bar):
            part = prompts[i : i + step]
            after = [ids for row in texts[i : i + step] for ids in row]
            read = whole if k == 1 or model.trunk.stepwise else gone_on
            means += rearrange(read(model, part, after), "(p k) -> p k", k=k).cpu()
    return torch.stack(gathered(means))


def gone_on(model: Model, prompts: Ids, after: Ids) -> Float[Tensor, "b"]:
    """Prompts are read, then every ending from a copy of its prompt's cache."""
    copies = len(after) // len(prompts)
    ids, mask = model.pad(prompts)
    cache = empty_cache(model.hf)
    first = model.trunk(ids, mask, cache)[:, -1:].repeat_interleave(copies, dim=0)
    arrange(cache, torch.arange(len(after)) // copies)
    new, seen = pad(after, model.stop_ids[0], model.device, left=False)
    past = mask.repeat_interleave(copies, dim=0)
    h = model.trunk(new, torch.cat([past, seen], dim=1), cache)
    h = torch.cat([first, h[:, :-1]], dim=1)
    nll, _ = token_losses(h[seen], None, new[seen], model.head)
    return per_row(nll, seen.sum(1))


def whole(model: Model, prompts: Ids, after: Ids) -> Float[Tensor, "b"]:
    """Every row read to its end in one pass. What all begin with, such as a persona, is read once;
    but by models that take cached text a token at a time, in every row."""
    rows = [x for x in prompts for _ in range(len(after) // len(prompts))]
    n = 0 if model.trunk.stepwise else min(common(rows[0][:-1], x[:-1]) for x in rows)
    batch = model.batch([x[n:] for x in rows], after)
    cache, mask = None, batch.mask
    if n:
        cache, begun = empty_cache(model.hf), torch.ones_like(mask[:, :1]).expand(-1, n)
        model.trunk(torch.tensor([rows[0][:n]], device=model.device), begun[:1], cache)
        arrange(cache, torch.zeros(len(rows), dtype=torch.long))
        mask = torch.cat([begun, mask], dim=1)
    h = rearrange(model.trunk(batch.ids, mask, cache), "b t d -> (b t) d")[batch.positions]
    nll, _ = token_losses(h, None, batch.targets, model.head)
    return per_row(nll, torch.bincount(batch.rows, minlength=len(after)))


def per_row(nll: Float[Tensor, "n"], sizes: Tensor) -> Float[Tensor, "b"]:
    """NLLs of all tokens → mean log-probability of each row."""
    return torch.stack([-x.mean() for x in nll.split(sizes.tolist())])
