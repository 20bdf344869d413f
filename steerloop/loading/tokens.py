"""A GGUF file's tokenizer, and the ways in which it may cut text before bytes are merged."""

from pathlib import Path
from typing import Any

from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

SPLITS = {  # how text is cut before its bytes are merged, by the file's name for it
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
                 r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
             r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "tekken": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
              r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
              r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}  # fmt: skip
SAME = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}
WHOLE = ("llama-bpe", "tekken")  # a word that is a token is that token, whatever merges say
WAYS = ("gpt-2", "smollm", *SPLITS)  # every way that is known

Facts = dict[str, Any]  # metadata of a file by key; arrays but short ones are left out


class Unread(ValueError):
    """Why a file is not read, with the remedy."""


def cuts(way: str) -> pre_tokenizers.PreTokenizer:
    """How text is cut in a way that a file names. Raises Unread for one that is not known: its
    tokens would be others."""
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=way not in SPLITS)
    if way == "gpt-2":
        return bytes_
    if way in SPLITS:
        first = pre_tokenizers.Split(Regex(SPLITS[way]), behavior="isolated")
    elif way == "smollm":
        first = pre_tokenizers.Digits(individual_digits=True)
    else:
        raise Unread(f"its tokenizer cuts text in the way {way!r}, which is not known here: take "
                     "the model's safetensors")
    return pre_tokenizers.Sequence([first, bytes_])


def tokenizer_of(file: Path, facts: Facts) -> PreTrainedTokenizerFast:
    """The file's tokenizer as the library makes it, cutting text as the file says. Raises Unread
    for a way to cut that is not known."""
    made = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    backend = made.backend_tokenizer
    if facts.get("tokenizer.ggml.model") == "gpt2":
        way = facts.get("tokenizer.ggml.pre", "")
        way = SAME.get(way, way)
        backend.pre_tokenizer = cuts(way)
        backend.normalizer = normalizers.NFC() if way == "qwen2" else None
        backend.model.ignore_merges = way in WHOLE
    elif not str(facts["general.architecture"]).startswith("gemma"):  # SentencePiece's own
        marks = [normalizers.Replace(" ", "▁")]
        if facts.get("tokenizer.ggml.add_space_prefix", True):  # after special tokens, too
            marks.insert(0, normalizers.Prepend("▁"))
        backend.normalizer = normalizers.Sequence(marks)
        backend.pre_tokenizer = None
    special = {k: x for k, x in made.special_tokens_map.items() if isinstance(x, str)}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=made.chat_template,
                                   clean_up_tokenization_spaces=False, **special)
