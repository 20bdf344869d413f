"""Small random models of the classes that people have, each with a chat template of its family's
kind (in our own words: what matters is how they treat system texts, turns and thought)."""

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GenerationConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    PretrainedConfig,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
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


def config(family: str) -> PretrainedConfig:
    """The configuration of a family by its name."""
    size = {**TEXT, "vocab_size": 262}
    gemma2 = {"query_pre_attn_scalar": 8, "sliding_window": WINDOW, "attn_logit_softcapping": 5.0,
              "final_logit_softcapping": 4.0}  # fmt: skip
    return {
        "gemma2": lambda: Gemma2Config(**size, **gemma2),
        "gemma3-multimodal": multimodal,
        "qwen3": lambda: Qwen3Config(**size),
        "llama3": lambda: LlamaConfig(**size),
        "mistral": lambda: MistralConfig(**size, sliding_window=WINDOW),
        "olmo2": lambda: Olmo2Config(**size),
        "biases": lambda: LlamaConfig(**size, attention_bias=True, mlp_bias=True),
        "granite": lambda: GraniteConfig(**size, logits_scaling=8.0),
        "cohere": lambda: CohereConfig(**size, logit_scale=0.0625),
        "qwen3-moe": lambda: Qwen3MoeConfig(**size, **EXPERTS),
        "qwen2-moe": lambda: Qwen2MoeConfig(**size, **EXPERTS),
        "mixtral": lambda: MixtralConfig(**size, num_local_experts=4),
    }[family]()


TEMPLATE = {"gemma2": TEMPLATES["raises"], "gemma3-multimodal": TEMPLATES["folds"],
            "qwen3": THINKS, "mistral": BRACKETS}  # fmt: skip
DENSE = ["gemma3", "gemma3-multimodal", "gemma2", "qwen3", "llama3", "mistral", "olmo2"]


def save_family(folder: Path, family: str, **options: object) -> Path:
    """Write a small model of a family and its tokenizer; `options` go to `save_pretrained`."""
    if family == "gemma3":
        return save_small(folder)
    torch.manual_seed(0)
    made = config(family)
    hf = (Gemma3ForConditionalGeneration(made) if family == "gemma3-multimodal"
          else AutoModelForCausalLM.from_config(made))  # fmt: skip
    hf.generation_config = GenerationConfig(eos_token_id=STOPS, pad_token_id=0, bos_token_id=BOS)
    hf.save_pretrained(folder, **options)
    build_tokenizer(TEMPLATE.get(family, TEMPLATES["system turn"])).save_pretrained(folder)
    return folder
