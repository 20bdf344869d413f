"""What a model is called in llama.cpp's files, and how they lay it out.

Its Llama rotates neighbouring values of a head where the library rotates halves, so the rows of q
and k, and of what is added to them, lie there in pairs. Its Gemma holds a norm's 1 + w. An adapter
that misses this loads without a word and is wrong, so nothing is written for a family that is not
known here.
"""

from typing import Any, NamedTuple

import gguf
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from steerloop import UserError
from steerloop.loading.gguf import KEYS, LLAMA3, PATTERN, PERIOD, attended

FAMILIES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3",
            "gemma2": "gemma2", "gemma3_text": "gemma3"}  # as the library calls it → as llama.cpp
OTHERWISE = "--to peft and --to merged write it for others"
LOCAL = 10000.0  # how sliding blocks of gemma3 rotate there, whatever the file says


class Place(NamedTuple):
    """A tensor in a file: its name, the heads whose rows lie in pairs (0: none do), and what is
    added to its values."""

    name: str
    heads: int
    shift: float


def family(config: PretrainedConfig) -> str:
    """llama.cpp's name of a text decoder's architecture. Raises UserError where it is not known
    here, or would be another model there."""
    arch = FAMILIES.get(config.model_type)
    if arch is None:
        raise UserError(f"GGUF files of a {config.model_type} model are not written, only of "
                        f"{', '.join(FAMILIES)}: {OTHERWISE}")
    kinds = getattr(config, "layer_types", None) or []
    if arch == "gemma2":
        if kinds != attended(config.num_hidden_layers, 2):
            raise UserError("llama.cpp has no place for the order of this gemma2's sliding and "
                            f"global blocks: {OTHERWISE}")
    elif arch != "gemma3" and (getattr(config, "sliding_window", None)
                               or "sliding_attention" in kinds):
        raise UserError(f"its attention slides, which llama.cpp's {arch} does not: {OTHERWISE}")
    turns(config, arch)
    return arch


def turns(config: PretrainedConfig, arch: str) -> dict[str, Any]:
    """How positions turn. Raises UserError for a scaling that is not known here."""
    said = config.rope_parameters
    local = said.get("sliding_attention", {"rope_theta": LOCAL, "rope_type": "default"})
    said = said.get("full_attention", said)
    fine = said["rope_type"] in ("default", "linear") or (
        arch == "llama" and said["rope_type"] == "llama3"
        and all(said[k] == x for k, x in LLAMA3.items()))
    if not fine or (local["rope_theta"], local["rope_type"]) != (LOCAL, "default"):
        raise UserError(f"its positions are scaled ({said['rope_type']}, theta "
                        f"{said['rope_theta']:g}), which is not written: {OTHERWISE}")
    return said


def places(config: PretrainedConfig, names: list[str]) -> dict[str, Place]:
    """The library's names of weights and biases → where a file has them. Raises UserError for one
    without a place."""
    arch, found = family(config), {}
    kind = {x: k for k, x in gguf.MODEL_ARCH_NAMES.items()}[arch]
    table = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name in names:
        there = table.get_name(name, (".weight", ".bias"))
        if there is None:
            raise UserError(f"llama.cpp's {arch} has no place for {name}: {OTHERWISE}")
        part = there.split(".")[-2]
        norm = arch.startswith("gemma") and part.endswith("norm")
        found[name] = Place(there, heads.get(part, 0) if arch == "llama" else 0, float(norm))
    return found


def laid(x: Float[Tensor, "d_out *rest"], place: Place) -> Float[Tensor, "d_out *rest"]:
    """A weight, bias or factor whose rows are outputs, as a file has it."""
    if place.heads:
        x = rearrange(x, "(h two p) ... -> (h p two) ...", h=place.heads, two=2)
    return x + place.shift if place.shift else x


def described(config: PretrainedConfig) -> dict[str, Any]:
    """Metadata of a model: its architecture's keys and their values. Raises UserError."""
    arch, said = family(config), {}
    for key, theirs in KEYS.items():
        value = getattr(config, theirs, None)
        if value is not None:
            said[f"{arch}.{key}"] = value
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    turn = turns(config, arch)
    said |= {f"{arch}.attention.key_length": head, f"{arch}.attention.value_length": head,
             f"{arch}.rope.dimension_count": head, f"{arch}.vocab_size": config.vocab_size,
             f"{arch}.rope.freq_base": float(turn["rope_theta"])}
    if turn["rope_type"] == "linear":
        said |= {f"{arch}.rope.scaling.type": "linear",
                 f"{arch}.rope.scaling.factor": float(turn["factor"])}
    if arch == "gemma3" and config.layer_types != attended(config.num_hidden_layers, PERIOD):
        said[f"{arch}.{PATTERN}"] = [x == "sliding_attention" for x in config.layer_types]
    return said


def stretch(hf: PreTrainedModel) -> Float[Tensor, "p"] | None:
    """What Llama 3 divides its frequencies by, from those that the library uses; None for other
    models."""
    turn = turns(hf.config, family(hf.config))
    if turn["rope_type"] != "llama3":
        return None
    used = hf.get_decoder().rotary_emb.inv_freq.float().cpu()
    return turn["rope_theta"] ** (-torch.arange(len(used)).float() / len(used)) / used


def put(writer: gguf.GGUFWriter, said: dict[str, Any]) -> None:
    """Write metadata, each value by its kind."""
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
           str: writer.add_string, list: writer.add_array}
    for key, value in said.items():
        add[type(value)](key, value)


def close(writer: gguf.GGUFWriter) -> None:
    """Write all that was added."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
