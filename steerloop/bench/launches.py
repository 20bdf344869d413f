"""What a decoding step and an optimiser step ask of a GPU to launch, counted without one: what is
dispatched (bench/dispatched.py), and the kernels that the compiler makes of compiled parts.

The compiler is asked on a CPU: there, as on a GPU, it decides which operations become one kernel
before it writes any. What it fuses on a GPU may differ by a few.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._inductor.compile_fx import compile_fx
from torch.optim import optimizer
from torch.utils import _foreach_utils

from steerloop.barrier import Barrier, divergence, slope
from steerloop.bench.dispatched import META, Dispatched, onto_meta
from steerloop.bench.work import Size, texts, vector
from steerloop.config import Config
from steerloop.heal import step_loss
from steerloop.healing.fresh import fresh
from steerloop.healing.optimiser import Scheduled
from steerloop.kernels import blocks as one
from steerloop.kernels import chunked, dense, graphs
from steerloop.kernels.batch import Row
from steerloop.kernels.decode import generate, greedy
from steerloop.model import Model, load
from steerloop.readouts.states import Vector
from steerloop.sample import in_flight
from steerloop.steer import steered

FREE = ("NopKernel", "MultiOutput")  # what the compiler keeps a node of, and launches nothing for
CUTS = {"first": 2, "now": 0}  # rows of a micro-batch: when it was first counted, and all of a step


class Made:
    """A compiler that counts: a call of what it compiled adds its kernels to `launched`."""

    def __init__(self) -> None:
        self.launched, self.last = 0, 0

    def fused(self, nodes: list[Any]) -> list[Any]:
        """Notes what is to become a kernel each."""
        kinds = [f"{type(x).__name__} {type(x.node).__name__}" for x in nodes]
        self.last = sum(not any(free in x for free in FREE) for x in kinds)
        return nodes

    def backend(self, graph: Any, inputs: list[Any]) -> Callable[..., Any]:
        """torch's own, at its defaults, nothing taken from its cache."""
        with torch._inductor.config.patch(_post_fusion_custom_pass=self.fused,
                                          fx_graph_cache=False):
            run, kernels = compile_fx(graph, inputs), self.last

        def counted(*args: Any) -> Any:
            self.launched += kernels
            return run(*args)

        return counted

    def compiled(self, f: Callable[..., Any], like: Tensor) -> Callable[..., Any]:
        """What stands in for hardware.compiled."""
        return torch.compile(f, backend=self.backend, dynamic=True)


class Attention(torch.autograd.Function):
    """Scaled dot product attention as a GPU does it: one kernel forward, two back. Without numbers
    torch takes the way of many steps."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return torch.empty_like(q)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, ...]:
        q, k, _ = ctx.saved_tensors
        both = torch.empty_like(k)
        return torch.empty_like(q), both, both


def attention(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
    """What stands in for the library's call."""
    return Attention.apply(q, k, v)


@contextmanager
def instead(place: Any, **names: Any) -> Iterator[None]:
    """Attributes of `place` are others until the block ends."""
    real = {name: getattr(place, name) for name in names}
    vars(place).update(names)
    try:
        yield
    finally:
        vars(place).update(real)


@contextmanager
def together() -> Iterator[None]:
    """While open, the optimiser takes all parameters at once, as torch does on a GPU."""
    def devices() -> list[str]:
        return ["cuda", META.type]

    name = "_get_foreach_kernels_supported_devices"
    with instead(_foreach_utils, **{name: devices}), instead(optimizer, **{name: devices}):
        yield


def recorded(model: Model, cfg: Config, size: Size, towards: Vector,
             seen: Callable[[Callable[[], Tensor]], None]) -> None:
    """`seen` gets the decoding step that a GPU would record."""
    table = pl.DataFrame({"prompt_ids": texts(size.rows, size.prompt)}).with_columns(
        prompt_id=pl.int_range(size.rows), dose=1.0, multiple=0, copy=0)
    rows = in_flight(model, table, replace(cfg, max_new_tokens=graphs.PAYS + 2), "bench")

    def repeatable(run: Callable[[], Tensor], device: torch.device) -> Any:
        seen(run)
        return lambda: None, run()

    towards = {b: v.to(model.device) for b, v in towards.items()}
    with (steered(model, towards, rows),
          instead(graphs, recordable=lambda _: True, repeatable=repeatable, LONG=1)):
        step = graphs.steps(model.trunk, model.head, rows)
        generate(step, rows, greedy, model.stop_ids, stops=False)


@torch.no_grad()
def decoding(model: Model, cfg: Config, size: Size) -> dict[str, int]:
    """Launches of a decoding step: as the library's blocks make them, and from one compiled block.
    Leaves the model without numbers."""
    made, inside, plain, towards, launched = Made(), [0], Dispatched(), vector(model, cfg), []

    def compiled(run: Callable[[], Tensor]) -> None:
        run()
        made.launched = 0
        run()
        launched.append(made.launched)

    def dispatched(run: Callable[[], Tensor]) -> None:
        with plain:
            run()

    def entered(*_: Any) -> None:
        inside[0] -= plain.ops

    def left(*_: Any) -> None:
        inside[0] += plain.ops

    with instead(dense, still=dense.plain), model.dense():  # blocked weights are a CPU's
        with instead(one, compiled=made.compiled):
            recorded(model, cfg, size, towards, compiled)
        onto_meta(model)
        for block in model.decoder.layers:
            block.register_forward_pre_hook(entered)
            block.register_forward_hook(left)
        with (instead(one, compiled=lambda f, like: f), Dispatched(),
              instead(F, scaled_dot_product_attention=attention)):
            recorded(model, cfg, size, towards, dispatched)
    return {"first": plain.ops, "now": plain.ops - inside[0] + launched[0]}


def loss_kernels() -> dict[str, int]:
    """Kernels of the two compiled parts of the loss, by name."""
    z, column, found = torch.randn(4, 999), torch.randn(4, 1), {}
    hit = torch.zeros(4, 1, dtype=torch.long)
    parts = {divergence: (z, z, False), slope: (z, z, (column,) * 3, (0.1, column), hit, False)}
    for f, args in parts.items():
        made = Made()
        made.compiled(f, z)(*args)
        found[f.__name__] = made.launched
    return found


def optimising(
    model: Model, live: list[nn.Parameter], cfg: Config, size: Size
) -> dict[str, int]:
    """Launches of an optimiser step, by how its rows are cut. The model has no numbers."""
    kernels, found, v = loss_kernels(), {}, model.head.weight.shape[1]
    optimiser = Scheduled(live, cfg, 10)
    ids = zip(texts(cfg.step_rows, size.prompt), texts(cfg.step_rows, size.tokens), strict=True)
    rows = [Row(prompt, done, torch.empty(len(done), v, dtype=model.head.weight.dtype, device=META),
                number) for number, (prompt, done) in enumerate(ids)]
    for name, cut in CUTS.items():
        for _ in range(2):  # the first makes the moments
            step = Dispatched()

            def compiled(f: Any, like: Tensor, step: Dispatched = step) -> Any:
                def run(*args: Any) -> Any:
                    before = step.ops
                    out = f(*args)
                    step.ops = before + kernels[f.__name__]
                    return out
                return run

            with (instead(chunked, compiled=compiled), torch.enable_grad(), step,
                  instead(F, scaled_dot_product_attention=attention), together()):
                step_loss(model, rows, Barrier(cfg.barrier, cfg.agg, 1.0, 0.2), cut or len(rows))
                optimiser.advance(1)
        found[name] = step.ops
    return found


def run(cfg: Config, size: Size) -> dict[str, Any]:
    """Both, in bfloat16 as on a GPU, and the linear layers, of which nothing can be fused away."""
    model = load(cfg := replace(cfg, dtype="bfloat16", quant="none", device="cpu"))
    layers = sum(isinstance(m, nn.Linear) for m in model.decoder.layers.modules())
    fresh(model.layers, model.gates, 0)
    decoded = decoding(model, cfg, size)
    onto_meta(model)  # its gated layers, which a dense phase had put aside
    live = [x for layer in model.layers.values() for x in (layer.live_A, layer.live_B)]
    return {"linear_layers": layers, "decoding_step": decoded,
            "optimiser_step": optimising(model, live, cfg, size)}
