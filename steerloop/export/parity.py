"""Is the artefact the student? Logits of both on the run's own completions, token by token.

Letters: t tokens, v vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from steerloop import UserError
from steerloop.export.student import Student
from steerloop.loading.hub import locate
from steerloop.loading.weights import load_weights
from steerloop.model import Model
from steerloop.runfolder import layout
from steerloop.runfolder.files import read_table

ROWS, LONGEST = 8, 192  # completions compared, tokens of each
TOLERANCE = {"float32": 1e-6, "bfloat16": 2e-3}  # mean KL per token, nats; the maximum: 20 times

Logits = Callable[[Int[Tensor, "1 t"]], Float[Tensor, "1 t v"]]


class Parity(NamedTuple):
    """KL(student ‖ artefact) per token in nats, and the largest difference of a logit."""

    mean_kl: float
    max_kl: float
    max_logit: float
    tokens: int
    tolerance: float

    def __str__(self) -> str:
        return (f"KL(student || export) per token: mean {self.mean_kl:.2e}, max {self.max_kl:.2e} "
                f"nats (tolerance: mean {self.tolerance:.0e}, max {20 * self.tolerance:.0e}); "
                f"largest logit difference {self.max_logit:.2e}, over {self.tokens} tokens")

    @property
    def holds(self) -> bool:
        """Whether both KLs are within the tolerance; NaN is not."""
        return self.mean_kl <= self.tolerance and self.max_kl <= 20 * self.tolerance


def texts(student: Student) -> list[list[int]]:
    """Token ids of prompt and completion: kept rows of the last round that is baked."""
    rows = read_table(layout.completions(student.run, student.rounds - 1))
    rows = rows.filter("keep").head(ROWS)
    return [(p + c)[:LONGEST] for p, c in rows.select("prompt_ids", "completion_ids").rows()]


@torch.no_grad()
def compare(rows: list[list[int]], ours: Logits, theirs: Logits, tolerance: float) -> Parity:
    """Both models on every row by itself, so that padding plays no part: KL(ours ‖ theirs) per
    token, and the `tolerance` of its mean, nats."""
    kls, top = [], 0.0
    for row in rows:
        a, b = (f(torch.tensor([row]))[0].double().cpu() for f in (ours, theirs))
        top = max(top, (a - b).abs().max().item())
        a, b = a.log_softmax(-1), b.log_softmax(-1)
        kls.append((a.exp() * (a - b)).sum(-1))
    kl = torch.cat(kls)
    return Parity(kl.mean().item(), kl.max().item(), top, len(kl), tolerance)


def student_logits(student: Student) -> Logits:
    """The student's logits under its gates, through the one road of the core."""
    model = student.model

    def logits(ids: Tensor) -> Tensor:
        ids = ids.to(model.device)
        with model.gates(student.gates):
            return model.head(model.trunk(ids, ids >= 0))

    return logits


def against(student: Student, hf: nn.Module, tolerance: float) -> Parity:
    """A model of the library's, on the student's device, against the student; `tolerance` in nats
    per token."""
    device = student.model.device
    return compare(texts(student), student_logits(student),
                   lambda ids: hf(input_ids=ids.to(device)).logits.float(), tolerance)


def consumer_base(
    student: Student, cls: type[PreTrainedModel], dtype: str, original: bool = False
) -> PreTrainedModel:
    """The run's base as the library loads it, in `dtype`: for a 4-bit run with the matrices that
    the student multiplied with, dequantised, unless the `original` ones are asked for."""
    cfg, model = student.cfg, student.model
    if cls is type(model.hf):
        hf = load_weights(cfg.model, dtype, cfg.attn, "none", model.device)[1]
    else:
        attn = None if cfg.attn == "auto" else cfg.attn
        hf = cls.from_pretrained(locate(cfg.model), dtype=getattr(torch, dtype),
                                 attn_implementation=attn).to(model.device).eval()
    if cfg.quant == "nf4" and not original:
        copy_base(model, hf)
    return hf


@torch.no_grad()
def copy_base(model: Model, hf: PreTrainedModel) -> None:
    """Put the base of `model`, dequantised where it is 4-bit, into the library's own layers."""
    for name, dense in hf.get_decoder().layers.named_modules():
        if isinstance(dense, nn.Linear):
            ours = model.decoder.layers.get_submodule(name)
            dense.weight.copy_(getattr(ours, "base", ours).weight)


def demand(parity: Parity, remedy: str) -> None:
    """Raise UserError where the artefact is not the student."""
    if not parity.holds:
        raise UserError(f"the export is not the student, and was removed: {parity}; {remedy}")
