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
from steerloop.export.card import card, measured, vector_card, write_card
from steerloop.export.lora_gguf import LORA, check_lora, write_lora
from steerloop.export.merged import check_merged, merge, write_merged
from steerloop.export.merged_gguf import MODEL, check_model, write_model
from steerloop.export.parity import EXACT, ROUNDED, against, demand, widened
from steerloop.export.student import Student, c_star
from steerloop.export.vectors import (
    GGUF,
    SAFE,
    baked,
    check_vector,
    load_gguf,
    load_vector,
    note,
    origin,
    write_gguf,
    write_vector,
)
from steerloop.runfolder.files import ordinary


def whole(out: Path, write: Callable[[Path], None]) -> Path:
    """`write` fills a folder beside `out`, which takes the name when all is well; on any failure it
    is removed. Raises UserError where `out` is there already."""
    if out.exists():
        raise UserError(f"{out} exists: remove it, or name another --out")
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        write(part)
        for path in part.rglob("*"):
            if path.is_file():
                ordinary(path)
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
    limit, student = tolerance or EXACT, widened(student)

    def write(part: Path) -> None:
        made = write_adapter(student, part, rank, prefix)
        facts = [f"one LoRA of rank {made['rank']}, written as {made['written']} in float32, alpha "
                 f"equal; keys resolved in {made['cls'].__name__}"]
        lost = f"truncated by SVD: {made['error']:.2%} of the delta's norm is lost" if rank else ""
        facts += [lost] * bool(lost)
        parity, original = check_adapter(student, part, made["cls"], limit)
        facts.append(f"read back by PEFT, in fp32: {parity}")
        if original:
            facts.append(f"on the original weights, not the 4-bit ones of the run: {original}")
        for fact in facts:
            logger.info(fact)
        demand(parity, "a larger --rank keeps more, --tolerance allows more" if rank else
               "--tolerance allows more", f"{lost}; " if lost else "")
        whole_delta = made["error"] == 0
        write_card(part, card(student, "peft", facts, measured(student, whole_delta),
                              made["written"]))

    return whole(out, write)


def export_lora(
    student: Student, out: Path, rank: int = 0, tolerance: float = 0.0
) -> Path:
    """One LoRA with the whole stack in `out`/adapter.gguf, as llama.cpp loads it onto a GGUF file
    of the base; `rank` and `tolerance` (nats per token) as of `export_adapter`.

    Raises UserError; then nothing is left behind.
    """
    limit, student = tolerance or EXACT, widened(student)

    def write(part: Path) -> None:
        full, error = write_lora(student, part / LORA, rank)
        facts = [f"one LoRA of rank {full} in float32, alpha equal: scale 1 is the student"]
        lost = f"truncated by SVD: {error:.2%} of the delta's norm is lost" if rank else ""
        facts += [lost] * bool(lost)
        parity = check_lora(student, part / LORA, limit)
        facts.append(f"read back and added to the base, in fp32: {parity}")
        for fact in facts:
            logger.info(fact)
        demand(parity, "a larger --rank keeps more, --tolerance allows more" if rank else
               "--tolerance allows more", f"{lost}; " if lost else "")
        write_card(part, card(student, "gguf-lora", facts, measured(student, error == 0)))

    return whole(out, write)


def export_gguf(student: Student, out: Path, dtype: str = "", tolerance: float = 0.0) -> Path:
    """The merged student in `out`/model.gguf, for llama.cpp, matrices in `dtype` (default: the
    run's); read back as `--model` reads such files. `tolerance`: nats per token, as of
    `export_merged`. Raises UserError; then nothing is left behind."""
    dtype, student = dtype or student.cfg.dtype, widened(student)

    def write(part: Path) -> None:
        hf, _ = merge(student, text=True)
        parity = against(student, hf, tolerance or EXACT)
        facts = [f"{type(hf).__name__} in {dtype}, the delta added in fp32 and rounded once",
                 f"before rounding, in fp32: {parity}"]
        demand(parity, "--tolerance allows more")
        write_model(student, part / MODEL, hf, dtype)
        del hf  # what was written is as large
        rounded = ROUNDED * parity.whole if dtype != "float32" else 0.0
        back = check_model(student, part / MODEL, tolerance or max(EXACT, rounded))
        facts.append(f"read back as --model reads it, in fp32: {back}")
        for fact in facts:
            logger.info(fact)
        demand(back, "--dtype float32 rounds nothing, --tolerance allows more")
        as_run = dtype in (student.cfg.dtype, "float32")
        write_card(part, card(student, "gguf", facts, measured(student, as_run)))

    return whole(out, write)


def export_merged(
    student: Student, out: Path, dtype: str = "", original: bool = False, shard: str = "5GB",
    tolerance: float = 0.0,
) -> Path:
    """A plain checkpoint with tokenizer and chat template; checked with transformers.

    `dtype` of its files (default: the run's); `original`: merge a 4-bit run onto the original
    weights; `tolerance`: mean KL per token, nats (0: EXACT in fp32, and of what rounding its files
    costs the share ROUNDED of KL(student ‖ base)). Raises UserError; then nothing is left behind.
    """
    dtype, student = dtype or student.cfg.dtype, widened(student)

    def write(part: Path) -> None:
        hf, gaps = merge(student, original)
        parity = against(student, hf, tolerance or EXACT)
        facts = [f"{type(hf).__name__} in {dtype}, the delta added in fp32 and rounded once",
                 f"before rounding, in fp32: {parity}"]
        if gaps:
            facts.append("merged onto the original weights: in the worst layer the quantisation "
                         f"error that the run saw is {max(gaps.values()):.1f} × the delta")
        for fact in facts:
            logger.info(fact)
        demand(parity, "on the original base a 4-bit student is not itself: --tolerance allows it, "
               "--merge-base dequant avoids it" if original else "--tolerance allows more")
        write_merged(student, part, hf, dtype, shard)
        cls = type(hf)
        del hf  # what was written is as large
        rounded = ROUNDED * parity.whole if dtype == "bfloat16" else 0.0
        back = check_merged(student, part, cls, tolerance or max(EXACT, rounded))
        facts.append(f"read back by transformers, its {dtype} files in fp32: {back}")
        logger.info(facts[-1])
        demand(back, "--dtype float32 rounds nothing, --tolerance allows more")
        as_run = not original and dtype in (student.cfg.dtype, "float32")
        write_card(part, card(student, "merged", facts, measured(student, as_run)))

    return whole(out, write)


def export_vector(
    student: Student, out: Path, gguf: bool, dose: float = 1.0, tolerance: float = 0.0
) -> Path:
    """The vector of the student's last round in `out`/vector.{gguf,safetensors}; at scale 1 it
    steers at dose · c*. Raises UserError; then nothing is left behind."""
    limit, student = tolerance or EXACT, widened(student)

    def write(part: Path) -> None:
        vector = baked(student, dose)
        path = part / (GGUF if gguf else SAFE)
        if gguf:
            write_gguf(vector, path, student.model.hf.config.get_text_config().model_type,
                       origin(student.rounds), dose * c_star(student.run, student.rounds))
        else:
            write_vector(vector, path, note(student, dose))
        parity = check_vector(student, vector, (load_gguf if gguf else load_vector)(path), limit)
        facts = [f"extracted from {origin(student.rounds)}",
                 f"scale 1 is {dose:g} x c*, c* = {c_star(student.run, student.rounds):.4g}",
                 f"read back: {parity}"]
        for fact in facts:
            logger.info(fact)
        demand(parity, "the file does not hold what was written")
        text, load = vector_card(student, sorted(vector), gguf, facts, out)
        logger.info(load)
        write_card(part, text)

    return whole(out, write)
