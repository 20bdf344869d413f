"""The steering vector for other tools: GGUF as llama.cpp loads it, or safetensors.

Magnitudes are baked: at scale 1 a file steers at `dose` × c*, the calibrated dose. llama.cpp adds
`direction.i` to the output of block i (counted from 0) and has no slot for block 0.
"""

import json
from pathlib import Path
from shlex import quote

import gguf
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from steerloop import UserError
from steerloop.export.parity import Logits, Parity, compare
from steerloop.export.student import Student, c_star, read_vector
from steerloop.loading.controls import ARCH, BAKED
from steerloop.loading.hub import locate, public_name
from steerloop.readouts.states import Vector
from steerloop.steer import steered

GGUF, SAFE = "vector.gguf", "vector.safetensors"  # a vector in its folder
HINTS = {"mistral": "llama", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "mixtral": "llama"}


def baked(student: Student, dose: float) -> Vector:
    """The vector of the student's last round times dose · c*: what steers at scale 1."""
    round = student.rounds
    size = dose * c_star(student.run, round)
    return {b: size * v for b, v in read_vector(student.run, round, student.model.device).items()}


def origin(round: int) -> str:
    """Which model the vector of a round (counted from 1) was extracted from and calibrated on."""
    if round == 1:
        return "the untouched base"
    return (f"the student after round {round - 1}, not the untouched base: its dose is calibrated "
            "on that student")


def note(student: Student, dose: float) -> dict[str, str]:
    """Where a vector comes from and what scale 1 means, as safetensors metadata."""
    size = c_star(student.run, student.rounds)
    return {"format": "pt", "steerloop": json.dumps({
        "schema": 1, "model": public_name(locate(student.cfg.model))[0],
        "model_sha256": student.weights, "run": student.run.name, "round": student.rounds,
        "extracted_from": origin(student.rounds),
        "added_to": "the output of each decoder block named, at every position",
        "scale_1": f"{dose:g} x c*", "c_star": size, "raw": f"divide by {dose * size!r}",
        "target_kl_nats": student.cfg.target_kl})}


def write_vector(vector: Vector, path: Path, metadata: dict[str, str]) -> None:
    """safetensors: `block.<i>` → (d,) fp32."""
    save_file({f"block.{b}": v.cpu().contiguous() for b, v in vector.items()}, path, metadata)


def load_vector(path: Path) -> Vector:
    """What `write_vector` wrote."""
    with safe_open(path, "pt") as file:
        return {int(k.removeprefix("block.")): file.get_tensor(k) for k in file.keys()}  # noqa: SIM118


def hint(model_type: str, known: set[str]) -> str:
    """llama.cpp's name of an architecture. Raises UserError where it has none."""
    name = HINTS.get(model_type, model_type.removesuffix("_text").replace("_", ""))
    if name not in known:
        raise UserError(f"llama.cpp has no architecture for a {model_type} model: --to vector "
                        "writes safetensors")
    return name


def check_gguf(blocks: list[int], model_type: str) -> str:
    """llama.cpp's name of the architecture. Raises UserError where it has none, or cannot steer one
    of these blocks."""
    if 0 in blocks:
        raise UserError("llama.cpp cannot steer block 0, and this vector does: --to vector keeps "
                        "it, or extract with --steer_blocks from 1 up")
    return hint(model_type, set(gguf.MODEL_ARCH_NAMES.values()))


def blocks_of(path: Path) -> list[int]:
    """The blocks of a run's vector, from its header. Raises UserError where it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            return sorted(int(k.removeprefix("block.")) for k in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as e:
        raise UserError(f"{path} is damaged ({e}): delete it, --resume makes it anew") from e


def flags(path: Path, blocks: list[int]) -> str:
    """How llama.cpp is asked for it, at scale 1, as typed in a shell. It takes what follows a colon
    for the scale and commas for the next file: then the flag without a scale, and quotes."""
    text = str(path)
    field = '"' + text.replace('"', '""') + '"' if "," in text or '"' in text else text
    flag = (f"--control-vector {quote(field)}" if ":" in text else
            f"--control-vector-scaled {quote(f'{field}:1')}")
    return f"{flag} --control-vector-layer-range {blocks[0]} {blocks[-1]}"


def write_gguf(
    vector: Vector, path: Path, model_type: str, origin: str, size: float = 1.0
) -> None:
    """GGUF control vector: `direction.<i>` (d,) fp32; `origin` says of which model, `size` by what
    it was multiplied, dose x c*, which `train --vector` divides by again. Raises UserError for a
    vector that llama.cpp cannot load."""
    name = check_gguf(sorted(vector), model_type)
    writer = gguf.GGUFWriter(path, ARCH)
    writer.add_description(f"extracted from {origin}")
    writer.add_string(f"{ARCH}.model_hint", name)
    writer.add_uint32(f"{ARCH}.layer_count", len(vector))
    writer.add_float64(BAKED, size)
    for b, v in sorted(vector.items()):
        writer.add_tensor(f"direction.{b}", v.float().cpu().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load_gguf(path: Path) -> Vector:
    """Read a GGUF control vector with the `gguf` package. Raises UserError for another kind."""
    reader = gguf.GGUFReader(path)
    arch = reader.get_field("general.architecture")
    if arch is None or arch.contents() != ARCH:
        raise UserError(f"{path} is no control vector")
    return {int(x.name.removeprefix("direction.")): torch.from_numpy(x.data.copy()).float()
            for x in reader.tensors}


def steered_logits(student: Student, vector: Vector) -> Logits:
    """Logits of the model that the vector was extracted from, steered at scale 1."""
    model = student.model
    vector = {b: v.to(model.device) for b, v in vector.items()}

    @torch.no_grad()
    def logits(ids: Tensor) -> Float[Tensor, "1 t v"]:
        ids = ids.to(model.device)
        with model.gates(model.gates.before(student.rounds - 1)), steered(model, vector, 1.0):
            return model.head(model.trunk(ids, ids >= 0))

    return logits


def check_vector(student: Student, vector: Vector, loaded: Vector, tolerance: float) -> Parity:
    """The model steered by what was read back against the model steered by what was written;
    `tolerance` in nats per token."""
    return compare(student, steered_logits(student, vector),
                   steered_logits(student, loaded), tolerance)
