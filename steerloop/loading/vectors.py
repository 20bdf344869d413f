"""A steering vector from files, in the place of an extraction.

    .safetensors   `block.<i>` (d,): what a run folder and `export --to vector` hold
    .gguf          control vectors of llama.cpp and repeng: `direction.<i>` (d,), float32
    .pt            persona vectors: one tensor (layers + 1, d); row i is hidden_states[i]

`block.<i>` and `direction.<i>` are added to the output of block i, counted from 0. hidden_states[0]
is what goes into block 0, so row i of a .pt file belongs to block i - 1, and row 0 to none.

What `export` wrote says by what its vector was multiplied (c*, and --dose). It is divided by that
again, so the vector, and with it c*, is the one of the run. All else counts as it is in the file.

Letters: d width.
"""

import hashlib
import io
import json
import pickle
from textwrap import shorten
from typing import Any

import torch
from jaxtyping import Float
from loguru import logger
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from steerloop import UserError
from steerloop.loading.files import FAILURES
from steerloop.texts.data import Given
from steerloop.texts.printable import printable

ENDS = (".safetensors", ".gguf", ".pt")
ALONE = "save the tensor alone: torch.save(vectors, path)"

Directions = dict[int, Float[Tensor, "d"]]  # by block, fp32, on the CPU


def given(files: list[Given], blocks: list[int], hf: Any) -> Directions:
    """The weighted sum of what some files have for these blocks of a model, fp32, on its device.

    Raises UserError, naming the file, where one is damaged, of another kind, not what it was when
    the run began, or of another model: other blocks, another width.
    """
    decoder = hf.get_decoder()
    depth, width = len(decoder.layers), hf.get_input_embeddings().weight.shape[-1]
    total: Directions = {}
    for file in files:
        if depth - 1 in blocks and file.path.suffix.lower() == ".pt":
            logger.warning(f"--vector {file.path}: of block {depth - 1} such files have what is "
                           "behind the final norm, which is another space: steer an earlier one")
        for b, v in fitting(file, blocks, depth, width).items():
            total[b] = total[b] + file.weight * v if b in total else file.weight * v
    for b, v in total.items():
        if not v.any() or not v.isfinite().all():
            names = ", ".join(x.path.name for x in files)
            what = "0" if not v.any() else "no finite number"
            raise UserError(f"--vector {names}: the sum is {what} in block {b}: nothing can steer "
                            "there; change the weights, or leave the block out of --steer_blocks")
    return {b: v.to(hf.device) for b, v in total.items()}


def fitting(file: Given, blocks: list[int], depth: int, width: int) -> Directions:
    """What a file has for these blocks of a model of so many blocks, d wide. Raises UserError."""
    found = directions(file, depth, width)
    other = sorted(b for b in found if not 0 <= b < depth)
    if other:
        raise UserError(f"--vector {file.path}: it has a direction for block {other[-1]}, and this "
                        f"model has blocks 0 to {depth - 1}: it was made for another one")
    if absent := [b for b in blocks if b not in found]:
        there = " ".join(map(str, sorted(found)))
        raise UserError(f"--vector {file.path}: it has no direction for the steered blocks "
                        f"{absent}; --steer_blocks {there} are those it has")
    for b in blocks:
        if found[b].shape != (width,):
            raise UserError(f"--vector {file.path}: its direction of block {b} has "
                            f"{' x '.join(map(str, found[b].shape))} numbers, and this model is "
                            f"{width} wide: it was made for another one")
        if not found[b].isfinite().all():
            raise UserError(f"--vector {file.path}: its direction of block {b} has numbers that "
                            "are not finite: make it anew")
    return {b: found[b] for b in blocks}


def directions(file: Given, depth: int, width: int) -> Directions:
    """All that a file has, at its raw size. Raises UserError where it cannot be read."""
    end = file.path.suffix.lower()
    try:
        raw = file.path.read_bytes()
        if hashlib.sha256(raw).hexdigest() != file.sha256:
            raise ValueError("it is not what it was when the run began: put it back")
        if end == ".safetensors":
            return from_safetensors(raw)
        if end == ".pt":
            return from_persona(raw, depth, width)
        if end != ".gguf":
            raise ValueError(f"its name ends in none of {', '.join(ENDS)}, which are read here")
        from steerloop.loading.controls import from_gguf

        return from_gguf(file.path)
    except FAILURES as e:
        why = shorten(printable(str(e)), 300, placeholder=" ...") or type(e).__name__
        raise UserError(f"cannot read --vector {file.path}: {why}") from e


def from_safetensors(raw: bytes) -> Directions:
    """`block.<i>` → (d,); of an export, divided by what its note says. Raises ValueError for other
    names."""
    found = {}
    for name, x in load_safetensors(raw).items():
        if not name.removeprefix("block.").isdecimal() or not name.startswith("block."):
            raise ValueError(f"it holds {name!r}, and a vector of ours block.<i> alone")
        found[int(name.removeprefix("block."))] = plain(x, name)
    baked = size_of(note_of(raw))
    return {b: (x.double() / baked).float() for b, x in found.items()}


def note_of(raw: bytes) -> dict[str, Any]:
    """What a safetensors file of ours says of itself; {} of another one."""
    length = int.from_bytes(raw[:8], "little")
    said = json.loads(raw[8 : 8 + length]).get("__metadata__", {})
    return json.loads(said.get("steerloop", "{}"))


def size_of(note: dict[str, Any]) -> float:
    """By what an exported vector was multiplied: dose x c*; 1 where the note does not say. Raises
    ValueError for what is no size."""
    said = str(note.get("raw", "divide by 1")).removeprefix("divide by ")
    size = float(said)
    if not 0 < abs(size) < float("inf"):
        raise ValueError(f"its note says that it was multiplied by {said:.40}")
    return size


def from_persona(raw: bytes, depth: int, width: int) -> Directions:
    """One tensor (layers + 1, d), row i of hidden_states[i] → by block. Nothing but tensors is ever
    unpickled. Raises ValueError for anything else."""
    try:
        x = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, *FAILURES) as e:
        raise ValueError(f"it holds more than tensors, or is damaged, so it is not opened: {ALONE}"
                         ) from e
    if type(x) is nn.Parameter:
        x = x.data
    if type(x) is not Tensor:
        raise ValueError(f"it holds a {type(x).__name__}, no tensor: {ALONE}")
    if x.shape != (depth + 1, width):
        shape = " x ".join(map(str, x.shape)) or "no"
        raise ValueError(f"it has {shape} numbers, and for this model of {depth} blocks, {width} "
                         f"wide, layers + 1 = {depth + 1} rows of {width} are needed: it was made "
                         "for another one")
    return {i - 1: plain(x[i], f"row {i}") for i in range(1, depth + 1)}


def plain(x: Tensor, name: str) -> Float[Tensor, "..."]:
    """A tensor (d,) of numbers as fp32. Raises ValueError where it holds none."""
    if not x.is_floating_point() or x.layout != torch.strided or x.device.type != "cpu":
        raise ValueError(f"{name} holds {str(x.dtype).removeprefix('torch.')}, no plain floating "
                         "numbers")
    return x.detach().float()
