"""The gated stack as one LoRA that PEFT and vLLM load.

    s · ((x Aᵀ) ⊙ g) Bᵀ  =  x A'ᵀ B'ᵀ        A' = [A_0; A_1; …],  B' = [s g_0 B_0, s g_1 B_1, …]

Concatenation is exact; adding weighted adapters is not (A and B summed apart have cross terms).
Gates and scale go into B, so rank and alpha are uniform and equal: engines drop per-layer patterns
without a word. Rounds whose gate is 0 are left out. vLLM takes a few ranks only, so zeros fill up
to the next. `--rank K` instead keeps the K largest singular directions of every B'A'.

Letters: r rank of one round, R rounds, K rank kept.
"""

import json
import warnings
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from steerloop import UserError
from steerloop.export.extras import extra
from steerloop.export.names import resolve
from steerloop.export.parity import Parity, against, consumer_base
from steerloop.export.student import Student
from steerloop.loading.files import origin
from steerloop.loading.hub import locate, public_name
from steerloop.lora import GatedLoRALinear

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # as PEFT names them
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM's max_lora_rank may be

Factors = tuple[Float[Tensor, "_ d_in"], Float[Tensor, "d_out _"]]  # A and B, equally many


def factors(layer: GatedLoRALinear, gates: Float[Tensor, "R"]) -> Factors:
    """The open rounds of a layer as one pair in fp32, scale and gates in B; exact."""
    parts = [(layer.slot(k), g) for k, g in enumerate(gates.tolist()) if g]
    return (torch.cat([x["A"].float() for x, _ in parts]),
            torch.cat([layer.scale * g * x["B"].float() for x, g in parts], dim=1))


def truncate(pair: Factors, rank: int) -> tuple[Factors, float]:
    """The best pair of that rank (Eckart and Young 1936), and the squared Frobenius norm lost.

    By QR of both factors, so that the d_out × d_in product is never formed; in float64.
    """
    A, B = (x.double() for x in pair)
    q_out, r_out = torch.linalg.qr(B)
    q_in, r_in = torch.linalg.qr(A.T)
    u, s, vt = torch.linalg.svd(r_out @ r_in.T)
    root = s[:rank].sqrt()
    kept = root[:, None] * vt[:rank] @ q_in.T, q_out @ u[:, :rank] * root
    return (kept[0].float(), kept[1].float()), s[rank:].square().sum().item()


def pad(pair: Factors, rank: int) -> Factors:
    """Zeros up to `rank`."""
    A, B = pair
    more = rank - len(A)
    return (torch.cat([A, A.new_zeros(more, A.shape[1])]),
            torch.cat([B, B.new_zeros(len(B), more)], dim=1))


def allowed(rank: int) -> int:
    """The next rank that vLLM takes. Raises UserError above the largest."""
    next_rank = next((x for x in RANKS if x >= rank), None)
    if next_rank is None:
        raise UserError(f"rank {rank} is above what vLLM serves ({RANKS[-1]}): --rank {RANKS[-1]} "
                        "truncates it and prints what is lost")
    return next_rank


def heard(gates: Float[Tensor, "R"], r: int, rank: int) -> int:
    """The rank of what is heard under these gates, r a round. Raises UserError where every gate is
    0, or `rank` (0: all) is no rank of it."""
    full = int((gates != 0).sum()) * r
    if not full:
        raise UserError("every gate is 0: that is the base, there is nothing to export")
    if rank < 0 or rank > full:
        raise UserError(f"--rank {rank}: the stack has rank {full}; give 1 to {full}, or leave out")
    return full


def ranks(gates: Float[Tensor, "R"], r: int, rank: int) -> tuple[int, int]:
    """The rank of what is heard under these gates (r a round), and that of the file where `rank` is
    asked for (0: all). Raises UserError where every gate is 0, or the rank is too large."""
    full = heard(gates, r, rank)
    return full, allowed(rank or full)


def stack(student: Student, rank: int = 0) -> tuple[dict[str, Factors], float]:
    """Every layer's pair, truncated to `rank` by SVD (0: exact), and the share of the delta
    (Frobenius norm) that is lost. Raises UserError where every gate is 0, or the rank is too
    large."""
    heard(student.gates, student.cfg.r, rank)
    pairs, lost, total = {}, 0.0, 0.0
    for name, layer in student.model.layers.items():
        pair = factors(layer, student.gates)
        if rank:
            total += (pair[1].double() @ pair[0].double()).square().sum().item()
            pair, gone = truncate(pair, rank)
            lost += gone
        pairs[name] = pair
    return pairs, (lost / total) ** 0.5 if total else 0.0


def write_adapter(student: Student, out: Path, rank: int = 0, prefix: str = "") -> dict:
    """Write adapter_model.safetensors and adapter_config.json into `out`; returns what the card
    says: target class, ranks, and the share of the delta (Frobenius norm) that `rank` loses.

    Raises UserError where every gate is 0, a key resolves nowhere, or the rank is too large.
    """
    full, written = ranks(student.gates, student.cfg.r, rank)
    cls, names = resolve(student.model, student.cfg.model, prefix)
    (pairs, error), tensors = stack(student, rank), {}
    for ours, theirs in names.items():
        A, B = pad(pairs[ours], written)
        tensors[f"base_model.model.{theirs}.lora_A.weight"] = A.cpu().contiguous()
        tensors[f"base_model.model.{theirs}.lora_B.weight"] = B.cpu().contiguous()
    save_file(tensors, out / WEIGHTS, {"format": "pt"})
    settings = json.dumps(adapter_config(student, list(names.values()), written), indent=2)
    (out / SETTINGS).write_text(settings, encoding="utf-8")
    return {"cls": cls, "rank": rank or full, "written": written, "error": error}


def adapter_config(student: Student, names: list[str], rank: int) -> dict:
    """What PEFT reads. Modules by their full names: bare suffixes would make untrained adapters in
    other blocks, and in a vision tower."""
    base = locate(student.cfg.model)
    name, revision = public_name(base)
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM",
        "base_model_name_or_path": origin(base) or name,
        "revision": revision, "r": rank, "lora_alpha": rank, "target_modules": names,
        "bias": "none", "lora_dropout": 0.0, "fan_in_fan_out": False, "inference_mode": True,
        "init_lora_weights": True, "modules_to_save": None, "layers_to_transform": None,
        "layers_pattern": None, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False,
        "use_dora": False,
    }  # fmt: skip


def check_adapter(
    student: Student, out: Path, cls: type[PreTrainedModel], tolerance: float
) -> tuple[Parity, Parity | None]:
    """Load it with PEFT onto the base that the student saw, and compare (`tolerance`: nats per
    token); of a 4-bit run also on the original weights, for the card. Raises UserError where PEFT
    is not installed or reads anything but what was written."""
    peft = extra("peft")

    def parity(original: bool) -> Parity:
        hf = consumer_base(student, cls, original)
        with warnings.catch_warnings():  # of what PEFT calls in transformers, not of this adapter
            warnings.simplefilter("ignore", FutureWarning)
            loaded = peft.PeftModel.from_pretrained(hf, str(out)).eval()
        adapted = [x for x in loaded.modules() if isinstance(x, peft.tuners.lora.LoraLayer)]
        if len(adapted) != len(student.model.layers):
            raise UserError(f"PEFT made {len(adapted)} adapted layers of "
                            f"{len(student.model.layers)}: the names are wrong for {cls.__name__}")
        return against(student, loaded, tolerance)

    return parity(False), parity(True) if student.cfg.quant == "nf4" else None
