"""The student that is measured is the student that was trained, in bfloat16, too.

The model here is made so that rounding eats: its weights lie between two powers of two, and no
weight is changed by as much as half a step of bfloat16's grid there. What is changed adds up over
the width of a state, so the student is far from its base; merged into the weights it would be gone.
"""

import json
from itertools import product
from pathlib import Path
from random import Random

import polars as pl
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from steerloop import lora
from steerloop.checks.small import Small, data_files, save_small, small_config
from steerloop.kernels.dense import joined
from steerloop.lora import GatedLoRALinear, Gates
from steerloop.readouts.forced_choice import answers, choices
from steerloop.readouts.mundane import mundane
from steerloop.sample import completion_losses, jobs, sample
from steerloop.serve.batch import Flight, Seat
from steerloop.texts.data import Data, read_data
from steerloop.texts.foundations import FOUNDATIONS
from steerloop.texts.questions import SCAFFOLD, question

STEP = 2.0**-9  # between neighbours of bfloat16 in [1/4, 1/2)
TEXTS = [f"He {does} in the {place}." for does, place in product(
    ("lies", "steals", "obeys", "prays"), ("yard", "mill", "port", "barn", "hall", "wood"))]
Roads = dict[str, Tensor]


def coarse(folder: Path) -> Path:
    """A small model whose wrapped weights are all of the size 1/4 to 1/2, exact in bfloat16."""
    file = save_small(folder, softcap=30.0, depth=3, width=256) / "model.safetensors"
    weights = load_file(file)
    for name, x in weights.items():
        if "proj" in name:
            x.copy_(x.sign() * (0.25 + 0.25 * x.abs().clamp(max=0.99)))
        weights[name] = x.bfloat16()
    save_file(weights, file, {"format": "pt"})
    return folder


def fields(folder: Path) -> dict[str, object]:
    """Settings, and data files of enough texts."""
    files = data_files(folder)
    rows = [{"text": x, "foundation_coarse": f}
            for x, f in zip(TEXTS, FOUNDATIONS * 4, strict=False)]
    Path(files["vignettes"]).write_text("".join(json.dumps(x) + "\n" for x in rows))
    rows = [{"prompt": question(x, False, False), "text": f"{SCAFFOLD}1"} for x in TEXTS]
    Path(files["mundane"]).write_text("".join(json.dumps(x) + "\n" for x in rows))
    return files | {"quant": "none", "rounds": 2, "max_new_tokens": 1, "batch_rows": 48,
                    "lora_blocks": [1, 2], "steer_blocks": [1]}


def trained(s: Small) -> dict[str, Tensor]:
    """Δ after four steps that raise care and lower authority along the layers' mean inputs."""
    model, layers = s.model, s.model.layers.values()
    lora.open_round(s.model.layers, model.gates, 0)
    ends = answers(model.to_ids, False)
    ids, mask = model.pad([model.render(question(x, reverse, False)) + ends[0][:-1]
                           for x in TEXTS[::4] for reverse in (False, True)])

    def towards_the_mean(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        layer.live_A.copy_(inputs[0][mask].mean(0).sign().expand_as(layer.live_A) / layer.r)

    hooks = [x.register_forward_pre_hook(towards_the_mean) for x in layers]
    with torch.no_grad():
        model.trunk(ids, mask)
    for hook in hooks:
        hook.remove()
    optimiser = torch.optim.AdamW([x.live_B for x in layers], 1.2e-4, weight_decay=0)
    for _ in range(4):
        logp = model.head(model.trunk(ids, mask)[:, -1]).log_softmax(-1)[:, [x[-1] for x in ends]]
        care, authority = (logp[::2] + logp[1::2].flip(-1))[:, :2].unbind(1)
        (authority - care).mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    for layer in layers:
        assert 0 < (layer.scale * layer.live_B @ layer.live_A).abs().max() < STEP / 2
    return lora.live_delta(s.model.layers)


def first_logits(s: Small) -> Tensor:
    """Those that `sample` draws the first tokens from."""
    head, vector, seen = s.model.head, s.vector(), []

    def seeing(h: Tensor) -> Tensor:
        seen.append(head(h))
        return seen[-1]

    s.model.head = seeing
    sample(s.model, jobs(s.model, TEXTS, [0.0]), vector, s.cfg, "0|test")
    s.model.head = head
    return torch.cat(seen)


def served(s: Small, heard: Tensor, beside: Tensor) -> Tensor:
    """Logits that a server draws first tokens from, of rows that share a batch with others."""
    seats = [Seat(s.model.render(x), gates, 0.0, torch.zeros(1), 0.0, 1, 1.0)
             for x in TEXTS for gates in (heard, beside)]
    _, h = Flight(s.model, {}).prompts(seats)
    return s.model.head(h)[::2]


@torch.no_grad()
def roads(s: Small, data: Data, heard: Tensor) -> Roads:
    """What each of them reads of the model under these gates, nats."""
    model, cfg = s.model, s.cfg
    zero, base = {1: torch.zeros(model.head.weight.shape[1])}, model.gates.before(0)
    table = jobs(model, data.mundane["prompt"].to_list(), [0.0]).with_columns(
        completion_ids=pl.Series([model.to_ids(x) for x in data.mundane["text"]]))
    [batch] = model.batches(table, cfg.batch_rows)
    with model.gates(heard):
        rows = choices(model, data.vignettes, cfg, free=False)
        return {
            "training": model.head(model.hidden(batch)).log_softmax(-1),
            "evaluate, score, verify": rows.select(f"p_{x}" for x in FOUNDATIONS).to_torch().log(),
            "ordinary text": torch.tensor(mundane(model, data, cfg)),
            "sample": first_logits(s).log_softmax(-1),
            "serve": served(s, heard, heard).log_softmax(-1),
            "serve, beside others": served(s, heard, 1 - heard).log_softmax(-1),
            "dose": torch.cat(completion_losses(model, table, cfg, zero)[0]),
            "drift": torch.cat(completion_losses(model, table, cfg, ref=base)[0]),
        }


def share(found: Tensor, wanted: Tensor) -> float:
    """How much of a move is there: 1 is all of it."""
    return (found @ wanted / (wanted @ wanted)).item()


def axis(moves: Roads) -> tuple[float, float]:
    """Mean move of care against authority in the forced choice, nats, and half of its 95 %
    interval."""
    care, authority = moves["evaluate, score, verify"][:, :2].unbind(1)
    return (care - authority).mean().item(), 1.96 * (care - authority).std().item() / len(care)**0.5


def check_every_road_hears_the_whole_student(tmp_path):
    """By how much it moves what each road reads, of how much it does so in fp32."""
    files, model = fields(tmp_path), coarse(tmp_path / "model")

    def load(dtype: str, decode: str = "auto") -> Small:
        return Small(small_config(model, dtype=dtype, decode=decode, **files))

    first = load("float32")
    data, delta = read_data(first.cfg), trained(first)

    def moved(s: Small) -> Roads:
        lora.fold(s.model.layers, s.model.gates, delta)
        student, base = (roads(s, data, s.model.gates.before(k)) for k in (1, 0))
        return {name: (student[name] - base[name]).double() for name in student}

    wanted = moved(load("float32"))
    exact, near = axis(wanted)
    for decode in ("auto", "nf4"):
        found = moved(load("bfloat16", decode))
        for name, x in wanted.items():
            heard = share(found[name].flatten(), x.flatten())
            assert 0.85 < heard < 1.15, f"{name}, {decode}: {heard:.2f} of the student"
        shift, half = axis(found)
        assert abs(shift - exact) < near + half + 0.05 * exact < exact


def any_layer(rng: Random, dtype: torch.dtype) -> GatedLoRALinear:
    """Rounds that are folded, live or to come, under gates of any kind, with a bias or without."""
    rounds, r, d_in, d_out = (rng.randint(1, x) for x in (3, 3, 9, 9))
    base = nn.Linear(d_in, d_out, bias=rng.random() < 0.5, dtype=dtype)
    layer = GatedLoRALinear(base, gates := Gates(rounds), r, rng.choice([1.0, 3.0, 8.0]))
    gates.live = rng.randint(0, rounds)
    for x in (layer.baked_A, layer.live_A, layer.live_B):
        x.normal_()
    layer.baked_B[:, : gates.live * r].normal_()
    heard = torch.tensor([rng.choice([0, 1, -0.25]) for _ in range(rounds)])
    gates.value = rng.choice([None, heard])
    return layer


@torch.no_grad()
def check_a_dense_layer_sums_before_it_rounds():
    """The result is the exact one, rounded once, but for how x Aᵀ and s B are rounded."""
    rng = Random(0)
    torch.manual_seed(0)
    for _ in range(2500):  # a fifth of them does not tell a stack that was added too early
        dtype = rng.choice([torch.bfloat16, torch.float32])
        layer, unit = any_layer(rng, dtype), torch.finfo(dtype).eps / 2
        x = torch.randn(2, 1, layer.base.in_features).to(dtype)
        A, B, bias, W, wide = (y.double() for y in (
            *layer.factors(), layer.base(0 * x), layer.base.weight, x))
        gates = layer.gates
        heard = torch.ones(gates.rounds) if gates.value is None else gates.value
        B = layer.scale * B * heard.double().repeat_interleave(layer.r)
        exact = wide @ W.T + bias + wide @ A.T @ B.T
        most = wide.abs() @ (W.abs().T + A.abs().T @ B.abs().T)
        near = unit * exact.abs() + 2.1 * unit * (wide @ A.T).abs() @ B.abs().T + 1e-6 * (most + 1)
        assert ((joined(layer)(x).double() - exact).abs() <= near).all()
        near += 2.1 * unit * ((wide @ A.T @ B.T).abs() + bias.abs())  # the stack's own product
        assert dtype == torch.float32 or ((layer(x).double() - exact).abs() <= near).all()
