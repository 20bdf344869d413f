"""A chat template from --template, for a model that has none or in the place of its own."""

import re

from loguru import logger
from transformers import PreTrainedTokenizerBase

from steerloop import UserError
from steerloop.texts.data import TEMPLATES, read

BOS = "{#- BOS -#}"
MARKER = re.compile(r"<[|\w]+>")  # as templates write the ends of turns


def give_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Put the template of this name in the place of a tokenizer's own; '' leaves it that.

    Where it says {#- BOS -#}, as the package's do, BOS is written if the tokenizer begins every
    text with it. Raises UserError for a file that cannot be read, or one of the package's whose
    markers are no tokens here.
    """
    if not name:
        return
    template = read(name, str)
    known = tokenizer.get_vocab()
    absent = [x for x in dict.fromkeys(MARKER.findall(template)) if x not in known]
    if name in TEMPLATES.values():
        if absent:
            raise UserError(f"--template {name}: {absent[0]} is no token of this model: take plain")
    elif absent:
        logger.warning(f"--template {name}: {', '.join(absent)} are no tokens of this model, and "
                       "are written in pieces")
    begins = tokenizer("x").input_ids[:1] == [tokenizer.bos_token_id]
    template = template.replace(BOS, "{{- bos_token -}}" if begins else "")
    if tokenizer.chat_template:
        logger.warning(f"--template {name} stands in for the model's own")
    tokenizer.chat_template = template
