"""A student as one GGUF file, for llama.cpp: the merged weights, rounded once, with tokenizer and
chat template. Read back by `loading.gguf`, which knows nothing of how it was written."""

import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, LlamaFileType
from gguf.quants import quantize
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from steerloop import UserError
from steerloop.export.llamacpp import close, described, family, laid, places, put, stretch
from steerloop.export.parity import Parity, against
from steerloop.export.student import Student
from steerloop.export.vocabulary import REMEDY, vocabulary
from steerloop.loading.files import FAILURES
from steerloop.loading.gguf import write as unpack
from steerloop.loading.weights import load_weights, stop_ids
from steerloop.runfolder import layout
from steerloop.runfolder.files import read_table

MODEL = "model.gguf"  # in its folder
KINDS = {"float32": ("F32", LlamaFileType.ALL_F32), "float16": ("F16", LlamaFileType.MOSTLY_F16),
         "bfloat16": ("BF16", LlamaFileType.MOSTLY_BF16),
         "q8_0": ("Q8_0", LlamaFileType.MOSTLY_Q8_0)}
BLOCK = 32  # values that q8_0 rounds together
TEXTS = 64  # completions on which tokenizers are compared, and what they may lack
MIXED = "In the  house\n\n  it's 12 345, isn't IT?\té 北 😀!"


def possible(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError for a model that no GGUF file of ours can hold, by its folder alone."""
    described(config)
    vocabulary(tokenizer, config.vocab_size, [])


@torch.no_grad()
def write_model(student: Student, path: Path, hf: PreTrainedModel, dtype: str) -> None:
    """Write a merged text model in fp32, matrices rounded once to `dtype`. Raises UserError."""
    config, kind = hf.config, GGMLQuantizationType[KINDS[dtype][0]]
    writer = gguf.GGUFWriter(path, family(config))
    writer.add_type("model")
    writer.add_name(student.run.name)
    writer.add_file_type(KINDS[dtype][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    ends = stop_ids(student.model.hf)
    put(writer, described(config) | vocabulary(student.model.tokenizer, config.vocab_size, ends))
    weights = hf.state_dict()
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight")
    for name, place in places(config, list(weights)).items():
        x = laid(weights[name].float(), place).cpu().contiguous().numpy()
        of = rounded(x, kind)
        writer.add_tensor(place.name, quantize(x, of), raw_dtype=of)
    factors = stretch(hf)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors.numpy())
    close(writer)


def rounded(x: np.ndarray, kind: GGMLQuantizationType) -> GGMLQuantizationType:
    """How a weight is held: norms and biases in fp32, rows that are no whole blocks in 16 bits."""
    if x.ndim == 1:
        return GGMLQuantizationType.F32
    if kind == GGMLQuantizationType.Q8_0 and x.shape[-1] % BLOCK:
        return GGMLQuantizationType.F16
    return kind


def check_model(student: Student, path: Path, tolerance: float) -> Parity:
    """The file as `--model` reads it, in fp32, against the student; `tolerance` in nats per token.

    Raises UserError where it is not read, or its tokens or end tokens are not the student's.
    """
    model = student.model
    with tempfile.TemporaryDirectory() as folder:
        try:
            unpack(path, Path(folder))
        except FAILURES as e:
            raise UserError(f"the GGUF file cannot be read back: {e}; {REMEDY}") from e
        tokenizer, hf = load_weights(folder, "float32", student.cfg.attn, "none", model.device)
        same_tokens(student, tokenizer)
        if sorted(stop_ids(hf)) != sorted(stop_ids(model.hf)):
            raise UserError(f"answers end in {stop_ids(model.hf)}, by the GGUF file in "
                            f"{stop_ids(hf)}: {REMEDY}")
        return against(student, hf, tolerance)


def same_tokens(student: Student, theirs: PreTrainedTokenizerBase) -> None:
    """Raise UserError unless both tokenizers cut the run's texts, and render its chat, alike."""
    ours = student.model.tokenizer
    rows = read_table(layout.completions(student.run, student.rounds - 1)).head(TEXTS)
    texts = [ours.decode(p + c) for p, c in rows.select("prompt_ids", "completion_ids").rows()]
    for text in [*texts, *(f" {x}" for x in texts), MIXED]:
        a, b = (x(text, add_special_tokens=False).input_ids for x in (ours, theirs))
        if a != b:
            raise UserError(f"the GGUF file's tokenizer cuts {text[:40]!r} otherwise: {REMEDY}")
    if ours.chat_template != theirs.chat_template:
        raise UserError(f"the GGUF file does not keep the chat template: {REMEDY}")


def tokenizer_at(folder: Path) -> PreTrainedTokenizerBase:
    """A model's tokenizer, by its folder."""
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
