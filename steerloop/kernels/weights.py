"""Find a model and its tokenizer, and load them: dense or 4-bit, safetensors only, no foreign code.

Every way in which that can go wrong ends in a UserError of one line that names the remedy.
"""

from contextlib import ExitStack
from functools import partial
from logging import getLogger
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import logging as hub_log
from loguru import logger
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as library_log

from steerloop import UserError
from steerloop.kernels.files import PACKAGE

HUB = {
    "google": "gemma-2-2b-it gemma-2-9b-it gemma-2-27b-it gemma-3-270m-it gemma-3-1b-it "
    "gemma-3-4b-it gemma-3-12b-it gemma-3-27b-it",
    "Qwen": "Qwen3-0.6B Qwen3-1.7B Qwen3-4B Qwen3-8B Qwen3-14B Qwen3-32B Qwen3-4B-Instruct-2507",
    "meta-llama": "Meta-Llama-3-8B-Instruct Llama-3.1-8B-Instruct Llama-3.2-1B-Instruct "
    "Llama-3.2-3B-Instruct Llama-3.3-70B-Instruct",
}
SHORT = {name.lower(): f"{owner}/{name}" for owner, names in HUB.items() for name in names.split()}
TEXT = {  # names of a multimodal checkpoint → those of its text decoder alone, in both layouts
    r"^(model\.)?language_model\.lm_head\.": "lm_head.",
    r"^(model\.)?language_model\.(model\.)?": "model.",
}
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
FAILURES = (OSError, ValueError, RuntimeError, AttributeError, KeyError, TypeError, ImportError,
            SafetensorError, HFValidationError)


def locate(model: str) -> str:
    """--model → what the library loads: the embedded model, a directory, or a hub id.

    Raises UserError for a path that is not a directory with config, weights and tokenizer.
    """
    if model == "embedded":
        return str(PACKAGE / "tinyworld/model")
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or model.startswith((".", "~")):
            raise UserError(f"--model {model}: there is no such directory")
        return SHORT.get(model.lower(), model)
    needed = {"config.json": ["config.json"], "weights (*.safetensors)": ["*.safetensors"],
              f"tokenizer ({' or '.join(TOKENIZERS)})": TOKENIZERS}
    for what, names in needed.items():
        if not any(any(folder.glob(name)) for name in names):
            raise UserError(f"--model {model}: the directory has no {what}; save model and "
                            "tokenizer there with save_pretrained")
    return str(folder)


def refuse(config: PretrainedConfig, dtype: str) -> None:
    """Raise ValueError for a checkpoint that cannot be trained on in this dtype."""
    if getattr(config, "quantization_config", None):
        raise ValueError("its weights are quantised already: take the original, --quant does it")
    if config.model_type.startswith("gemma") and dtype == "float16":
        raise ValueError("gemma overflows in float16: use --dtype bfloat16 or float32")
    if config.model_type.startswith("gemma") and config.dtype == torch.float16:
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
    name, verbosity = locate(model), library_log.get_verbosity()
    hint = "" if attn == "auto" else f"; --attn auto chooses in the place of {attn}"
    library_log.set_verbosity_error()  # what its report says is raised or logged below
    hub_log.set_verbosity_error()  # as are its retries
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        text = config.get_text_config()
        refuse(text, dtype)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        options = {"key_mapping": TEXT} if text is not config else {}
        if quant == "nf4":
            getLogger("bitsandbytes").setLevel("ERROR")  # it reports kernels that nobody asked for
            from steerloop.kernels.nf4 import Streamed  # dense runs stay clear of bitsandbytes

            options["quantization_config"] = Streamed(device)
        hf, found = AutoModelForCausalLM.from_pretrained(
            name, config=text, dtype=getattr(torch, dtype), trust_remote_code=False,
            attn_implementation=None if attn == "auto" else attn, use_safetensors=True,
            output_loading_info=True, ignore_mismatched_sizes=True, **options,
        )
    except FAILURES as e:
        raise UserError(f"cannot load --model {model}: {_where(model, name)}"
                        f"{shorten(str(e), 300, placeholder=' ...')}{hint}") from e
    finally:
        library_log.set_verbosity(verbosity)
    if wrong := sorted(found["mismatched_keys"]):
        raise UserError(f"cannot load --model {model}: {wrong[0][0]} is {list(wrong[0][1])} in its "
                        f"files, {list(wrong[0][2])} by its config.json")
    if missing := sorted(found["missing_keys"]):
        raise UserError(f"cannot load --model {model}: {len(missing)} weights of "
                        f"{type(hf).__name__} are not in its files, or in another shape: "
                        f"{missing[0]} for one; it is incomplete, or has the config.json of "
                        "another architecture")
    if text is config and (unused := sorted(found["unexpected_keys"])):
        logger.warning(f"{len(unused)} weights in the files of {model} are not used by "
                       f"{type(hf).__name__}, {unused[0]} for one")
    if getattr(hf.get_decoder(), "layers", None) is None or hf.get_output_embeddings() is None:
        raise UserError(f"--model {model} does not fit: {type(hf).__name__} has no list of decoder "
                        "layers, or no output embedding")
    return tokenizer, hf.to(device).eval()


def stop_ids(hf: PreTrainedModel) -> list[int]:
    """The end tokens of a model's generation config; none where it has none."""
    found = hf.generation_config.eos_token_id
    return found if isinstance(found, list) else [] if found is None else [found]


@torch.no_grad()
def check_fit(name: str, model: Any) -> None:
    """Try a wrapped model on a prompt: its logits are the library's own, and rows stay rows.

    `model` has hf, trunk, head, layers, render. Raises UserError where one of that does not hold.
    """

    def rows_kept(layer: nn.Module, inputs: tuple[Tensor], path: str) -> None:
        if inputs[0].ndim != 3:
            raise UserError(f"--model {name} does not fit: {path} flattens its rows, as mixtures "
                            "of experts do; leave it out of --targets")

    ids = torch.tensor([model.render("Hello", "Be brief.")], device=model.device)
    with ExitStack() as hooks:
        for path, layer in model.layers.items():
            watch = layer.register_forward_pre_hook(partial(rows_kept, path=path))
            hooks.callback(watch.remove)
        ours = model.head(model.trunk(ids, ids >= 0))
    theirs = model.hf(input_ids=ids).logits.float()
    if not torch.isfinite(ours).all():
        raise UserError(f"--model {name} does not fit: its logits are not finite; the weights are "
                        "damaged, or --dtype is too narrow for them")
    if not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2):
        raise UserError(f"--model {name} does not fit: its logits are not head(trunk(ids))")


def _where(model: str, name: str) -> str:
    if Path(name).is_dir():
        return ""
    return (f"looked for a directory {model}, in the cache {HF_HUB_CACHE} and on the hub for "
            f"{name}; `hf download {name}` gets it (`hf auth login` first, and the licence at "
            f"https://huggingface.co/{name}, where it is gated). ")
