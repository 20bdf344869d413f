"""A GGUF file as a model: what its metadata says becomes a folder as the library writes them, and
an index of where its weights are; these stay in the file and are read from there (`packed`).

Reading the metadata of a large vocabulary takes seconds, so the folder is kept in the user's cache.
"""

import hashlib
import json
import math
import shutil
import tempfile
import time
from pathlib import Path
from textwrap import shorten
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor
from loguru import logger
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    Gemma2Config,
    Gemma3TextConfig,
    GenerationConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from steerloop import UserError
from steerloop.loading.cache import user_cache
from steerloop.loading.files import FAILURES, INDEX
from steerloop.loading.tokens import Facts, Unread, tokenizer_of
from steerloop.texts.printable import printable

VERSION = 1  # of what is written below
DEAD = 3600  # seconds after which nobody is still unpacking into a folder
CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config,
           "gemma2": Gemma2Config, "gemma3": Gemma3TextConfig}  # Mistral's files say llama
KEYS = {  # of a file, without its architecture → of a config
    "context_length": "max_position_embeddings", "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads", "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}  # fmt: skip
REQUIRED = ("max_position_embeddings", "num_hidden_layers", "hidden_size", "intermediate_size",
            "num_attention_heads", "rms_norm_eps")
OTHERS = {"rope.freq_base", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor",
          "attention.value_length", "attention.sliding_window_pattern",
          "vocab_size"}  # read below, or the same said twice
LARGEST = {"gemma2": 46, "gemma3": 62}  # blocks of the 27B ones, whose attention scales otherwise
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
PATTERN = "attention.sliding_window_pattern"
PERIOD = 6  # every how manyth block of a gemma3 is global, where the file does not say


class Reader(GGUFReader):
    """Refuses to read past the end, where the library's reader returns fewer values than asked for:
    a file cut short, or one that says of an array that it has no end."""

    def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
        if offset + np.dtype(dtype).itemsize * int(count) > len(self.data):
            raise Unread("it is cut short: download it again")
        return super()._get(offset, dtype, count, override_order)


def unpacked(file: Path) -> Path:
    """A GGUF file → the folder in the user's cache with its configuration, tokenizer, chat template
    and end tokens, and the index of its weights; made unless it is there.

    Raises UserError for a file that is damaged, split, or of a kind that is not supported.
    """
    file = file.absolute()  # not where a link leads: a hub's cache keeps contents under hashes
    folder = user_cache() / "gguf" / f"{file.stem}-{key_of(file)}"
    if (folder / INDEX).is_file():
        return folder
    logger.info(f"unpacking the metadata of {file.name} into {folder}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob("*.part"):
            if time.time() - left.stat().st_mtime > DEAD:
                shutil.rmtree(left, ignore_errors=True)
        part = Path(tempfile.mkdtemp(".part", dir=folder.parent))
    except OSError as e:
        raise UserError(f"the metadata of {file.name} cannot be unpacked: {e}; XDG_CACHE_HOME "
                        "names another place") from e
    try:
        write(file, part)
        part.rename(folder)
    except FAILURES as e:
        if (folder / INDEX).is_file():  # another process was quicker
            return folder
        why = shorten(printable(str(e)), 300, placeholder=" ...") or type(e).__name__
        remedy = "" if isinstance(e, Unread) else (
            f" ({type(e).__name__}): it is damaged, or of another kind; download it again, or take "
            "the model's safetensors")
        raise UserError(f"cannot load --model {file}: {why}{remedy}") from e
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def key_of(file: Path) -> str:
    """What changes with the file, or with how it is read."""
    x = file.stat()
    made = (VERSION, transformers.__version__, str(file), x.st_dev, x.st_ino, x.st_size,
            x.st_mtime_ns, x.st_ctime_ns)
    return hashlib.sha256(repr(made).encode()).hexdigest()[:16]


def write(file: Path, folder: Path) -> None:
    """All of a file but its weights, into a folder. Raises Unread."""
    reader = Reader(file)
    facts = {k: x.contents() for k, x in reader.fields.items() if len(x.data) < 100}
    if facts.get("split.count", 1) > 1:
        raise Unread(f"it is one of {facts['split.count']} parts: join them with "
                     "`llama-gguf-split --merge` first")
    config = config_of(facts, {x.name: x for x in reader.tensors})
    tensors = places(config, facts["general.architecture"], reader)
    config.save_pretrained(folder)
    ends = [facts.get(f"tokenizer.ggml.{x}_token_id") for x in ("eos", "eot")]
    GenerationConfig(bos_token_id=config.bos_token_id, pad_token_id=config.pad_token_id,
                     eos_token_id=sorted({x for x in ends if x is not None}) or None,
                     ).save_pretrained(folder)  # fmt: skip
    tokenizer_of(file, facts).save_pretrained(folder)
    index = {"file": str(file), "origin": origin(facts), "tensors": tensors}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def origin(facts: Facts) -> str:
    """The hub id of the model that a file holds, where it names it; else ''. What it calls its
    base_model is a parent, unless the file says that somebody only quantised that."""
    keys = ["general.source.huggingface.repository", "general.source.repo_url"]
    if "general.quantized_by" in facts and facts.get("general.base_model.count", 1) == 1:
        keys.append("general.base_model.0.repo_url")
    named = next((str(facts[k]) for k in keys if facts.get(k)), "")
    parts = named.removeprefix("https://huggingface.co/").strip("/").split("/")
    return "/".join(parts) if len(parts) == 2 and all(parts) else ""


def config_of(facts: Facts, tensors: dict[str, ReaderTensor]) -> PretrainedConfig:
    """Metadata → the library's configuration. Raises Unread for what it cannot say."""
    arch = str(facts.get("general.architecture"))
    if arch not in CONFIGS:
        raise Unread(f"GGUF files of architecture {arch} are not read, only "
                     f"{', '.join(CONFIGS)}: take the model's safetensors")
    own = {k.removeprefix(f"{arch}."): x for k, x in facts.items() if k.startswith(f"{arch}.")}
    known = {theirs: own[k] for k, theirs in KEYS.items() if k in own}
    if absent := [x for x in REQUIRED if x not in known]:
        names = {x: k for k, x in KEYS.items()}
        raise Unread(f"its metadata lacks {arch}.{names[absent[0]]}: download it again")
    if lists := [k for k in KEYS if isinstance(own.get(k), list)]:
        raise Unread(f"{arch}.{lists[0]} differs from block to block, which the library's "
                     f"{arch} cannot do: take the model's safetensors")
    known["rms_norm_eps"] = float(str(np.float32(known["rms_norm_eps"])))  # as it was written
    known.setdefault("num_key_value_heads", known["num_attention_heads"])
    width = known["hidden_size"] // known["num_attention_heads"]
    head = known.setdefault("head_dim", own.get("rope.dimension_count", width))
    if {own.get(x, head) for x in ("rope.dimension_count", "attention.value_length")} != {head}:
        raise Unread("its heads are rotated in part, or have values of another width than "
                     "keys: take the model's safetensors")
    if arch in LARGEST:
        large = known["num_hidden_layers"] == LARGEST[arch]
        known["query_pre_attn_scalar"] = width if large else head
    elif "sliding_window" in known:
        raise Unread(f"its attention slides, which the library's {arch} does not: take the "
                     "model's safetensors")
    if "token_embd.weight" not in tensors:
        raise Unread("it has no token_embd.weight: it holds no whole model")
    if arch == "gemma3":
        known["layer_types"] = attended(known["num_hidden_layers"], own.get(PATTERN, PERIOD))
    if unread := sorted(own.keys() - KEYS.keys() - OTHERS):
        logger.warning(f"of the file's metadata, {', '.join(unread)} have no place in the "
                       f"library's {arch}, and are not read")
    ids = {f"{x}_token_id": facts.get(f"tokenizer.ggml.{y}_token_id")
           for x, y in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))}
    cls = CONFIGS[arch]
    name = MODEL_FOR_CAUSAL_LM_MAPPING[cls].__name__
    return cls(architectures=[name], tie_word_embeddings="output.weight" not in tensors,
               vocab_size=int(tensors["token_embd.weight"].shape[1]),
               rope_parameters=rope(arch, own, head, tensors.get("rope_freqs.weight")),
               **known, **ids)  # fmt: skip


def attended(blocks: int, pattern: int | list[bool]) -> list[str]:
    """What each block attends to: a window, but for every `pattern`th, or for those that are not
    said to slide. Raises Unread for a pattern of another length."""
    slides = pattern if isinstance(pattern, list) else [
        k % pattern < pattern - 1 for k in range(blocks)]
    if len(slides) != blocks:
        raise Unread(f"it says of {len(slides)} blocks whether they slide, and has {blocks}: "
                     "download it again")
    return ["sliding_attention" if x else "full_attention" for x in slides]


def rope(arch: str, own: Facts, head: int, factors: ReaderTensor | None) -> dict[str, Any]:
    """How positions turn, as the library says it. Raises Unread for a scaling that it would
    not follow."""
    theta = float(own.get("rope.freq_base", 10000.0))
    turns: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    kind, factor = own.get("rope.scaling.type", "none"), own.get("rope.scaling.factor", 1.0)
    unknown = [k for k in own if k.startswith("rope.scaling.") and k not in OTHERS]
    if kind == "linear" and not unknown:
        turns |= {"rope_type": "linear", "factor": float(factor)}
    elif kind != "none" or unknown:
        raise Unread(f"its positions are scaled ({kind}), which is not read from GGUF files: "
                     "take the model's safetensors")
    if factors is not None:
        turns |= {"rope_type": "llama3", **LLAMA3, "factor": stretched(theta, head, factors)}
    if arch == "gemma3":
        local = {"rope_type": "default", "rope_theta": 10000.0}
        return {"full_attention": turns, "sliding_attention": local}
    return turns


def stretched(theta: float, head: int, factors: ReaderTensor) -> float:
    """The factor of Llama 3.1's scaling, from what the file divides its frequencies by.

    Raises Unread where they are of another scaling. Formula: Llama 3.1's release.
    """
    low, high, length = LLAMA3.values()
    for factor in (8.0, 32.0):
        waves = 2 * math.pi * theta ** (torch.arange(0, head, 2).double() / head)
        smooth = ((length / waves - low) / (high - low)).clamp(0, 1)
        if np.allclose(factors.data, 1 / ((1 - smooth) / factor + smooth), rtol=1e-4):
            return factor
    raise Unread("the factors of its positions (rope_freqs.weight) are not those of Llama 3.1: "
                 "take the model's safetensors")


def places(config: PretrainedConfig, arch: str, reader: GGUFReader) -> dict[str, list[Any]]:
    """The library's name of each weight → where and how the file has it (`Packed`).

    Raises Unread for a tensor of the file without a place in the model.
    """
    with torch.device("meta"):
        names = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).state_dict()
    kind = {x: k for k, x in gguf.MODEL_ARCH_NAMES.items()}[arch]
    table = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    theirs = {table.get_name(x, (".weight", ".bias")): x for x in names}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    found: dict[str, list[Any]] = {}
    for x in reader.tensors:
        if x.name == "rope_freqs.weight":
            continue
        if x.name not in theirs:
            raise Unread(f"its {x.name} has no place in the library's {arch}: take the model's "
                         "safetensors")
        shape = [int(n) for n in reversed(x.shape)]
        rows, part = math.prod(shape[:-1]), x.name.split(".")[-2]
        gguf.dequantize(x.data.reshape(rows, -1)[:1], GGMLQuantizationType(x.tensor_type))
        found[theirs[x.name]] = [
            int(x.data_offset), int(x.tensor_type), shape, rows, int(x.n_bytes) // rows,
            heads.get(part, 0) if arch == "llama" else 0,
            -1.0 if arch.startswith("gemma") and part.endswith("norm") else 0.0,
        ]  # fmt: skip
    return found
