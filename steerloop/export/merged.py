"""A plain Hugging Face checkpoint: W + Σ_k s g_k B_k A_k, added in fp32 and rounded once.

Which W? A 4-bit run's adapter saw the dequantised base, so that is the default and gives the
student. The original weights (`--merge-base original`) are often the better checkpoint, but for
some models the quantisation error is far larger than the delta: their ratio is said.
"""

from pathlib import Path
from shutil import copyfile

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from steerloop.export.adapter import factors
from steerloop.export.names import resolve
from steerloop.export.parity import Parity, against, consumer_base
from steerloop.export.student import Student
from steerloop.loading.hub import locate

TOKENIZER = (  # files of a tokenizer, as the library and those before it named them
    "*token*.json", "*.model", "*.spm", "*.tiktoken", "vocab*", "merges*", "*.vocab", "*.bpe",
    "spiece*", "sentencepiece*", "tekken*.json", "normalizer.json", "chat_template*", "*.jinja",
    "*chat_templates/*", "*processor_config.json")


def delta(student: Student, name: str) -> Float[Tensor, "d_out d_in"]:
    """What the open rounds add to one layer's weight, fp32."""
    A, B = factors(student.model.layers[name], student.gates)
    return B @ A


@torch.no_grad()
def merge(
    student: Student, original: bool = False, text: bool = False
) -> tuple[PreTrainedModel, dict[str, float]]:
    """The consumer's model (`text`: its text decoder alone) with the stack merged, in fp32, and for
    a 4-bit run on its `original` base, layer → norm of (original − dequantised) over norm of the
    delta."""
    cls, names = resolve(student.model, student.cfg.model)
    if text:
        cls, names = type(student.model.hf), {x: x for x in names}
    hf, gaps = consumer_base(student, cls, original), {}
    for ours, theirs in names.items() if student.gates.any() else ():
        weight, step = hf.get_submodule(theirs).weight, delta(student, ours)
        if student.cfg.quant == "nf4" and original:
            gap = weight - student.model.layers[ours].base.weight
            gaps[ours] = (gap.norm() / step.norm()).item()
        weight.add_(step)
    return hf, gaps


def write_merged(
    student: Student, out: Path, hf: PreTrainedModel, dtype: str, shard: str
) -> None:
    """Write a merged model, rounded once to `dtype`, with generation config, chat template and
    every file of the source's tokenizer; in files of `shard` at most."""
    hf.to(getattr(torch, dtype)).save_pretrained(out, max_shard_size=shard)
    student.model.tokenizer.save_pretrained(out)
    copy_tokenizer(locate(student.cfg.model), out)


def copy_tokenizer(source: Path, out: Path) -> None:
    """What saving a tokenizer leaves out, and converters ask for: the vocabulary it was made from,
    templates beside its own, the processor of a model that sees. Nothing there is overwritten."""
    found = {x for kind in TOKENIZER for x in source.glob(kind) if x.is_file()}
    for path in sorted(found):
        there = out / path.relative_to(source)
        if not there.exists():
            there.parent.mkdir(exist_ok=True)
            copyfile(path, there)  # the content alone: modes are ours


def check_merged(
    student: Student, out: Path, cls: type[PreTrainedModel], tolerance: float
) -> Parity:
    """Load it with transformers, in fp32, and compare with the student; `tolerance` in nats per
    token."""
    hf = cls.from_pretrained(out, dtype=torch.float32, trust_remote_code=False)
    return against(student, hf.to(student.model.device).eval(), tolerance)
