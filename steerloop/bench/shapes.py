"""Exact shapes of published models, and checkpoints of random weights in those shapes.

The tokenizer is one of bytes: nothing measured here depends on what the tokens mean.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
STOPS = [1, 5]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n"
    "{{ m['content'] }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
GEMMA = {"vocab_size": 262144, "head_dim": 256, "query_pre_attn_scalar": 256,
         "max_position_embeddings": 32768, "sliding_window": 512, "num_key_value_heads": 1,
         "num_attention_heads": 4, "pad_token_id": 0, "eos_token_id": STOPS, "bos_token_id": 2}
SHAPES = {
    "tiny": GEMMA | {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 1024,
                     "num_hidden_layers": 6, "head_dim": 64},
    "gemma-3-270m": GEMMA | {"hidden_size": 640, "intermediate_size": 2048,
                             "num_hidden_layers": 18},
    "gemma-3-1b": GEMMA | {"hidden_size": 1152, "intermediate_size": 6912,
                           "num_hidden_layers": 26},
    "gemma-3-4b": GEMMA | {"hidden_size": 2560, "intermediate_size": 10240,
                           "num_hidden_layers": 34, "num_attention_heads": 8,
                           "num_key_value_heads": 4, "sliding_window": 1024,
                           "max_position_embeddings": 131072},
}  # fmt: skip


def config(shape: str) -> Gemma3TextConfig:
    """The model configuration of a shape."""
    return Gemma3TextConfig(**SHAPES[shape])


def save_random(folder: Path, shape: str, shard: str = "500MB") -> Path:
    """Write random bf16 weights of a shape in shards, with a tokenizer that can chat."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        hf = Gemma3ForCausalLM(config(shape))
    finally:
        torch.set_default_dtype(default)
    hf.generation_config = GenerationConfig(eos_token_id=STOPS, pad_token_id=0, bos_token_id=2)
    hf.save_pretrained(folder, max_shard_size=shard)
    alphabet = SPECIALS + sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({x: i for i, x in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIALS)
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>",
        unk_token="<unk>", chat_template=TEMPLATE,
    ).save_pretrained(folder)  # fmt: skip
    return folder
