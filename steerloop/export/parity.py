"""Is the artefact the student? Logits of both on the run's own completions, token by token.

Both are computed in fp32, from the weights as the run rounded them: in bf16 the noise of a forward
pass, some 2e-3 nats, would hide a wrong adapter. What rounding a written file costs is another
question, and is said apart, as a share of KL(student ‖ base).

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
from steerloop.kernels.dense import packed, plain
from steerloop.loading.fit import output_head
from steerloop.loading.hub import locate
from steerloop.loading.weights import load_weights
from steerloop.lora import GatedLoRALinear
from steerloop.runfolder import layout
from steerloop.runfolder.files import read_table

ROWS, LONGEST = 8, 192  # completions compared, tokens of each
EXACT = 1e-6  # mean KL per token in fp32, nats: what an export may differ by; the maximum: 20 times
ROUNDED = 0.5  # of KL(student ‖ base): a rounded file further than that from it is not the student

Logits = Callable[[Int[Tensor, "1 t"]], Float[Tensor, "1 t v"]]


class Parity(NamedTuple):
    """KL(student ‖ artefact) per token in nats, and the largest difference of a logit."""

    mean_kl: float
    max_kl: float
    max_logit: float
    tokens: int
    tolerance: float
    whole: float  # mean KL(student ‖ base) per token, nats

    def __str__(self) -> str:
        return (f"KL(student || export) per token: mean {self.mean_kl:.2e}, max {self.max_kl:.2e} "
                f"nats (tolerance: mean {self.tolerance:.1e}, max {20 * self.tolerance:.1e})"
                f"{self.share}; largest logit difference {self.max_logit:.2e}, over {self.tokens} "
                "tokens")

    @property
    def share(self) -> str:
        """How much of the student that is, as text; '' for the base itself."""
        part = f"{100 * self.mean_kl / self.whole:.2g} %" if self.whole else ""
        return part and f", {part} of KL(student || base) {self.whole:.2e}"

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
def compare(student: Student, ours: Logits, theirs: Logits, tolerance: float) -> Parity:
    """Both models on every row by itself, so that padding plays no part: KL(ours ‖ theirs) per
    token, the `tolerance` of its mean, nats, and how far the student is from its base."""
    base = student_logits(student, 0 * student.gates)
    kls, top, whole = [], 0.0, []
    for row in texts(student):
        a, b, c = (f(torch.tensor([row]))[0].double().cpu() for f in (ours, theirs, base))
        top = max(top, (a - b).abs().max().item())
        a, b, c = (x.log_softmax(-1) for x in (a, b, c))
        kls.append((a.exp() * (a - b)).sum(-1))
        whole.append((a.exp() * (a - c)).sum(-1))
    kl = torch.cat(kls)
    return Parity(kl.mean().item(), kl.max().item(), top, len(kl), tolerance,
                  torch.cat(whole).mean().item())


def student_logits(student: Student, gates: Float[Tensor, "R"]) -> Logits:
    """The model's logits under these gates, through the one road of the core."""
    model = student.model

    def logits(ids: Tensor) -> Tensor:
        ids = ids.to(model.device)
        with model.gates(gates):
            return model.head(model.trunk(ids, ids >= 0))

    return logits


def against(student: Student, hf: nn.Module, tolerance: float) -> Parity:
    """A model of the library's, on the student's device, against the student; `tolerance` in nats
    per token."""
    device = student.model.device
    return compare(student, student_logits(student, student.gates),
                   lambda ids: hf(input_ids=ids.to(device)).logits.float(), tolerance)


@torch.no_grad()
def widened(student: Student) -> Student:
    """The student in fp32, in place: the matrices that the run multiplied with, dequantised and
    rounded as they were, unmerged, each product and sum now in fp32."""
    model = student.model
    for name, layer in list(model.hf.named_modules()):
        if isinstance(layer, nn.Linear) and packed(layer):
            model.hf.set_submodule(name, plain(layer.weight.float(), layer.bias))
    model.hf.float()
    model.head = output_head(model.hf)
    return student


@torch.no_grad()
def consumer_base(
    student: Student, cls: type[PreTrainedModel], original: bool = False
) -> PreTrainedModel:
    """The base as the library loads it, in fp32, with the matrices that the `widened` student
    multiplies with; for a 4-bit run the `original` ones, if asked for."""
    cfg, model = student.cfg, student.model
    if cls is type(model.hf):
        hf = load_weights(cfg.model, "float32", cfg.attn, "none", model.device)[1]
    else:
        attn = None if cfg.attn == "auto" else cfg.attn
        hf = cls.from_pretrained(locate(cfg.model), dtype=torch.float32,
                                 attn_implementation=attn).to(model.device).eval()
    theirs, known = hf.get_decoder(), dict(model.decoder.named_buffers())
    for name, x in theirs.named_buffers():  # in no file: gemma rounds √d to the dtype it loads in
        known[name].copy_(x)
    if not original:
        for name, x in theirs.named_parameters():
            x.copy_(own(model.decoder, name))
        hf.get_output_embeddings().weight.copy_(model.hf.get_output_embeddings().weight)
    return hf


def own(decoder: nn.Module, name: str) -> Float[Tensor, "..."]:
    """A parameter of the library's decoder in ours, where layers may be wrapped."""
    path, _, leaf = name.rpartition(".")
    module = decoder.get_submodule(path)
    return getattr(module.base if isinstance(module, GatedLoRALinear) else module, leaf)


def demand(parity: Parity, remedy: str, lost: str = "") -> None:
    """Raise UserError where the artefact is not the student; `lost` says what was given up."""
    if not parity.holds:
        raise UserError(f"the export is not the student, and was removed: {lost}{parity}; {remedy}")
