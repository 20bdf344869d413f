"""Whether a loaded model is one that this trainer can work on."""

from typing import Any

import torch
from jaxtyping import Float, Int
from loguru import logger
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from steerloop import UserError
from steerloop.kernels.head import Head
from steerloop.loading.trial import check_rows, watched

OUTSIDE = (TypeError, AttributeError, ValueError, RuntimeError, LookupError, AssertionError)
LEAST, MOST = 12, 32  # tokens of the prompt that a model is tried on
FACTORS = ("logits_scaling", "logit_scale", "lm_head_multiplier", "output_multiplier")


def scale_of(config: PreTrainedConfig) -> float:
    """By what the library multiplies a model's logits. Granite's config has what it divides by."""
    factors = [x for x in (getattr(config, name, None) for name in FACTORS) if x]
    if not factors:
        return 1.0
    return 1 / factors[0] if config.model_type.startswith("granite") else factors[0]


def output_head(hf: PreTrainedModel) -> Head:
    """The frozen output embedding of a model, with its scale and its soft cap if it has them."""
    config = hf.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    return Head(hf.get_output_embeddings().weight, cap, scale_of(config))


def positions(hf: PreTrainedModel) -> int | None:
    """How many tokens a model takes; None where its config does not say."""
    return getattr(hf.config.get_text_config(), "max_position_embeddings", None) or None


def why_other_logits(hf: PreTrainedModel) -> str:
    """What may make the logits of a model more than a product with its output embedding."""
    config = hf.config.get_text_config().to_dict()
    names = [f"{x} {config[x]}" for x in config
             if ("logit" in x or "multiplier" in x) and config[x] not in (None, 1, False)]
    if getattr(hf.get_output_embeddings(), "bias", None) is not None:
        names.append("a bias of the output embedding")
    return f"; of what can change them it has {', '.join(names)}" if names else ""


def check_trainable(hf: PreTrainedModel, checkpointing: bool) -> None:
    """Raises UserError for a model with dropout under gradient checkpointing: the library
    recomputes in training mode only, which would switch the dropout on."""
    config = vars(hf.config.get_text_config())
    dropout = [x for x, share in config.items() if "dropout" in x and share]
    if checkpointing and dropout:
        raise UserError(f"--checkpointing needs training mode, where the {dropout[0]} of this "
                        "model's config.json is active: set it to 0 there, or leave "
                        "--checkpointing out")


@torch.no_grad()
def check_fit(name: str, model: Any) -> Any:
    """Try a wrapped model on a prompt: its logits are the library's own, rows stay rows, and every
    token has an embedding (from here on, of every text). Returns the model.

    `model` is a Chat and has hf, decoder, trunk, head, layers. Raises UserError where one of that
    does not hold.
    """
    model.vocabulary = min(len(model.hf.get_input_embeddings().weight), len(model.head.weight))
    model.known(model.stop_ids)
    if thought := model.rendering.words(("user",), True).end:
        logger.warning(f"the chat template of {name} opens every answer with a thought; "
                       f"{thought.strip()} ends it at once (--think_tokens asks for thought)")
    prompt = model.render("Hello", "Be brief.")
    length = max(LEAST, min(len(prompt), MOST))
    ids = torch.tensor([(prompt * LEAST)[:length]], device=model.device)
    try:
        check_rows(model, ids, check_logits(model, ids)[0])
    except UserError as e:
        raise UserError(f"--model {name} does not fit: {e}") from e
    except OUTSIDE as e:
        if isinstance(e, torch.OutOfMemoryError):
            raise
        why = (str(e).strip() or "no reason given").splitlines()[0]
        if "GatedLoRALinear' object has no" in why:
            why = "it reads the weight of a layer of --targets without calling it, leave that out"
        raise UserError(f"--model {name} does not fit: {type(model.hf).__name__} cannot be read as "
                        f"a decoder with mask and cache ({type(e).__name__}: {why}); take another "
                        "model") from e
    return model


def check_logits(model: Any, ids: Int[Tensor, "1 n"]) -> Float[Tensor, "1 n v"]:
    """A model's logits. Raises UserError unless they are finite, and a product with its embedding.
    """
    with watched(model, b=1):
        ours = model.head(model.trunk(ids, ids >= 0))
    theirs = model.hf(input_ids=ids).logits.float()
    if not torch.isfinite(ours).all():
        raise UserError("its logits are not finite; the weights are damaged, or --dtype is too "
                        "narrow for them")
    if not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2 * theirs.std().item()):
        raise UserError("its logits are not head(trunk(ids)), a product of its last states and its "
                        f"output embedding{why_other_logits(model.hf)}: take another model")
    return ours
