"""GGUF files written from models of the library, by the rules of llama.cpp's converter spelled out:
what reading has to undo."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.convert_slow_tokenizer import bytes_to_unicode

from steerloop.checks.small import SPECIALS, TEMPLATES, WINDOW
from steerloop.loading.gguf import CONFIGS

CONTROL, NORMAL, BYTE = 3, 1, 6  # kinds of tokens
LETTERS_OF = bytes_to_unicode()
LETTERS = list(LETTERS_OF.values())
MERGES = [("Ġ", "Ġ"), ("t", "h"), ("th", "e"), ("1", "2"), ("i", "n")]
VOCABULARY = [*SPECIALS, *LETTERS, *("".join(x) for x in MERGES)]
F32, F16, Q8_0, Q4_1 = (GGMLQuantizationType[x] for x in ("F32", "F16", "Q8_0", "Q4_1"))


def small(arch: str, **fields: Any) -> PreTrainedModel:
    """A random model of an architecture, wide enough for blocks of 32 values."""
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(VOCABULARY),
            "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "initializer_range": 0.3,
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}  # fmt: skip
    if arch != "qwen2":
        size["head_dim"] = 8
    if arch.startswith("gemma"):
        size |= {"sliding_window": WINDOW, "query_pre_attn_scalar": 8}
    if arch == "gemma3":
        size["num_hidden_layers"] = 7  # every sixth is global
    own = CONFIGS[arch](**size | fields)
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(own)
    with torch.no_grad():  # norms and biases begin as ones and zeros, where faults would hide
        for name, x in made.named_parameters():
            if "norm" in name or name.endswith("bias"):
                x.normal_(0.0 if "gemma" in arch or "bias" in name else 1.0, 0.3)
    return made


def name_of(arch: str, blocks: int, name: str) -> str:
    """The library's name of a weight → the file's."""
    table = gguf.get_tensor_name_map({v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[arch], blocks)
    return table.get_name(name, (".weight", ".bias"))


def converted(arch: str, name: str, x: np.ndarray, own: PretrainedConfig) -> np.ndarray:
    """A weight as the converter leaves it."""
    for part, heads in (("q_proj", own.num_attention_heads), ("k_proj", own.num_key_value_heads)):
        if arch == "llama" and part in name:
            width = x.shape[0] // heads
            out = np.empty_like(x)
            for h in range(heads):
                for i in range(width // 2):
                    out[h * width + 2 * i] = x[h * width + i]
                    out[h * width + 2 * i + 1] = x[h * width + width // 2 + i]
            return out
    return x + 1 if arch.startswith("gemma") and "norm" in name else x


def write_gguf(
    file: Path, arch: str, hf: PreTrainedModel, kind: GGMLQuantizationType = F32,
    extra: dict[str, np.ndarray] | None = None, **facts: Any,
) -> dict[str, torch.Tensor]:
    """Write a file, matrices in blocks of `kind`; returns what its weights are worth, by the
    library's names. `facts` add to its metadata or change it (None: leave out), `extra` to its
    tensors."""
    own = hf.config
    writer = GGUFWriter(file, arch)
    rotation = own.rope_parameters
    theta = rotation.get("full_attention", rotation)["rope_theta"]
    said = {
        f"{arch}.context_length": own.max_position_embeddings,
        f"{arch}.block_count": own.num_hidden_layers, f"{arch}.embedding_length": own.hidden_size,
        f"{arch}.feed_forward_length": own.intermediate_size,
        f"{arch}.attention.head_count": own.num_attention_heads,
        f"{arch}.attention.head_count_kv": own.num_key_value_heads,
        f"{arch}.attention.key_length": own.hidden_size // own.num_attention_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": own.rms_norm_eps,
        f"{arch}.rope.freq_base": theta,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": VOCABULARY,
        "tokenizer.ggml.token_type": [CONTROL if x in SPECIALS else NORMAL for x in VOCABULARY],
        "tokenizer.ggml.merges": [" ".join(x) for x in MERGES],
        "tokenizer.ggml.bos_token_id": 2, "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.eot_token_id": SPECIALS.index("<end>"),
        "tokenizer.ggml.padding_token_id": 0, "tokenizer.chat_template": TEMPLATES["system turn"],
    }  # fmt: skip
    if arch.startswith("gemma"):
        said[f"{arch}.attention.sliding_window"] = own.sliding_window
    if arch == "gemma2":
        said[f"{arch}.attn_logit_softcapping"] = own.attn_logit_softcapping
        said[f"{arch}.final_logit_softcapping"] = own.final_logit_softcapping
    arch_of = facts.pop("general.architecture", None)
    if arch_of:
        writer.kv_data[0]["general.architecture"].value = arch_of
    for key, value in (said | facts).items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
                   str: writer.add_string}
            add[type(value)](key, value)
    worth = {}
    for name, x in hf.state_dict().items():
        if name == "lm_head.weight" and own.tie_word_embeddings:
            continue
        of = kind if x.ndim == 2 else F32
        packed = quantize(converted(arch, name, x.numpy(), own), of)
        writer.add_tensor(name_of(arch, own.num_hidden_layers, name), packed, raw_dtype=of)
        worth[name] = torch.tensor(dequantize(quantize(x.numpy(), of), of)) if of != F32 else x
        if arch.startswith("gemma") and "norm" in name:
            worth[name] = (x + 1) - 1  # as exactly as a float holds it
    for name, x in (extra or {}).items():
        writer.add_tensor(name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return worth


PIECES = ["▁", *"thenias123!Tx", "▁t", "he", "the", "▁the", "in", "▁▁", "12", "▁12", "▁a", "an"]
SENTENCEPIECE = {  # metadata of a vocabulary of that kind
    "tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default", "tokenizer.ggml.merges": None,
    "tokenizer.ggml.tokens": [*SPECIALS, *(f"<0x{x:02X}>" for x in range(256)), *PIECES],
    "tokenizer.ggml.scores": [0.0] * (len(SPECIALS) + 256) + [-1.0 * i for i in range(len(PIECES))],
    "tokenizer.ggml.token_type": [CONTROL] * len(SPECIALS) + [BYTE] * 256 + [NORMAL] * len(PIECES),
    "tokenizer.ggml.unknown_token_id": SPECIALS.index("<unk>"),
}  # fmt: skip


def pieced(text: str, prefix: bool) -> list[str]:
    """Text → tokens as SentencePiece does it: the neighbours that make the piece with the best
    score are joined, again and again; what is no piece at the end is bytes."""
    parts = list("▁" * (prefix and text != "") + text.replace(" ", "▁"))
    while True:
        pairs = [(PIECES.index(a + b), i) for i, (a, b) in enumerate(pairwise(parts))
                 if a + b in PIECES]
        if not pairs:
            break
        _, i = min(pairs)
        parts[i : i + 2] = ["".join(parts[i : i + 2])]
    return [y for x in parts for y in (
        [x] if x in PIECES else [f"<0x{b:02X}>" for b in x.encode("utf-8")])]


def merged(words: list[str]) -> list[str]:
    """Bytes of words → tokens, the first merge of the list first, everywhere: slow and obvious."""
    tokens = []
    for word in words:
        parts = [LETTERS_OF[x] for x in word.encode("utf-8")]
        for one, other in MERGES:
            i = 0
            while i + 1 < len(parts):
                if parts[i : i + 2] == [one, other]:
                    parts[i : i + 2] = [one + other]
                i += 1
        tokens += parts
    return tokens
