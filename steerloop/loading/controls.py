"""GGUF control vectors, as repeng writes and llama.cpp reads them.

Architecture `controlvector`, tensors `direction.<i>` (d,) float32, added to the output of block i,
counted from 0.
"""

from pathlib import Path

import torch
from gguf import GGMLQuantizationType
from jaxtyping import Float
from torch import Tensor

from steerloop.loading.gguf import Reader

ARCH = "controlvector"
BAKED = "controlvector.baked_by"  # by what ours were multiplied


def from_gguf(path: Path) -> dict[int, Float[Tensor, "d"]]:
    """Block → direction (d,), fp32; of ours at its raw size. Raises ValueError for another kind of
    file, or tensors of another kind."""
    reader = Reader(path)
    said = reader.get_field("general.architecture")
    if said is None or said.contents() != ARCH:
        kind = "none" if said is None else said.contents()
        raise ValueError(f"it is no control vector, but of the architecture {kind!s:.40}")
    found = {}
    for x in reader.tensors:
        index = x.name.removeprefix("direction.")
        if not x.name.startswith("direction.") or not index.isdecimal():
            raise ValueError(f"it holds {x.name!r}, and a control vector direction.<i> alone")
        if x.tensor_type != GGMLQuantizationType.F32 or x.data.ndim != 1:
            raise ValueError(f"its {x.name} is no row of float32")
        found[int(index)] = torch.from_numpy(x.data.copy())
    if not found:
        raise ValueError("it holds no direction")
    size = reader.get_field(BAKED)
    baked = 1.0 if size is None else float(size.contents())
    if not 0 < abs(baked) < float("inf"):
        raise ValueError(f"it says that it was multiplied by {baked}")
    return {b: (v.double() / baked).float() for b, v in found.items()}
