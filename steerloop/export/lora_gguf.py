"""The gated stack as one LoRA that llama.cpp loads onto a GGUF file of the base.

    y = W x + alpha / r · lora_b (lora_a x)        alpha = r, so a scale of 1 is the student

The factors are those that PEFT gets, without padding. Rows of `lora_b` lie as those of the weight
that they are added to.
"""

from pathlib import Path

import gguf
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from steerloop import UserError
from steerloop.export.adapter import stack
from steerloop.export.llamacpp import close, family, laid, places
from steerloop.export.parity import Parity, against, consumer_base
from steerloop.export.student import Student

LORA = "adapter.gguf"  # in its folder
KIND, ALPHA = gguf.Keys.Adapter.TYPE, gguf.Keys.Adapter.LORA_ALPHA


def write_lora(student: Student, path: Path, rank: int = 0) -> tuple[int, float]:
    """Write the adapter (`rank` truncates by SVD, 0: exact); returns its rank, and the share of the
    delta's Frobenius norm that is lost. Raises UserError for a family that is not known."""
    config = student.model.hf.config
    pairs, lost = stack(student, rank)
    there = places(config, [f"{name}.weight" for name in pairs])
    writer = gguf.GGUFWriter(path, family(config))
    writer.add_type("adapter")
    writer.add_string(KIND, "lora")
    full = len(next(iter(pairs.values()))[0])
    writer.add_float32(ALPHA, float(full))
    for name, (A, B) in pairs.items():
        place = there[f"{name}.weight"]
        writer.add_tensor(f"{place.name}.lora_a", A.cpu().contiguous().numpy())
        writer.add_tensor(f"{place.name}.lora_b", laid(B, place).cpu().contiguous().numpy())
    close(writer)
    return full, lost


def load_lora(path: Path) -> dict[str, Float[Tensor, "d_out d_in"]]:
    """Read an adapter: tensor of the base → what it adds at scale 1, as the file lays it out.

    Raises UserError for a file of another kind."""
    reader = gguf.GGUFReader(path)
    fields = {k: x.contents() for k, x in reader.fields.items()}
    if (fields.get("general.type"), fields.get(KIND)) != ("adapter", "lora"):
        raise UserError(f"{path} is no LoRA")
    known = {x.name: torch.from_numpy(x.data.copy()) for x in reader.tensors}
    names = sorted(x.removesuffix(".lora_a") for x in known if x.endswith(".lora_a"))
    if len(known) != 2 * len(names):
        raise UserError(f"{path} has factors without their other half")
    deltas = {}
    for name in names:
        A, B = known[f"{name}.lora_a"], known[f"{name}.lora_b"]
        deltas[name] = fields[ALPHA] / len(A) * B @ A
    return deltas


@torch.no_grad()
def check_lora(student: Student, path: Path, tolerance: float) -> Parity:
    """What was read back, brought into the library's order and added to the base, against the
    student; `tolerance` in nats per token. Raises UserError for tensors without a place."""
    hf, deltas = consumer_base(student, type(student.model.hf)), load_lora(path)
    weights = dict(hf.named_parameters())
    there = places(hf.config, [k for k, x in weights.items() if x.ndim == 2])
    if lost := deltas.keys() - {x.name for x in there.values()}:
        raise UserError(f"{path} adds to {min(lost)}, which the base does not have")
    for name, place in there.items():
        if place.name in deltas:
            delta = deltas[place.name].to(weights[name].device)
            if place.heads:
                delta = rearrange(delta, "(h p two) i -> (h two p) i", h=place.heads, two=2)
            weights[name].add_(delta)
    return against(student, hf, tolerance)
