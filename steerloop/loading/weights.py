"""Load a model and its tokenizer: dense or 4-bit, safetensors or GGUF, no foreign code.

Every way in which that can go wrong ends in a UserError of one line that names the remedy.
"""

from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import torch
from huggingface_hub.utils import logging as hub_log
from loguru import logger
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as library_log

from steerloop import UserError
from steerloop.kernels import masks
from steerloop.kernels.hardware import SMALLEST, keep_freed, precision
from steerloop.loading.cache import keep_compiled
from steerloop.loading.files import FAILURES, INDEX, warn_of_others, weight_files
from steerloop.loading.hub import locate

TEXT = {  # names of a multimodal checkpoint → those of its text decoder alone, in both layouts
    r"^(model\.)?language_model\.lm_head\.": "lm_head.",
    r"^(model\.)?language_model\.(model\.)?": "model.",
}


class Stored(NamedTuple):
    """A weight in a file. Each reading maps the file anew, so that the pages of one weight can go
    before those of the next come: one mapping for all would keep every page until the end."""

    file: Path
    key: str

    def __getitem__(self, part: Any) -> Tensor:
        with safe_open(self.file, "pt") as file:
            return file.get_slice(self.key)[part]


def stored(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Name → weight, over every file of a checkpoint; those of a GGUF file, which have no dtype of
    their own, in `dtype`. Raises ValueError naming a damaged file, or a weight that two of them
    have."""
    if (folder / INDEX).is_file():
        from steerloop.loading.packed import packed

        return packed(folder, dtype)
    weights: dict[str, Stored] = {}
    for path in weight_files(folder):
        if path.suffix != ".safetensors":
            continue
        try:
            with safe_open(path, "pt") as file:
                keys = list(file.keys())
        except (OSError, SafetensorError) as e:
            raise ValueError(f"{path.name}: {e}; download or save it again") from e
        if twice := weights.keys() & keys:
            raise ValueError(f"{min(twice)} is in {path.name} and in another file of its index: "
                             "download or save it again")
        weights |= {key: Stored(path, key) for key in keys}
    return weights


def refuse(config: PretrainedConfig, text: PretrainedConfig) -> None:
    """Raise ValueError for a checkpoint that cannot be trained on; `text` is its text decoder's."""
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"a {text.model_type} model is no causal language model")
    if any(getattr(x, "quantization_config", None) for x in (config, text)):
        raise ValueError("its weights are quantised already: take the original, --quant does it")
    if text.model_type.startswith("gemma") and torch.float16 in (config.dtype, text.dtype):
        raise ValueError("its gemma weights were stored in float16, where gemma overflows: take "
                         "the bfloat16 original")


def load_weights(
    model: str, dtype: str, attn: str, quant: str, device: torch.device
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and causal language model, in eval mode on `device`.

    Multimodal checkpoints give their text decoder. With quant = nf4 the blocks' linear layers are
    quantised as they come from the file, one full-precision matrix at a time.
    Raises UserError.
    """
    hint = "" if attn == "auto" else f"; --attn auto chooses in the place of {attn}"
    verbosity, hub_verbosity = library_log.get_verbosity(), hub_log.get_verbosity()
    library_log.set_verbosity_error()  # what its report says is raised or logged below
    hub_log.set_verbosity_error()  # as are its retries
    masks.register()
    keep_compiled()
    folder, computed = locate(model), precision(dtype, device)
    warn_of_others(folder)
    keep_freed(False, SMALLEST)  # else holes between what stays take more than the weights
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        text = config.get_text_config()
        refuse(config, text)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        options = {"key_mapping": TEXT} if text is not config else {}
        if quant == "nf4":
            from steerloop.loading.streaming import Streamed

            options["quantization_config"] = Streamed(device)
        hf, info = MODEL_FOR_CAUSAL_LM_MAPPING[type(text)].from_pretrained(
            None, config=text, state_dict=stored(folder, computed), dtype=computed,
            attn_implementation=None if attn == "auto" else attn,
            output_loading_info=True, ignore_mismatched_sizes=True, **options,
        )
        if (folder / "generation_config.json").exists():
            hf.generation_config = GenerationConfig.from_pretrained(folder)
    except FAILURES as e:
        raise UserError(f"cannot load --model {model}: "
                        f"{shorten(str(e), 300, placeholder=' ...')}{hint}") from e
    finally:
        keep_freed(device.type == "cpu")
        library_log.set_verbosity(verbosity)
        hub_log.set_verbosity(hub_verbosity)
    if wrong := sorted(info["mismatched_keys"]):
        raise UserError(f"cannot load --model {model}: {wrong[0][0]} is {list(wrong[0][1])} in its "
                        f"files, {list(wrong[0][2])} by its config.json")
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"cannot load --model {model}: {len(missing)} weights of "
                        f"{type(hf).__name__} are not in its files, or in another shape: "
                        f"{missing[0]} for one; it is incomplete, or has the config.json of "
                        "another architecture")
    if text is config and (unused := sorted(info["unexpected_keys"])):
        logger.warning(f"{len(unused)} weights in the files of {model} are not used by "
                       f"{type(hf).__name__}, {unused[0]} for one")
    if getattr(hf.get_decoder(), "layers", None) is None or hf.get_output_embeddings() is None:
        raise UserError(f"--model {model} does not fit: {type(hf).__name__} has no list of decoder "
                        "layers, or no output embedding")
    return tokenizer, hf.to(device).eval()


def stop_ids(hf: PreTrainedModel) -> list[int]:
    """The end tokens of a model's generation config; none where it has none."""
    ends = hf.generation_config.eos_token_id
    return ends if isinstance(ends, list) else [] if ends is None else [ends]
