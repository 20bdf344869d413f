"""The straightforward twins: what one would write with the libraries alone, to race against.

One prompt at a time through `generate`, all logits of all positions, then a mask; the reference
model run again in every step; `bitsandbytes` for 4-bit bases and PEFT for LoRA. They compute the
same as the package; a check compares them in fp32.

The 4-bit layers stay in training mode: in eval mode some CPUs repack the weight on the first pass
without gradients, after which gradients silently stop.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from steerloop import UserError
from steerloop.barrier import Barrier
from steerloop.config import Config
from steerloop.kernels.hardware import hardware
from steerloop.loading.chat import Chat
from steerloop.loading.weights import load_weights
from steerloop.readouts.forced_choice import answers
from steerloop.texts.foundations import FOUNDATIONS
from steerloop.texts.questions import parses, question

STEPS = 6  # the bracket of a dose ends at a factor of 2 ** (1 / STEPS), as ours does
JSON_TOKENS = 16
Vector = dict[int, Tensor]


@dataclass
class Twin:
    """The library's model with what sampling needs to know."""

    hf: PreTrainedModel
    chat: Chat
    cfg: Config

    def ids(self, *rows: list[int]) -> Tensor:
        return torch.tensor(rows, device=self.hf.device)


def load(cfg: Config, chat: Chat) -> Twin:
    """The same weights in the library's own model, 4-bit through bitsandbytes."""
    device = hardware(cfg.device, cfg.threads)
    hf = load_weights(cfg.model, cfg.dtype, cfg.attn, "none", device)[1].requires_grad_(False)
    if cfg.quant == "nf4":
        for name, m in list(hf.get_decoder().layers.named_modules()):
            if isinstance(m, nn.Linear):
                packed = bnb.nn.Linear4bit(m.in_features, m.out_features, m.bias is not None,
                                           compute_dtype=m.weight.dtype, quant_type="nf4")
                packed.weight = bnb.nn.Params4bit(m.weight.data, False, quant_type="nf4")
                packed.bias = m.bias
                hf.get_decoder().layers.set_submodule(name, packed.to(device))
        hf.is_loaded_in_4bit = True  # PEFT asks for it
    return Twin(hf, chat, cfg)


@contextmanager
def steered(twin: Twin, vector: Vector, dose: float | Tensor) -> Iterator[None]:
    """Forward hooks that add dose · v to the output of blocks."""

    def adding(v: Tensor) -> Callable[..., Tensor]:
        return lambda module, inputs, out: out + (dose * v).to(out.dtype)

    layers = twin.hf.get_decoder().layers
    hooks = [layers[b].register_forward_hook(adding(v)) for b, v in vector.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def generate(
    twin: Twin, prompts: list[list[int]], m: int, heat: float, stops: bool = True
) -> list[list[int]]:
    """Completions of m tokens at most, in one batch, by the library; end tokens kept."""
    ends, width = twin.chat.stop_ids, max(map(len, prompts))
    ids = twin.ids(*([ends[0]] * (width - len(x)) + x for x in prompts))
    mask = twin.ids(*([0] * (width - len(x)) + [1] * len(x) for x in prompts))
    how = {"temperature": heat, "top_k": twin.cfg.top_k, "top_p": twin.cfg.top_p} if heat else {}
    tails = twin.hf.generate(
        input_ids=ids, attention_mask=mask, do_sample=heat > 0, max_new_tokens=m,
        min_new_tokens=0 if stops else m, eos_token_id=ends, pad_token_id=ends[0], **how,
    )[:, width:].tolist()  # fmt: skip
    cuts = [[i for i, token in enumerate(x) if token in ends] for x in tails]
    return [x[: cut[0] + 1] if cut else x for x, cut in zip(tails, cuts, strict=True)]


def sample(
    twin: Twin, prompts: list[list[int]], doses: list[float], vector: Vector, m: int, heat: float,
    stops: bool = True,
) -> list[list[int]]:
    """One completion at a time."""
    completions = []
    for prompt, dose in zip(prompts, doses, strict=True):
        with steered(twin, vector, dose):
            completions += generate(twin, [prompt], m, heat, stops)
    return completions


def sample_batch(
    twin: Twin, prompts: list[list[int]], doses: list[float], vector: Vector, m: int, heat: float,
    stops: bool = True,
) -> list[list[int]]:
    """All of them in one call of `generate`."""
    per_row = torch.tensor(doses, device=twin.hf.device)[:, None, None]
    with steered(twin, vector, per_row):
        return generate(twin, prompts, m, heat, stops)


@torch.no_grad()
def logp(twin: Twin, prompt: list[int], completion: list[int]) -> Tensor:
    """Log-probabilities (completion tokens, vocabulary): all logits, then those asked for."""
    whole = twin.hf(input_ids=twin.ids(prompt + completion)).logits.float().log_softmax(-1)
    return whole[0, len(prompt) - 1 : -1]


def score(twin: Twin, prompt: list[int], completion: list[int]) -> Tensor:
    """NLL of each completion token, nats."""
    return -logp(twin, prompt, completion).gather(-1, twin.ids(completion).T)[:, 0]


def kl(
    twin: Twin, prompt: list[int], completion: list[int], vector: Vector, dose: float
) -> Tensor:
    """KL(steered ‖ unsteered) at each completion token, nats."""
    with steered(twin, vector, dose):
        p = logp(twin, prompt, completion)
    return (p.exp() * (p - logp(twin, prompt, completion))).sum(-1)


def p95(twin: Twin, prompts: list[list[int]], vector: Vector, dose: float) -> float:
    """95th percentile of the per-token KL over one rollout of each prompt."""
    cfg = twin.cfg
    outs = sample(twin, prompts, [dose] * len(prompts), vector, cfg.dose_tokens, cfg.temperature)
    kls = [kl(twin, x, out, vector, dose) for x, out in zip(prompts, outs, strict=True)]
    return torch.cat(kls).quantile(0.95).item()


def solve(twin: Twin, prompts: list[list[int]], vector: Vector) -> float:
    """The dose at which `p95` is the target: double or halve until it is bracketed, then bisect."""
    target, low, high = twin.cfg.target_kl, 1.0, 1.0
    f_low = f_high = p95(twin, prompts, vector, 1.0)
    while f_low >= target:
        high, f_high, low = low, f_low, low / 2
        f_low = p95(twin, prompts, vector, low)
    while f_high < target:
        low, f_low, high = high, f_high, high * 2
        f_high = p95(twin, prompts, vector, high)
    while high / low > 2 ** (1 / STEPS):
        middle = math.sqrt(low * high)
        if (f := p95(twin, prompts, vector, middle)) < target:
            low, f_low = middle, f
        else:
            high, f_high = middle, f
    share = math.log(target / max(f_low, 1e-9 * target)) / math.log(
        f_high / max(f_low, 1e-9 * target))
    return low * (high / low) ** share


@torch.no_grad()
def mean_states(twin: Twin, prompts: list[list[int]], blocks: list[int]) -> Vector:
    """Mean over prompts of what blocks put out at the last token: all hidden states, all logits."""
    sums = dict.fromkeys(blocks, 0.0)
    for prompt in prompts:
        states = twin.hf(input_ids=twin.ids(prompt), output_hidden_states=True).hidden_states
        for b in blocks:
            sums[b] = sums[b] + states[b + 1][0, -1].float()
    return {b: total / len(prompts) for b, total in sums.items()}


def extract(
    twin: Twin, plus: list[list[int]], minus: list[list[int]], blocks: list[int]
) -> Vector:
    """Mean difference of the residual stream between two lists of prompts."""
    up, down = mean_states(twin, plus, blocks), mean_states(twin, minus, blocks)
    return {b: up[b] - down[b] for b in blocks}


@torch.no_grad()
def choice(twin: Twin, vignette: str, think: int) -> dict[str, Any]:
    """Probabilities of the seven foundations, answer mass, scaffold NLL, and whether a free answer
    parses: two prompts, one after the other."""
    ends, both, said = answers(twin.chat.to_ids, think > 0), [], []
    digits, scaffold = [x[-1] for x in ends], ends[0][:-1]
    for reverse in (False, True):
        prompt = twin.chat.render(question(vignette, reverse, think > 0))
        if think:
            prompt = prompt + generate(twin, [prompt], think, 0.0, stops=False)[0]
        logps = logp(twin, prompt, ends[0])
        nll = -torch.stack([logps[i, x] for i, x in enumerate(scaffold)]).mean().item()
        both.append((logps[-1, digits], nll))
        said.append(twin.chat.to_text(generate(twin, [prompt], JSON_TOKENS, 0.0)[0]))
    mean = (both[0][0] + both[1][0].flip(0)) / 2
    return {f"p_{f}": x for f, x in zip(FOUNDATIONS, mean.softmax(-1).tolist(), strict=True)} | {
        "p_ans_any": sum(x.exp().sum().item() for x, _ in both) / 2,
        "scaffold_nll": sum(nll for _, nll in both) / 2,
        "json_is_valid": sum(map(parses, said)) / 2}


def loss(
    z: Tensor, z_ref: Tensor | None, targets: Tensor, rows: Tensor, barrier: Barrier, n_total: int,
    b_total: int,
) -> Tensor:
    """L over logits (n, v) of all positions, in fp32; those with row −1 do not count."""
    logp, keep = z.float().log_softmax(-1), rows >= 0
    nll = -logp.gather(-1, targets[:, None])[:, 0]
    total = (nll * keep).sum() / n_total
    if z_ref is not None:
        logq = z_ref.float().log_softmax(-1)
        a, b = (logq, logp) if barrier.kind == "kl_fwd" else (logp, logq)
        kls = (a.exp() * (a - b)).sum(-1)
        for i in rows[keep].unique():
            hinge = (barrier.aggregate(kls[rows == i]) - barrier.tau).relu()
            total = total + barrier.lam / b_total * hinge
    return total


def adapted(twin: Twin, names: list[str]) -> nn.Module:
    """The model with a fresh LoRA of PEFT on these layers, fp32 factors. Raises UserError."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as e:
        raise UserError("the twin of heal is PEFT, which is not here: pip install peft") from e
    return get_peft_model(twin.hf, LoraConfig(r=twin.cfg.r, lora_alpha=twin.cfg.alpha,
                                              target_modules=names, lora_dropout=0.0))


def step_loss(
    student: Any, twin: Twin, rows: list[tuple[list[int], list[int]]], barrier: Barrier, size: int
) -> float:
    """Gradient of L on the adapter, `size` rows at a time; the reference is run again each time."""
    n_total, total = sum(len(c) for _, c in rows), 0.0
    for i in range(0, len(rows), size):
        part = rows[i : i + size]
        width = max(len(p) + len(c) for p, c in part)
        ids = twin.ids(*(p + c + [0] * (width - len(p) - len(c)) for p, c in part))
        mask = twin.ids(*([1] * len(p + c) + [0] * (width - len(p + c)) for p, c in part))
        owner = twin.ids(*([-1] * (len(p) - 1) + [j] * len(c) + [-1] * (width - len(p + c))
                           for j, (p, c) in enumerate(part)))
        z = student(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        with torch.no_grad(), student.disable_adapter():
            z_ref = student(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        value = loss(z.flatten(0, 1), z_ref.flatten(0, 1), ids[:, 1:].flatten(), owner.flatten(),
                     barrier, n_total, len(rows))
        value.backward()
        total += value.item()
    return total
