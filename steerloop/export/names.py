"""Where our layers sit in the class that others load: gemma-3 1B keeps its blocks under
`model.layers`, 4B and up, multimodal, under `model.language_model.layers`.

An adapter whose keys match nothing is served as the base, silently, by more than one engine. So
every key is resolved in the consumer's class before anything is written.
"""


import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from steerloop import UserError
from steerloop.loading.hub import locate
from steerloop.model import Model


def consumer_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The class that transformers, PEFT and vLLM load such a checkpoint as. Raises UserError where
    there is none."""
    for mapping in (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING):
        if type(config) in mapping:
            return mapping[type(config)]
    raise UserError(f"a {config.model_type} model has no class that writes text: nothing to export")


def decoder_path(hf: PreTrainedModel) -> str:
    """Dotted path of the text decoder, e.g. 'model' or 'model.language_model'."""
    decoder = hf.get_decoder()
    return next(name for name, module in hf.named_modules() if module is decoder)


def resolve(
    model: Model, name: str, prefix: str = ""
) -> tuple[type[PreTrainedModel], dict[str, str]]:
    """The consumer's class for the checkpoint `name`, and our layer names → those in that class.

    `prefix` overrides where the blocks are looked for ('model' for the text decoder of a multimodal
    checkpoint served alone). Raises UserError naming the first key that resolves nowhere.
    """
    config = AutoConfig.from_pretrained(locate(name), trust_remote_code=False)
    ours = decoder_path(model.hf)
    classes = [(consumer_class(config), config)]
    if prefix and config.get_text_config() is not config:
        classes.append((type(model.hf), config.get_text_config()))
    for cls, part in classes:
        with torch.device("meta"):
            bare = cls(part)
        theirs = prefix or decoder_path(bare)
        names = {x: f"{theirs}.{x.removeprefix(ours + '.')}" for x in model.layers}
        lost = [y for x, y in names.items() if not _fits(bare, y, model.layers[x].base)]
        if not lost:
            return cls, names
    raise UserError(f"{lost[0]} is no linear layer of {' or '.join(x.__name__ for x, _ in classes)}"
                    f" ({len(lost)} of {len(names)} keys resolve nowhere): leave --key-prefix out, "
                    f"its blocks are under {decoder_path(bare)}")


def _fits(root: nn.Module, path: str, base: nn.Linear) -> bool:
    try:
        module = root.get_submodule(path)
    except AttributeError:
        return False
    return isinstance(module, nn.Linear) and module.weight.shape == base.weight.shape
