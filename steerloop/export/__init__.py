"""Take a student elsewhere: PEFT and vLLM, transformers, llama.cpp, or someone else's desk.

Every artefact is written beside its name, read back by its consumer's own loader, compared with the
student in memory, and only then takes its name. What does not pass is removed.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from loguru import logger

from steerloop import UserError
from steerloop.export.adapter import check_adapter, write_adapter
from steerloop.export.card import card, write_card
from steerloop.export.merged import check_merged, write_merged
from steerloop.export.parity import TOLERANCE, demand
from steerloop.export.student import Student
from steerloop.export.vectors import (
    baked,
    check_vector,
    load_gguf,
    load_vector,
    note,
    write_gguf,
    write_vector,
)

GGUF, SAFE = "vector.gguf", "vector.safetensors"  # a vector in its folder


def whole(out: Path, write: Callable[[Path], None]) -> Path:
    """`write` fills a folder beside `out`, which takes the name when all is well; on any failure it
    is removed. Raises UserError where `out` is there already."""
    if out.exists():
        raise UserError(f"{out} exists: remove it, or name another --out")
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        write(part)
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def export_adapter(
    student: Student, out: Path, rank: int = 0, prefix: str = "", tolerance: float = 0.0
) -> Path:
    """One LoRA with the whole stack, as PEFT and vLLM load it; checked with PEFT.

    `rank` truncates by SVD (0: exact), `tolerance` is the mean KL per token allowed, nats (0: that
    of the run's dtype). Raises UserError; then nothing is left behind.
    """
    limit = tolerance or TOLERANCE[student.cfg.dtype]

    def write(part: Path) -> None:
        made = write_adapter(student, part, rank, prefix)
        facts = [f"one LoRA of rank {made['rank']}, written as {made['written']}, alpha equal; "
                 f"keys resolved in {made['cls'].__name__}"]
        if rank:
            facts.append(f"truncated by SVD: {made['error']:.2%} of the delta's norm is lost")
            logger.info(facts[-1])
        parity, original = check_adapter(student, part, made["cls"], limit)
        facts.append(f"read back by PEFT: {parity}")
        if original:
            facts.append(f"on the original weights, not the 4-bit ones of the run: {original}")
        for fact in facts:
            logger.info(fact)
        demand(parity, "a larger --rank keeps more, --tolerance allows more" if rank else
               "--tolerance allows more")
        write_card(part, card(student, "peft", facts, made["written"]))

    return whole(out, write)


def export_merged(
    student: Student, out: Path, dtype: str = "", original: bool = False, shard: str = "5GB",
    tolerance: float = 0.0,
) -> Path:
    """A plain checkpoint with tokenizer and chat template; checked with transformers.

    `dtype` of its files (default: the run's); `original`: merge a 4-bit run onto the original
    weights; `tolerance`: mean KL per token, nats (0: that of the dtype). Raises UserError; then
    nothing is left behind.
    """
    def write(part: Path) -> None:
        made = write_merged(student, part, dtype, original, shard)
        coarse = "bfloat16" if "bfloat16" in (made["dtype"], student.cfg.dtype) else "float32"
        parity = check_merged(student, part, made["cls"], tolerance or TOLERANCE[coarse])
        facts = [f"{made['cls'].__name__} in {made['dtype']}, the delta added in fp32 and rounded "
                 "once", f"read back by transformers: {parity}"]
        if made["quantisation"]:
            facts.append("merged onto the original weights: in the worst layer the quantisation "
                         f"error that the run saw is {made['quantisation']:.1f} × the delta")
        for fact in facts:
            logger.info(fact)
        demand(parity, "on the original base a 4-bit student is not itself: --tolerance allows it, "
               "--merge-base dequant avoids it" if original else "--tolerance allows more")
        write_card(part, card(student, "merged", facts))

    return whole(out, write)


def export_vector(
    student: Student, out: Path, gguf: bool, dose: float = 1.0, tolerance: float = 0.0
) -> Path:
    """The vector of the student's last round in `out`/vector.{gguf,safetensors}; at scale 1 it
    steers at dose · c*. Raises UserError; then nothing is left behind."""
    limit = tolerance or TOLERANCE["float32"]

    def write(part: Path) -> None:
        vector = baked(student, dose)
        if gguf:
            path = part / GGUF
            write_gguf(vector, path, student.model.hf.config.get_text_config().model_type)
            loaded = load_gguf(path)
        else:
            path = part / SAFE
            write_vector(vector, path, note(student, dose))
            loaded = load_vector(path)
        parity = check_vector(student, vector, loaded, limit)
        blocks = sorted(vector)
        logger.info(f"round {student.rounds}, blocks {blocks[0]} to {blocks[-1]}; scale 1 is "
                    f"{dose:g} x c*" + (
                        f"; llama.cpp: --control-vector-scaled {out / GGUF} 1 "
                        f"--control-vector-layer-range {blocks[0]} {blocks[-1]}" if gguf else ""))
        logger.info(f"read back: {parity}")
        demand(parity, "the file does not hold what was written")

    return whole(out, write)
