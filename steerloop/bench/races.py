"""Ours against its straightforward twin, stage by stage: same weights, same process, in turn.

Every race returns what it did, a row of figures for each runner, and how close ours came to the
machine: the share of a measured matrix-product peak, or of the measured memory bandwidth where
reading the weights is what binds (decoding). Both count the work that cannot be avoided, so they
are lower bounds: for products those of the linear layers and the head, for bandwidth one reading of
the weights as they are held and of the keys and values per step.

The student is fresh, so the twins of all stages but `heal` run the bare base, without any adapter.

Letters: n positions, d width, v vocabulary.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random

import polars as pl
import torch
from torch import Tensor

from steerloop import lora
from steerloop.barrier import Barrier, Step, heal_loss
from steerloop.bench import twins
from steerloop.bench.measure import Runner, against, matmul_peak, race
from steerloop.bench.shapes import SHAPES
from steerloop.bench.work import (
    Figures,
    Size,
    ours_of,
    product_share,
    products,
    reading,
    texts,
    vector,
)
from steerloop.config import Config
from steerloop.dose import dose as solve
from steerloop.heal import step_loss
from steerloop.healing.optimiser import checkpointed, training
from steerloop.kernels.batch import Row
from steerloop.kernels.head import Head
from steerloop.loading.layers import band
from steerloop.model import Model, load
from steerloop.readouts.forced_choice import JSON_TOKENS, answers, choices
from steerloop.sample import sample
from steerloop.steer import extract
from steerloop.texts.data import lines, names, read, read_data, vignettes
from steerloop.texts.questions import question

OURS, ONE, SAME = "ours", "generate, one at a time", "generate, same batch"
TARGET = 0.02  # nats: random weights say little, so a KL of 1 nat is out of their reach


def loss(shape: str, device: torch.device, dtype: torch.dtype, size: Size) -> Figures:
    """heal_loss with its gradient on `rows` completions of `tokens` tokens, no model around it. The
    twin multiplies in `dtype` or in fp32, whichever the device is faster at."""
    n, v, d = size.rows * size.tokens, SHAPES[shape]["vocab_size"], SHAPES[shape]["hidden_size"]
    torch.manual_seed(0)
    head = Head((torch.randn(v, d) * d**-0.5).to(device, dtype))
    h, h_ref = torch.randn((2, n, d)).to(device, dtype)
    h.requires_grad_()
    rows = torch.arange(size.rows, device=device).repeat_interleave(size.tokens)
    targets = torch.randint(v, (n,), device=device)
    barrier = Barrier("kl_rev", "rmse", 0.3, 0.0)
    work = max(dtype, torch.float32, key=lambda x: matmul_peak(x, device))

    def ours() -> None:
        h.grad = None
        heal_loss(h, h_ref, targets, rows, head, Step(barrier, n, size.rows))[0].backward()

    def twin() -> None:
        h.grad = None
        weight = head.weight.to(work)
        z = torch.nn.functional.linear(h.to(work), weight)
        with torch.no_grad():
            z_ref = torch.nn.functional.linear(h_ref.to(work), weight)
        twins.loss(z, z_ref, targets, rows, barrier, n, size.rows).backward()

    figures = race({"ours": Runner(ours, n), "dense": Runner(twin, n, twin=True)}, size.repeats,
                   device.type == "cuda")
    rate = 3 * 2 * n * v * d / figures["ours"]["seconds"]
    return {"positions": n, "v": v, "d": d, "unit": "position", "twin_dtype": str(work),
            "runners": against(figures), "limit": product_share(rate, head.weight)}


def heal(model: Model, cfg: Config, size: Size) -> Figures:
    """One optimiser step on completions of about `tokens` tokens.

    Ours reads the reference's hidden states once a round and uses them in every epoch, so a step
    carries 1 / cfg.epochs of that reading; the twin runs its reference in every step.
    """
    rng, count = Random(0), cfg.step_rows
    ends = [x[: round(size.tokens * rng.uniform(0.8, 1.0))] for x in texts(count, size.tokens, 1)]
    prompts, barrier = texts(count, size.prompt), Barrier("kl_rev", cfg.agg, cfg.lam, 0.0)
    lora.open_round(model.layers, model.gates, 0)
    live = [p for x in model.layers.values() for p in (x.live_A, x.live_B)]
    twin = twins.load(cfg, model)
    student = twins.adapted(twin, list(model.layers))
    factors = [p for p in student.parameters() if p.requires_grad]
    optimisers = [torch.optim.AdamW(x, cfg.lr, tuple(cfg.betas)) for x in (live, factors)]

    @torch.no_grad()
    def reference() -> list[Tensor]:
        with model.gates(model.gates.before(0)):
            return [x for at in range(0, count, cfg.batch_rows)
                    for batch in [model.batch(prompts[at : at + cfg.batch_rows],
                                              ends[at : at + cfg.batch_rows])]
                    for x in batch.split(model.hidden(batch))]

    rows = [Row(*x) for x in zip(prompts, ends, reference(), range(count), strict=True)]

    def update(which: int, parameters: list[Tensor]) -> None:
        torch.nn.utils.clip_grad_norm_(parameters, cfg.clip)
        optimisers[which].step()
        optimisers[which].zero_grad()

    def ours(order: Callable = training) -> None:
        with model.dense.unpacked(), order(model.hf, False):  # once a heal in a run: here it counts
            step_loss(model, rows, barrier, cfg.batch)
        update(0, live)

    def plain() -> None:
        twins.step_loss(student, twin, list(zip(prompts, ends, strict=True)), barrier, cfg.batch)
        update(1, factors)

    figures = race({"step alone": ours_of(model, ours), "reference": ours_of(model, reference),
                    "sums in any order": ours_of(model, partial(ours, checkpointed)),
                    "PEFT, dense loss": Runner(plain, twin=True)}, size.repeats,
                   model.device.type == "cuda")
    step, once = figures.pop("step alone"), figures.pop("reference")
    seconds, cpu = (step[k] + once[k] / cfg.epochs for k in ("seconds", "cpu_seconds"))
    figures = {"ours": step | {
        "seconds": seconds, "cpu_seconds": cpu, "units_per_second": 1 / seconds,
        "peak_mb": max(step["peak_mb"], once["peak_mb"]), "step_alone_seconds": step["seconds"],
        "reference_seconds": once["seconds"]}} | figures
    n, depth = sum(map(len, ends)), len(model.decoder.layers)
    tokens = n + count * size.prompt
    lowest = min(int(name.split("layers.")[1].split(".")[0]) for name in model.layers)
    passes = 1 + 1 / cfg.epochs + (depth - lowest) / depth  # student, its share of refs, backward
    return {"completions": count, "tokens": tokens, "completion_tokens": n, "unit": "step",
            "runners": against(figures),
            "limit": products(model, figures, tokens, list(range(depth)), 3 * n, passes)}


def sampling(model: Model, cfg: Config, size: Size) -> Figures:
    """`rows` steered completions, doses mixed: of exactly `tokens` tokens, or with a real model of
    that many at most, greedy answers to a run's prompts up to their end tokens."""
    v, prompts, heat = vector(model, cfg), texts(size.rows, size.prompt), 1.0
    if size.real:
        asked = [model.render(x) for x in read(names(cfg)["prompts"], lines)]
        prompts, heat = (asked * -(-size.rows // len(asked)))[: size.rows], 0.0
    doses = [cfg.multiples[i % len(cfg.multiples)] for i in range(size.rows)]
    table = pl.DataFrame({"prompt_ids": prompts, "dose": doses}).with_columns(
        prompt_id=pl.int_range(size.rows), multiple=pl.col("dose"), copy=0)
    twin, few, made = twins.load(cfg, model), size.twin_rows, {}
    whole = replace(cfg, batch_rows=size.rows, max_new_tokens=size.tokens, temperature=heat)

    def ours() -> None:
        said = sample(model, table, v, whole, "bench", stops=size.real)["completion_ids"]
        made[OURS] = said.list.len().to_list()

    def one() -> None:
        said = twins.sample(twin, prompts[:few], doses[:few], v, size.tokens, heat, size.real)
        made[ONE] = list(map(len, said))

    def batch() -> None:
        said = twins.sample_batch(twin, prompts, doses, v, size.tokens, heat, size.real)
        made[SAME] = list(map(len, said))

    figures = race({OURS: ours_of(model, ours, size.rows), ONE: Runner(one, few, twin=True),
                    SAME: Runner(batch, size.rows, twin=True)},
                   size.repeats, model.device.type == "cuda")
    for name, x in figures.items():
        x |= {"tokens": sum(made[name]), "tokens_per_second": sum(made[name]) / x["seconds"]}
    prompt, steps = sum(map(len, prompts)) / size.rows, max(made[OURS])
    return {"rows": size.rows, "tokens": size.tokens, "prompt": prompt, "unit": "row",
            "until_the_end_token": size.real, "runners": against(figures),
            "limit": reading(model, figures[OURS]["seconds"], steps, size.rows,
                             prompt + steps / 2)}


def evaluate(model: Model, cfg: Config, size: Size) -> Figures:
    """`rows` vignettes in both option orders, thought and free answer as a run has them."""
    asked = read(names(cfg)["vignettes"], vignettes)
    asked = pl.concat([asked] * -(-size.rows // len(asked))).head(size.rows)
    cfg, twin = replace(cfg, think_tokens=size.think), twins.load(cfg, model)

    def plain() -> None:
        for text in asked["text"].head(size.twin_rows):
            twins.choice(twin, text, size.think)

    figures = race({"ours": ours_of(model, lambda: choices(model, asked, cfg), size.rows),
                    "one at a time": Runner(plain, size.twin_rows, twin=True)},
                   size.repeats, model.device.type == "cuda")
    prompts = [model.render(question(x, reverse, size.think > 0))
               for x in asked["text"] for reverse in (False, True)]
    end = len(answers(model.to_ids, size.think > 0)[0])
    said = 2 * size.rows * (size.think + JSON_TOKENS)
    tokens, heads = sum(map(len, prompts)) + 2 * size.rows * end + said, 2 * size.rows * end + said
    blocks, prompt = list(range(len(model.decoder.layers))), sum(map(len, prompts)) / len(prompts)
    steps, seconds = size.think + JSON_TOKENS, figures["ours"]["seconds"]
    shares = products(model, figures, tokens, blocks, heads) | reading(
        model, seconds, steps, 2 * size.rows, prompt + steps / 2)
    bound = max(shares["share_of_matmul_peak"], shares["share_of_bandwidth"])
    return {"vignettes": size.rows, "think": size.think, "unit": "vignette", "prompt": prompt,
            "floor_seconds": seconds * bound, "runners": against(figures), "limit": shares}


def dose(model: Model, cfg: Config, size: Size) -> Figures:
    """c* to the same tolerance, on `rows` prompts; the twin on `twin_rows` of them."""
    random = cfg.model != "embedded" and not size.real
    cfg = replace(cfg, dose_prompts=size.rows, dose_tokens=size.tokens,
                  n_prompts=max(size.rows, cfg.n_prompts),
                  target_kl=TARGET if random else cfg.target_kl)
    data, twin, solved = read_data(cfg), twins.load(cfg, model), {}
    v = vector(model, cfg) if random else extract(model, data, cfg)
    prompts = [model.render(x) for x in data.prompts[: size.rows]]

    def ours() -> None:
        solved["ours"], solved["curve"] = solve(model, v, data, cfg, "bench")

    def plain() -> None:
        solved["twin"] = twins.solve(twin, prompts[: size.twin_rows], v)

    figures = race({"ours": ours_of(model, ours, len(prompts)),
                    "bisection, one at a time": Runner(plain, size.twin_rows, twin=True)},
                   size.repeats, model.device.type == "cuda")
    doses, seconds = len(solved["curve"]), figures["ours"]["seconds"]
    rows = doses * len(prompts) / 2  # two calls: the grid, and the steps inside its bracket
    steps = size.tokens * -(-rows // cfg.batch_rows) * 2
    share = reading(model, seconds, steps, int(min(rows, cfg.batch_rows)), size.tokens / 2)
    return {"prompts": len(prompts), "tokens": size.tokens, "target_kl": cfg.target_kl,
            "c_star": solved["ours"], "c_star_twin": solved["twin"], "doses": doses,
            "unit": "prompt", "runners": against(figures), "limit": share}


def extraction(model: Model, cfg: Config, size: Size) -> Figures:
    """The vector of the band from `rows` pairs."""
    data = read_data(cfg)
    pairs, contexts = data.pairs, read(names(cfg)["contexts"], lines)
    contexts = (contexts * -(-size.rows // len(contexts)))[: size.rows]
    data = replace(data, contexts=contexts)
    blocks = band(cfg.steer_blocks, cfg.steer_band, len(model.decoder.layers), "steer")
    poles = [[model.render(x, pairs[i % len(pairs)][pole]) for i, x in enumerate(contexts)]
             for pole in (0, 1)]
    twin, few = twins.load(cfg, model), size.twin_rows
    figures = race({
        "ours": ours_of(model, lambda: extract(model, data, cfg), size.rows),
        "all states and logits": Runner(
            lambda: twins.extract(twin, *(x[:few] for x in poles), blocks), few, twin=True),
    }, size.repeats, model.device.type == "cuda")
    tokens = sum(len(x) for pole in poles for x in pole)
    return {"pairs": size.rows, "tokens": tokens, "unit": "pair", "runners": against(figures),
            "limit": products(model, figures, tokens, list(range(max(blocks) + 1)), 0)}


MODELS: dict[str, Callable[[Model, Config, Size], Figures]] = {
    "heal": heal, "sample": sampling, "evaluate": evaluate, "dose": dose, "extract": extraction}


def run(what: str, cfg: Config, size: Size) -> Figures:
    """One race with the model of a config."""
    return MODELS[what](load(cfg), cfg, size)
