"""Small random models of the classes that people have, each with a chat template of its family's
kind (in our own words: what matters is how they treat system texts, turns and thought)."""

from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3nTextConfig,
    GemmaConfig,
    GenerationConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

from steerloop.checks.small import (
    BOS,
    OPENS,
    STOPS,
    TEMPLATES,
    WIDTH,
    WINDOW,
    build_tokenizer,
    save_small,
)

TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": BOS,
    "eos_token_id": STOPS,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 32,
    "decoder_sparse_step": 1,
}
LINEAR = {  # every third block attends, the others are linear
    "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
TURN = "{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}<end>\n{% endfor %}"
THINKS = (  # opens the answer with an empty thought when told not to think
    TURN + "{% if add_generation_prompt %}<turn>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<no thought>\n{% endif %}"
    "{% endif %}"
)
BRACKETS = (  # system text and user text share a pair of brackets; answers end in EOS
    OPENS
    + "{% if messages[0]['role'] == 'system' %}{% set top = messages[0]['content'] + '\n\n' %}"
    + "{% set messages = messages[1:] %}{% else %}{% set top = '' %}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}[ask]{{ top }}{{ m['content'] }}[/ask]"
    "{% set top = '' %}{% else %}{{ m['content'] }}<eos>{% endif %}{% endfor %}"
)


def multimodal() -> Gemma3Config:
    """Gemma 3 from 4B up: a text decoder beside a vision tower."""
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    text = {**TEXT, "query_pre_attn_scalar": 8, "sliding_window": WINDOW, "vocab_size": 262}
    return Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=255,
        boi_token_index=254, eoi_token_index=253,
    )  # fmt: skip


def multimodal_linear() -> Qwen3_5Config:
    """Qwen3.5 as it is on the hub: a text decoder of linear attention beside a vision tower."""
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
              "out_hidden_size": WIDTH, "num_position_embeddings": 16}  # fmt: skip
    return Qwen3_5Config(text_config={**TEXT, **LINEAR, "vocab_size": 262}, vision_config=vision)


def config(family: str) -> PretrainedConfig:
    """The configuration of a family by its name."""
    size = {**TEXT, "vocab_size": 262}
    gemma2 = {"query_pre_attn_scalar": 8, "sliding_window": WINDOW, "attn_logit_softcapping": 5.0,
              "final_logit_softcapping": 4.0}  # fmt: skip
    return {
        "gemma": lambda: GemmaConfig(**size),
        "gemma2": lambda: Gemma2Config(**size, **gemma2),
        "gemma3-multimodal": multimodal,
        "qwen2": lambda: Qwen2Config(**size),
        "qwen3": lambda: Qwen3Config(**size),
        "llama3": lambda: LlamaConfig(**size),
        "smollm2": lambda: LlamaConfig(
            **{**size, "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3},
            tie_word_embeddings=True,
        ),
        "smollm3": lambda: SmolLM3Config(**size, no_rope_layers=[1, 0, 1, 0]),
        "mistral": lambda: MistralConfig(**size, sliding_window=WINDOW),
        "olmo2": lambda: Olmo2Config(**size),
        "biases": lambda: LlamaConfig(**size, attention_bias=True, mlp_bias=True),
        "granite": lambda: GraniteConfig(**size, logits_scaling=8.0),
        "cohere": lambda: CohereConfig(**size, logit_scale=0.0625),
        "qwen3.5": lambda: Qwen3_5TextConfig(**size, **LINEAR),
        "qwen3.5-multimodal": multimodal_linear,
        "gemma3n": lambda: Gemma3nTextConfig(**{**size, "num_hidden_layers": 4},
                                             num_kv_shared_layers=0, sliding_window=WINDOW,
                                             hidden_size_per_layer_input=8, laurel_rank=4,
                                             vocab_size_per_layer_input=262),
        "qwen3-moe": lambda: Qwen3MoeConfig(**size, **EXPERTS),
        "qwen2-moe": lambda: Qwen2MoeConfig(**size, **EXPERTS),
        "mixtral": lambda: MixtralConfig(**size, num_local_experts=4),
    }[family]()


TEMPLATE = {"gemma2": TEMPLATES["raises"], "gemma3-multimodal": TEMPLATES["folds"],
            "qwen3": THINKS, "qwen3.5": THINKS, "smollm3": THINKS, "gemma": TEMPLATES["raises"],
            "mistral": BRACKETS}  # fmt: skip
DENSE = ["gemma3", "gemma3-multimodal", "gemma2", "gemma", "qwen3", "qwen2", "llama3", "smollm2",
         "smollm3", "mistral", "olmo2"]  # fmt: skip
HYBRID = ["qwen3.5", "qwen3.5-multimodal"]
MULTIMODAL: dict[str, type[PreTrainedModel]] = {
    "gemma3-multimodal": Gemma3ForConditionalGeneration,
    "qwen3.5-multimodal": Qwen3_5ForConditionalGeneration,
}


def save_family(folder: Path, family: str, **options: object) -> Path:
    """Write a small model of a family and its tokenizer; `options` go to `save_pretrained`.

    Biases are drawn at random, since the library starts them at 0.
    """
    if family == "gemma3":
        return save_small(folder)
    torch.manual_seed(0)
    made = config(family)
    hf = (MULTIMODAL[family](made) if family in MULTIMODAL
          else AutoModelForCausalLM.from_config(made))  # fmt: skip
    for name, x in hf.named_parameters():
        if name.endswith("_proj.bias"):
            nn.init.normal_(x)
    hf.generation_config = GenerationConfig(eos_token_id=STOPS, pad_token_id=0, bos_token_id=BOS)
    hf.save_pretrained(folder, **options)
    build_tokenizer(TEMPLATE.get(family, TEMPLATES["system turn"])).save_pretrained(folder)
    return folder
