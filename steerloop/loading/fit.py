"""Whether a loaded model is one that this trainer can work on."""

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from steerloop import UserError
from steerloop.kernels.head import Head


def output_head(hf: PreTrainedModel) -> Head:
    """The frozen output embedding of a model, with its soft cap if it has one."""
    cap = getattr(hf.config.get_text_config(), "final_logit_softcapping", None)
    return Head(hf.get_output_embeddings().weight, cap)


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
