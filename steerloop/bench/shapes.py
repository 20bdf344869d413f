"""Exact shapes of published models, and checkpoints of random weights in those shapes.

The tokenizer is made on the spot from the texts of the data pack, so that prompts are about as long
as they are for published models; digits stay single tokens. Its tokens mean nothing to the weights.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from steerloop.texts.data import PACKAGE

SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
STOPS = [1, 5]
WORDS = 3000  # tokens of the tokenizer; every shape's vocabulary has room for them
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
    "gemma-3-27b": GEMMA | {"hidden_size": 5376, "intermediate_size": 21504,
                            "num_hidden_layers": 62, "num_attention_heads": 32,
                            "num_key_value_heads": 16, "head_dim": 128,
                            "query_pre_attn_scalar": 168, "sliding_window": 1024,
                            "max_position_embeddings": 131072},
    "llama-3-70b": {"vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672,
                    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
                    "max_position_embeddings": 131072, "eos_token_id": STOPS, "bos_token_id": 2},
}  # fmt: skip


def depth(shape: str) -> int:
    """How many blocks a shape has."""
    return SHAPES[shape]["num_hidden_layers"]


def config(shape: str, blocks: int = 0) -> Gemma3TextConfig | LlamaConfig:
    """The model configuration of a shape, cut to its first `blocks` blocks (0: all)."""
    kind = LlamaConfig if shape.startswith("llama") else Gemma3TextConfig
    return kind(**SHAPES[shape] | {"num_hidden_layers": blocks or depth(shape)})


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte pairs learned from the data pack, one token a digit, and a chat template."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True),
         pre_tokenizers.ByteLevel(add_prefix_space=False)])
    core.decoder = decoders.ByteLevel()
    files = [PACKAGE / "data" / x for x in (
        "traits/care_over_authority/prompts.txt", "contexts.txt", "vignettes.jsonl")]
    core.train([str(x) for x in files], trainers.BpeTrainer(
        vocab_size=WORDS, special_tokens=SPECIALS, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>",
        unk_token="<unk>", chat_template=TEMPLATE)


def save_random(
    folder: Path, shape: str, shard: str = "500MB", blocks: int = 0, device: str = "cpu"
) -> Path:
    """Write random bf16 weights of a shape, drawn on a device, in shards, with a tokenizer that can
    chat."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            hf = AutoModelForCausalLM.from_config(config(shape, blocks))
    finally:
        torch.set_default_dtype(default)
    hf.generation_config = GenerationConfig(eos_token_id=STOPS, pad_token_id=0, bos_token_id=2)
    hf.save_pretrained(folder, max_shard_size=shard)
    tokenizer().save_pretrained(folder)
    return folder
