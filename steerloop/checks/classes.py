"""A tiny random model of any causal class of the library, and whether a loaded one is right in
batches: compared with the library's own model, one row at a time and without a cache."""

import inspect
from pathlib import Path

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig, PretrainedConfig

from steerloop.checks.small import (
    BOS,
    STOPS,
    TEMPLATES,
    WIDTH,
    Small,
    build_tokenizer,
    small_config,
    token_batch,
)
from steerloop.kernels.caches import empty_cache
from steerloop.kernels.decode import Rows, generate, greedy
from steerloop.kernels.graphs import Eager
from steerloop.kernels.prefix import follow, paired

HEADS, HEAD = 4, 8
CLOSE = 5e-3  # share of their spread by which logits may differ from those of a row alone
LARGEST = 10_000_000  # parameters
SIZES = (  # names that configs have for a size → what it is here
    dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "lru_width",
                   "word_embed_proj_dim"), WIDTH)
    | dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers"), 4)
    | dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads", "mamba_n_heads",
                     "decoder_attention_heads", "mamba_num_heads", "linear_num_value_heads",
                     "linear_num_heads"), HEADS)
    | dict.fromkeys(("num_key_value_heads", "linear_num_key_heads", "index_n_heads",
                     "num_experts_per_tok", "moe_topk"), 2)
    | dict.fromkeys(("head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
                     "linear_key_head_dim", "linear_value_head_dim", "linear_head_dim",
                     "index_head_dim", "mamba_d_state", "state_size", "ssm_state_size",
                     "chunk_size", "mamba_chunk_size", "query_pre_attn_scalar",
                     "hidden_size_per_layer_input"), HEAD)
    | dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff", "mlp_dim"), 48)
    | dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank",
                     "kv_lora_rank", "mamba_d_head", "mamba_head_dim", "sliding_window",
                     "attention_window_size"), 16)
    | dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts",
                     "laurel_rank", "mamba_dt_rank", "time_step_rank"), 4)
    | dict.fromkeys(("encoder_layers", "n_group", "topk_group", "mamba_n_groups", "n_groups"), 1)
    | dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 262)
    | dict.fromkeys(("max_position_embeddings", "n_positions"), 512)
    | {"encoder_attention_heads": HEADS, "mamba_d_ssm": 2 * WIDTH, "mamba_expand": 2, "expand": 2,
       "index_topk": 512, "num_kv_shared_layers": 0, "initializer_range": 0.3, "pad_token_id": 0,
       "bos_token_id": BOS, "eos_token_id": STOPS[0]}
)  # fmt: skip
LINEAR = ["linear_attention", "linear_attention", "full_attention", "linear_attention"]
HYBRID = ["linear_attention", "hybrid"] * 2
LATENT = {"head_dim": HEAD, "num_key_value_heads": HEADS}  # keys and values of one latent vector
OTHER = {  # what a class wants besides
    "axk1": LATENT, "axk2": LATENT, "deepseek_v2": LATENT, "deepseek_v3": LATENT,
    "deepseek_v32": LATENT, "glm4_moe_lite": LATENT, "glm_moe_dsa": LATENT, "minicpm3": LATENT,
    "longcat_flash": LATENT, "youtu": LATENT, "sarvam_mla": LATENT, "dots3_note": LATENT,
    "dots3_note_text": LATENT, "kimi_linear": LATENT | {"layer_types": LINEAR},
    "bailing_hybrid": LATENT | {"layer_types": LINEAR}, "bamba": {"attn_layer_indices": [2]},
    "granitemoehybrid": {"layer_types": LINEAR}, "jamba": {"attn_layer_period": 2,
                                                            "attn_layer_offset": 1},
    "dots1": {"first_k_dense_replace": 1, "n_shared_experts": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "moshi": {"sliding_window": 512},  # as many as its positions
    "mamba2": {"head_dim": 16, "num_heads": HEADS}, "zaya": {"num_experts_per_tok": 1},
    "zamba": {"layer_types": HYBRID}, "zamba2": {"layer_types": HYBRID, "hybrid_layer_ids": [1, 3]},
    "olmo_hybrid": {"layer_types": LINEAR}, "qwen3_5": {"layer_types": LINEAR},
    "qwen3_5_text": {"layer_types": LINEAR}, "qwen3_5_moe": {"layer_types": LINEAR},
    "qwen3_5_moe_text": {"layer_types": LINEAR}, "qwen3_next": {"layer_types": LINEAR},
    "cohere_compass_text": {"layer_types": ["full_attention", "sliding_attention"] * 2},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": (16, 16)},
}  # fmt: skip


def tiny(name: str) -> PretrainedConfig:
    """A small config of the text decoder of a model type."""
    kind = type(CONFIG_MAPPING[name]().get_text_config())
    known = set(vars(kind())) | set(inspect.signature(kind.__init__).parameters)
    known |= set(kind.attribute_map)
    return kind(**({k: x for k, x in SIZES.items() if k in known} | OTHER.get(name, {})))


def save_class(folder: Path, name: str) -> list[str] | None:
    """Write a random model of a class with a tokenizer. Returns the linear layers of its blocks 1
    to 3, or None where it stays large."""
    config = tiny(name)
    with torch.device("meta"):
        if sum(x.numel() for x in AutoModelForCausalLM.from_config(config).parameters()) > LARGEST:
            return None
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(config)
    for path, x in hf.named_parameters():
        if path.endswith("bias"):
            x.data.normal_(std=0.3)
    hf.generation_config = GenerationConfig(eos_token_id=STOPS, pad_token_id=0, bos_token_id=BOS)
    hf.save_pretrained(folder)
    build_tokenizer(TEMPLATES["system turn"]).save_pretrained(folder)
    blocks = getattr(hf.get_decoder(), "layers", None) or []
    linear = {path.rpartition(".")[2] for block in blocks[1:4] for path, m in block.named_modules()
              if isinstance(m, torch.nn.Linear)}  # fmt: skip
    usual = [x for x in small_config(folder).targets if x in linear]
    return usual or sorted(linear) or ["q_proj"]


PROMPTS = [[BOS, *row[:n].tolist()] for row, n in
           zip(token_batch(6, 60), (60, 5, 33, 33, 17, 2), strict=True)]  # fmt: skip


def worst_apart(s: Small) -> dict[str, float]:
    """The largest difference between rows in batches and each row alone, as a share of the spread:
    of logits, padded on the left and on the right, in the decode loop and in the pairs of the
    forced choice, against the library's own forward pass; and of the gradient."""
    pairs = [(f"gradient {k}", x, y) for k, (x, y) in enumerate(gradients(s))]
    with torch.no_grad():
        alone = [whole(s, p) for p in PROMPTS]
        h = s.model.trunk(*s.model.pad(PROMPTS))
        pairs += [("left", s.model.head(x[-len(p) :]), y)
                  for x, p, y in zip(h, PROMPTS, alone, strict=True)]
        batch = s.model.batch([p[:1] for p in PROMPTS], [p[1:] for p in PROMPTS])
        pairs += [("right", s.model.head(x), y[:-1])
                  for x, y in zip(batch.split(s.model.hidden(batch)), alone, strict=True)]
        pairs += [("decode", x, y) for x, y in decoded(s)]
        pairs += [("pairs", x, y) for x, y in paired_off(s)]
    found: dict[str, float] = {}
    for name, x, y in pairs:
        gap = ((x - y).abs().max() / y.std()).item()
        found[name] = gap if gap != gap else max(gap, found.get(name, 0.0))
    return found


def gradients(s: Small) -> list[tuple[Tensor, Tensor]]:
    """Of a loss that adds up over rows, in one batch and row by row: per live factor."""
    s.stir(0)
    direction = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))

    def gradient(rows: list[list[int]]) -> tuple[Tensor, ...]:
        batch = s.model.batch([p[:1] for p in rows], [p[1:] for p in rows])
        loss = (s.model.hidden(batch) @ direction).square().sum()
        return torch.autograd.grad(loss, s.live(), materialize_grads=True)

    together = gradient(PROMPTS)
    alone = [sum(x) for x in zip(*(gradient([p]) for p in PROMPTS), strict=True)]
    return list(zip(together, alone, strict=True))


def paired_off(s: Small) -> list[tuple[Tensor, Tensor]]:
    """Logits of an ending after prompts that are read in pairs, and those of the whole texts."""
    model, ending = s.model, [40, 41, 42]
    rows = paired(model.trunk, model.pad, empty_cache(model.hf), PAIRS, 0,
                  not model.trunk.stepwise)
    h = follow(model.trunk, rows, ending)
    return [(model.head(x[-3:]), whole(s, [*p, *ending])[-3:])
            for x, p in zip(h, PAIRS, strict=True)]


PAIRS = [[*PROMPTS[0][:20], 50], [*PROMPTS[0][:20], 51], [*PROMPTS[2][:30], 50],
         [*PROMPTS[2][:30], 51]]  # fmt: skip


def whole(s: Small, ids: list[int]) -> Tensor:
    """Logits of a row alone, in one pass of the library's."""
    return s.model.hf(input_ids=torch.tensor([ids])).logits[0].float()


def decoded(s: Small) -> list[tuple[Tensor, Tensor]]:
    """Per row, logits of every token that the decode loop chose, rows leaving now and then, and
    those of the same text read at once."""
    model, seen = s.model, {i: [] for i in range(len(PROMPTS))}
    ids, mask = model.pad(PROMPTS)
    draws = torch.zeros(len(PROMPTS), 12)
    rows = Rows(torch.arange(len(PROMPTS)), ids, mask, draws[:, 0], draws, empty_cache(model.hf))

    def choose(logits: Tensor, u: Tensor) -> Tensor:
        for i, x in zip(rows.index.tolist(), logits, strict=True):
            seen[i].append(x.clone())
        token = greedy(logits, u)
        late = rows.index == len(seen[int(rows.index[0])])  # row 1 ends first, then row 2, …
        return token.where(~late, STOPS[0])

    out = generate(Eager(model.trunk, model.head), rows, choose, STOPS)
    return [(torch.stack(seen[i]), whole(s, p + out[i][:-1])[len(p) - 1 :])
            for i, p in enumerate(PROMPTS)]
