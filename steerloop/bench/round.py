"""Where the time of a default round of the embedded model goes, and how long the same round takes
when it is composed of the straightforward twins; or ours alone, on random weights of a shape.

Ours is the loop itself under a recorder with a clock, cut off after one round. The twin
does one row at a time, so its stages are timed on a few rows and scaled to the rows that our round
had: the figures say how many of how many.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial, wraps
from typing import Any, NamedTuple

import polars as pl
import torch
from torch.profiler import ProfilerActivity, profile

from steerloop import report
from steerloop.barrier import Barrier
from steerloop.baselines import rivals
from steerloop.bench import twins
from steerloop.bench.races import TARGET
from steerloop.cli.parsing import preset
from steerloop.config import Config, parse
from steerloop.evidence.journal import Journal
from steerloop.heal import heal
from steerloop.healing.threshold import threshold
from steerloop.model import Model, load
from steerloop.sample import jobs, sample
from steerloop.texts.data import Data, read_data
from steerloop.tinyworld import oracle
from steerloop.tinyworld.files import DATA, read_dilemmas
from steerloop.tinyworld.probes import REPEATS
from steerloop.train import loop

STAGES = ("extract", "dose", "sample", "filter", "evaluate", "heal")
PAGES = "pages"
HEAL_STEPS = 3  # of the twin, after one to warm up
TOP = 8  # operations listed
SMOKE = {k: x for k, x in preset("tiny").items() if k not in ("rounds", "n_keep")} | {
    "u0": False, "every": 28}


class Moment(NamedTuple):
    """Seconds of the clock and of CPU time."""

    seconds: float
    cpu_seconds: float

    def until(self, end: "Moment", times: float = 1.0) -> dict[str, float]:
        """What went by between two moments, scaled."""
        return {k: times * (getattr(end, k) - getattr(self, k)) for k in self._fields}


def now(cuda: bool) -> Moment:
    """This moment, all work on the device done."""
    if cuda:
        torch.cuda.synchronize()
    return Moment(time.perf_counter(), time.process_time())


class Call(NamedTuple):
    """One call that the clock saw."""

    name: str
    start: Moment
    end: Moment
    result: Any


class Clocked(Journal):
    """A run's recorder that also notes every call of a stage, and when a round is over."""

    def __init__(self, model: Model, data: Data, cfg: Config) -> None:
        super().__init__(model, data, cfg)
        self.cuda, self.calls = model.device.type == "cuda", list[Call]()

    def timed(self, name: str, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What `f` returns, its call noted under a name."""
        start, result = now(self.cuda), f(*args, **kwargs)
        self.calls.append(Call(name, start, now(self.cuda), result))
        return result

    def call(self, stage: Callable[..., Any], *args: Any) -> Any:
        if stage.__name__ == "evaluate":  # timed as `measure`, as is the steered one
            return super().call(stage, *args)
        return super().call(wraps(stage)(partial(self.timed, stage.__name__, stage)), *args)

    def measure(self, *args: Any, **kwargs: Any) -> list[pl.DataFrame]:
        return self.timed("evaluate", super().measure, *args, **kwargs)

    def on_evaluate(self, *args: Any) -> Any:
        frames = super().on_evaluate(*args)
        self.timed(PAGES, lambda: None)
        return frames


def first_round(calls: list[Call]) -> list[Call]:
    """From extraction to the table of the first round."""
    names = [x.name for x in calls]
    start = names.index("extract")
    return calls[start : names.index(PAGES, start) + 1]


def named(calls: list[Call]) -> dict[str, Any]:
    """Stage → what it returned."""
    return {x.name: x.result for x in calls}


def shares(calls: list[Call]) -> dict[str, Any]:
    """What the round took, and each stage of it; `rest` is folding, the drift, and writing what was
    made."""
    whole = calls[0].start.until(calls[-1].end)
    spent = {name: [x.start.until(x.end) for x in calls if x.name == name] for name in STAGES}
    stages = {name: {k: sum(x[k] for x in times) for k in whole} for name, times in spent.items()}
    stages["rest"] = {k: x - sum(y[k] for y in stages.values()) for k, x in whole.items()}
    return whole | {"stages": {name: x | {"share": x["seconds"] / whole["seconds"]}
                               for name, x in stages.items()}}


def top_operations(work: Callable[[], Any], cuda: bool) -> dict[str, Any]:
    """The operations of the library with the most self time while `work` runs, as a share of
    the self time of all; `seconds` is the wall time of the same work without the profiler."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    start = time.perf_counter()
    work()
    wall = time.perf_counter() - start
    with profile(activities=activities) as profiled:
        work()
    kind = "self_device_time_total" if cuda else "self_cpu_time_total"
    rows = sorted(profiled.key_averages(), key=lambda x: -getattr(x, kind))
    total = sum(getattr(x, kind) for x in rows) / 1e6
    listed = {x.key: {"share_of_operations": getattr(x, kind) / 1e6 / total, "calls": x.count}
              for x in rows[:TOP]}
    return {"seconds": wall, "seconds_in_operations_profiled": total, "operations": listed}


class Scaled:
    """Clocks work on a few rows and scales it to all of them."""

    def __init__(self, few: int, cuda: bool) -> None:
        self.few, self.cuda, self.stages = few, cuda, {}

    def __call__(self, name: str, rows: list[Any], total: int, work: Callable[[list], Any]
                 ) -> None:
        """`work` does the rows it is given; the stage has `total` of them."""
        part = rows[: self.few]
        work(part[:1])
        start, _, end = now(self.cuda), work(part), now(self.cuda)
        self.stages[name] = start.until(end, total / len(part)) | {
            "measured_rows": len(part), "rows": total}


def twin_round(model: Model, data: Data, cfg: Config, calls: list[Call], few: int) -> dict:
    """Seconds of each stage of the round that ours had, by the twins, scaled from `few` rows."""
    result = named(calls)
    vector, (c_star, curve), (table, kappa) = (result[x] for x in ("extract", "dose", "choose"))
    twin, clock = twins.load(cfg, model), Scaled(few, model.device.type == "cuda")
    kept, blocks, dose = table.filter("train"), list(vector), kappa * c_star
    contexts = list(enumerate(data.contexts))
    n = len(contexts)

    def vectors(part: list) -> None:
        poles = [[model.render(x, data.pairs[i % len(data.pairs)][pole]) for i, x in part]
                 for pole in (0, 1)]
        twins.extract(twin, *poles, blocks)

    def moved(part: list) -> None:
        twins.mean_states(twin, [model.render(x) for _, x in part], blocks)

    def completions(part: list) -> None:
        twins.sample(twin, [x for x, _, _ in part], [x for _, _, x in part], vector,
                     cfg.max_new_tokens, cfg.temperature)

    def perplexities(part: list) -> None:
        for prompt, completion, *_ in part:
            twins.score(twin, prompt, completion)

    prompts = [model.render(x) for x in data.prompts[: cfg.dose_prompts]]
    clock("extract", contexts, n, vectors)
    clock("dose", prompts, len(prompts), lambda part: twins.solve(twin, part, vector))
    rows = table.select("prompt_ids", "completion_ids", "dose").sample(
        min(4 * few, len(table)), seed=0).rows()
    clock("sample", rows, len(table), completions)
    clock("filter", rows, len(table), perplexities)
    clock("drift: KL", rows, 2 * len(kept), perplexities)
    clock("drift: states", contexts, 2 * n, moved)
    with twins.steered(twin, vector, dose):
        evaluation(clock, twin, model, data, cfg, "steered")
    evaluation(clock, twin, model, data, cfg, "healed")
    clock.stages["heal"] = healing(twin, model, kept, cfg, result["heal"][0]["steps"])
    return {"c_star": c_star, "doses_of_ours": len(curve), "stages": clock.stages}


def evaluation(
    clock: Scaled, twin: twins.Twin, model: Model, data: Data, cfg: Config, state: str
) -> None:
    """What `evaluate` measures with the probes of the embedded model, one row at a time."""
    asked = data.vignettes["text"].to_list()
    plain = [(model.render(p), model.to_ids(t))
             for p, t in data.mundane.select("prompt", "text").rows()]
    dilemmas = read_dilemmas(DATA, cfg.split)[: cfg.n_prompts]
    openings = [(model.render(x), model.to_ids(t)) for x in dilemmas for t in oracle.openings(x)]

    def choose(part: list) -> None:
        for text in part:
            twins.choice(twin, text, cfg.think_tokens)

    def read(part: list) -> None:
        for prompt, text in part:
            twins.score(twin, prompt, text)

    def answer(part: list) -> None:
        for prompt in part:
            twins.generate(twin, [model.render(prompt)], cfg.max_new_tokens, cfg.temperature)

    clock(f"evaluate {state}: choices", asked, len(asked), choose)
    clock(f"evaluate {state}: mundane text", plain, len(plain), read)
    clock(f"evaluate {state}: openings", openings, len(openings), read)
    clock(f"evaluate {state}: answers", dilemmas, REPEATS * len(dilemmas), answer)


def healing(
    twin: twins.Twin, model: Model, kept: pl.DataFrame, cfg: Config, steps: int
) -> dict[str, float | int]:
    """Seconds of `steps` optimiser steps of PEFT, scaled from HEAL_STEPS."""
    student, size = twins.adapted(twin, list(model.layers)), cfg.step_rows
    live = [p for p in student.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(live, cfg.lr, tuple(cfg.betas))
    rows = kept.select("prompt_ids", "completion_ids").rows()
    barrier = Barrier(cfg.barrier, cfg.agg, cfg.lam, threshold(cfg))

    def step(i: int) -> None:
        at = i * size % max(1, len(rows) - size)
        with torch.enable_grad():
            twins.step_loss(student, twin, rows[at : at + size], barrier, cfg.batch)
        torch.nn.utils.clip_grad_norm_(live, cfg.clip)
        optimiser.step()
        optimiser.zero_grad()

    step(0)
    start = now(cuda := model.device.type == "cuda")
    for i in range(HEAL_STEPS):
        step(i + 1)
    return start.until(now(cuda), steps / HEAL_STEPS) | {
        "measured_rows": HEAL_STEPS, "rows": steps}


def inside(model: Model, data: Data, cfg: Config, calls: list[Call]) -> dict[str, Any]:
    """Top operations of one sampled batch, and of one epoch of healing."""
    result, cuda = named(calls), model.device.type == "cuda"
    c_star, (table, kappa) = result["dose"][0], result["choose"]
    doses = [kappa * a * c_star for a in cfg.multiples]
    rows = jobs(model, data.prompts, doses).head(cfg.batch_rows)
    few = table.filter("train").head(4 * cfg.step_rows)
    return {
        "sampling": top_operations(
            lambda: sample(model, rows, result["extract"], cfg, "bench"), cuda),
        "healing": top_operations(lambda: heal(model, few, cfg, 0), cuda)}


def ours(cfg: Config) -> tuple[list[Call], dict[str, float]]:
    """The calls of the first round of a run, and the seconds of the whole run and of loading."""
    with tempfile.TemporaryDirectory() as runs:
        begin = now(cuda := cfg.device == "cuda")
        cfg = replace(cfg, runs=runs)
        data, model = read_data(cfg), load(cfg)
        loaded = begin.until(now(cuda))["seconds"]
        run = Clocked(model, data, cfg)
        loop(model, data, cfg, run)
        rivals(run, loop)
        report.finish(run.path)
        whole = begin.until(now(cuda))["seconds"]
        return first_round(run.calls), {"run_of_one_round_seconds": whole,
                                        "loading_seconds": loaded}


def alone(cfg: Config, rows: int, tokens: int, think: int) -> dict[str, Any]:
    """Stages of ours on random weights: `rows` completions of `tokens` tokens are kept, whatever
    they say. The rest is what a hub model has."""
    cfg = replace(cfg, rounds=1, n_keep=rows, max_new_tokens=tokens, think_tokens=think,
                  filter=False, dose_tokens=min(tokens, cfg.dose_tokens), target_kl=TARGET)
    calls, seconds = ours(cfg)
    spent, table = shares(calls), named(calls)["choose"][0]
    drawn = table["completion_ids"].list.len().sum()
    return {"prompts": cfg.n_prompts, "kept": rows, "tokens": tokens, "think": think,
            "epochs": cfg.epochs, **seconds, "rows_sampled": len(table), "tokens_sampled": drawn,
            "sampled_and_judged_tokens_per_second": drawn / sum(
                spent["stages"][x]["seconds"] for x in ("sample", "filter")),
            "ours": spent}


@torch.no_grad()
def run(device: str, few: int, *flags: str) -> dict[str, Any]:
    """Figures of one round: ours by stage, the twin by stage, and where sampling and healing of
    ours spend their time. `flags` change the run."""
    cfg = parse(["--device", device, "--rounds", "1", *flags])
    calls, run_seconds = ours(cfg)
    data, model = read_data(cfg), load(cfg)
    mine, twin = shares(calls), twin_round(model, data, cfg, calls, few)
    twin |= {k: sum(x[k] for x in twin["stages"].values()) for k in Moment._fields}
    return {
        "ours_times_faster": twin["seconds"] / mine["seconds"],
        "ours_times_less_cpu": twin["cpu_seconds"] / mine["cpu_seconds"],
        "note": "the twin is timed on measured_rows and scaled to rows, stage by stage; its base "
                "carries no adapter but while it heals",
        **run_seconds, "rows_sampled": len(named(calls)["choose"][0]),
        "ours": mine, "twin": twin, "inside": inside(model, data, cfg, calls)}
