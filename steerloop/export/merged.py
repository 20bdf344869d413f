"""A plain Hugging Face checkpoint: W + Σ_k s g_k B_k A_k, added in fp32 and rounded once.

Which W? A 4-bit run's adapter saw the dequantised base, so that is the default and gives the
student. The original weights (`--merge-base original`) are often the better checkpoint, but for
some models the quantisation error is far larger than the delta: their ratio is said.
"""

from pathlib import Path
from shutil import copy

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from steerloop.export.adapter import factors
from steerloop.export.names import resolve
from steerloop.export.parity import Parity, against, consumer_base
from steerloop.export.student import Student
from steerloop.loading.hub import locate


def delta(student: Student, name: str) -> Float[Tensor, "d_out d_in"]:
    """What the open rounds add to one layer's weight, fp32."""
    A, B = factors(student.model.layers[name], student.gates)
    return B @ A


@torch.no_grad()
def write_merged(
    student: Student, out: Path, dtype: str = "", original: bool = False, shard: str = "5GB"
) -> dict:
    """Write the checkpoint with tokenizer, chat template and generation config, sharded.

    `dtype` of the files defaults to the run's. Returns the consumer's class and, for a 4-bit run,
    `quantisation`: norm of (original − dequantised) over norm of the delta, largest of the layers.
    """
    dtype = dtype or student.cfg.dtype
    cls, names = resolve(student.model, student.cfg.model)
    wide = "float32" if "float32" in (dtype, student.cfg.dtype) else dtype
    hf = consumer_base(student, cls, wide, original)
    worst = 0.0
    for ours, theirs in names.items() if student.gates.any() else ():
        weight, step = hf.get_submodule(theirs).weight, delta(student, ours)
        if student.cfg.quant == "nf4" and original:
            gap = weight.float() - student.model.layers[ours].base.weight.float()
            worst = max(worst, (gap.norm() / step.norm()).item())
        weight.copy_((weight.float() + step).to(getattr(torch, dtype)))
    hf.to(getattr(torch, dtype)).save_pretrained(out, max_shard_size=shard)
    student.model.tokenizer.save_pretrained(out)
    for path in locate(student.cfg.model).glob("*processor_config.json"):  # of a model that sees
        copy(path, out)
    return {"cls": cls, "dtype": dtype, "quantisation": worst}


def check_merged(
    student: Student, out: Path, cls: type[PreTrainedModel], tolerance: float
) -> Parity:
    """Load it with transformers, in the dtype of its files, and compare with the student;
    `tolerance` in nats per token."""
    hf = cls.from_pretrained(out, dtype="auto", trust_remote_code=False)
    return against(student, hf.to(student.model.device).eval(), tolerance)
