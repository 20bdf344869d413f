"""4-bit weights as they come from the file: transformers' loader quantises each on arrival.

Only 4-bit runs import this module, since the import of bitsandbytes prints and takes seconds.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import HfQuantizer, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from steerloop.kernels.nf4 import NF4

METHOD = "steerloop_nf4"


class Streamed(QuantizationConfigMixin):
    """Asks transformers' loader to quantise on arrival, on `device`."""

    def __init__(self, device: torch.device) -> None:
        self.quant_method, self.device = METHOD, device


class _Pack(ConversionOps):
    def convert(
        self, input_dict: dict[str, Any], model: PreTrainedModel, missing_keys: set[str], **_: Any
    ) -> dict[str, Tensor]:
        """One weight as read → an NF4 in the place of its linear layer; nothing left to assign.

        A weight of another shape than its layer is as good as missing, and is reported as that.
        """
        ((name, weight),) = input_dict.items()
        path, dense = name.removesuffix(".weight"), weight[0] if type(weight) is list else weight
        linear = model.get_submodule(path)
        if dense.shape == linear.weight.shape:
            model.set_submodule(path, NF4(dense, linear.bias))
            missing_keys.discard(name)
        return {}


@register_quantizer(METHOD)
class Streaming(HfQuantizer):
    """Quantises each linear layer of the decoder's blocks as its weight comes from the file.

    So one full-precision matrix is on the device at a time; the library reads such checkpoints
    tensor by tensor.
    """

    quantized_element_size = 0.5

    def update_device_map(self, device_map: Any) -> dict[str, torch.device]:
        return {"": self.quantization_config.device}

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **_: Any) -> bool:
        path, _, kind = param_name.rpartition(".")
        block = any(x.isdigit() for x in path.split("."))  # numbered, unlike head and embedding
        return kind == "weight" and block and isinstance(model.get_submodule(path), nn.Linear)

    def get_quantize_ops(self) -> ConversionOps:
        return _Pack()

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        self.remove_quantization_config(model)

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False
