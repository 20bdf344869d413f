"""Which files of a model's folder are read: the library's own rule, and nothing beside it."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from loguru import logger
from safetensors import SafetensorError
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

INDEX = "gguf.json"  # of a folder unpacked from a GGUF file: where its weights are
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
BESIDE = ("config*.json", "generation_config.json", "tokenizer*", "special_tokens_map.json",
          "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.jinja", "*.tiktoken",
          "tekken.json", "chat_template.json", "additional_chat_templates/*.jinja")
FAILURES = (  # of a library that is given a bad file
    OSError, ValueError, RuntimeError, AttributeError, LookupError, TypeError, ImportError,
    ArithmeticError, MemoryError, SafetensorError, StrictDataclassError,
)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a checkpoint, and its index where it has one: those that
    `transformers_weights` in its configuration names, else model.safetensors, else the shards that
    the index lists. Empty where it has none of that.

    Raises ValueError for an index that is damaged, or names files elsewhere.
    """
    if (folder / INDEX).is_file():
        return [source(folder)]
    named = _json(folder / CONFIG_NAME).get("transformers_weights")
    choices = [named] if named else [SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME]
    first = next((folder / x for x in choices if (folder / _inside(x)).is_file()), None)
    if first is None:
        return []
    if not first.name.endswith(".index.json"):
        return [first]
    names = _json(first).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{first.name} is no index of weights: download or save it again")
    return [first, *(first.parent / _inside(x) for x in sorted({*map(str, names.values())}))]


def _json(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text("utf-8"))
    except ValueError as e:
        raise ValueError(f"{path.name} is damaged ({e}): download or save it again") from e
    if not isinstance(known, dict):
        raise ValueError(f"{path.name} is no JSON object: download or save it again")
    return known


def _inside(name: Any) -> str:
    plain = isinstance(name, str) and name.endswith((".safetensors", ".safetensors.index.json"))
    if not plain or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"its weights are said to be in {name!r}, which is no safetensors file "
                         "in its folder")
    return name


def source(folder: Path) -> Path:
    """What a model's folder was made from: its GGUF file where it was unpacked from one, else
    itself."""
    index = folder / INDEX
    return Path(_json(index)["file"]) if index.is_file() else folder


def origin(folder: Path) -> str:
    """The hub id of what a GGUF file was made from, where the file names it; else ''."""
    index = folder / INDEX
    return _json(index)["origin"] if index.is_file() else ""


def model_files(folder: Path) -> list[Path]:
    """All that loading a model reads: configuration, weights, tokenizer, chat template; of a GGUF
    file that is the file."""
    if (folder / INDEX).is_file():
        return weight_files(folder)
    beside = {x for kind in BESIDE for x in folder.glob(kind) if x.is_file()}
    return sorted({*weight_files(folder), *(x for x in beside if x.suffix != ".safetensors")})


def warn_of_others(folder: Path) -> None:
    """Say which files look like weights of this model, and are not read."""
    used = weight_files(folder)
    if others := sorted(x.name for x in {*folder.glob("*.safetensors*")} - {*used}):
        logger.warning(f"{folder} has weights that are not read: {', '.join(others)}; those in "
                       f"{', '.join(x.name for x in used)} are")
