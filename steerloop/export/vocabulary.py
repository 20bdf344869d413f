"""A tokenizer as the metadata of a GGUF file: bytes merged in one of the ways that llama.cpp knows
by name, or pieces as SentencePiece scores them.

What is said here is read back by `loading.gguf`, and both tokenizers are compared on texts of the
run: a tokenizer that a file cannot say is refused.
"""

import json
import re
from typing import Any

from transformers import PreTrainedTokenizerBase

from steerloop import UserError
from steerloop.loading.tokens import WAYS, WHOLE, cuts

NORMAL, UNKNOWN, CONTROL, OWN, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # kinds of tokens
PIECE = re.compile(r"<0x[0-9A-F]{2}>")  # how SentencePiece writes a byte
REMEDY = "--to merged has the tokenizer's own files"


def vocabulary(tokenizer: PreTrainedTokenizerBase, size: int, ends: list[int]) -> dict[str, Any]:
    """Metadata of a tokenizer for a model of `size` embeddings whose answers end in `ends`.

    Raises UserError for a tokenizer that a GGUF file cannot say.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole = json.loads(backend.to_str()) if backend is not None else {"model": {"type": "slow"}}
    core = whole["model"]
    if core["type"] != "BPE":
        raise UserError(f"a GGUF file cannot hold a {core['type']} tokenizer: {REMEDY}")
    tokens = {x: i for x, i in tokenizer.get_vocab().items() if i < size}
    by_id = {i: x for x, i in tokens.items()}
    unknown = None if core.get("unk_token") is None else tokens.get(core["unk_token"])
    added = {x["id"]: x["special"] for x in whole["added_tokens"]}

    def kind(i: int) -> int:
        if i not in by_id:
            return UNUSED
        if core.get("byte_fallback") and PIECE.fullmatch(by_id[i]):
            return BYTE
        if i == unknown:
            return UNKNOWN
        return NORMAL if i not in added else CONTROL if added[i] else OWN

    said = {"tokenizer.ggml.tokens": [by_id.get(i, f"[PAD{i}]") for i in range(size)],
            "tokenizer.ggml.token_type": [kind(i) for i in range(size)]}
    merges = [x.split(" ", 1) if isinstance(x, str) else x for x in core["merges"]]
    if not merges:  # a list in a file has an element
        raise UserError(f"a GGUF file cannot hold a tokenizer that merges nothing: {REMEDY}")
    said |= pieces(whole, merges, said["tokenizer.ggml.tokens"]) if core.get("byte_fallback") else (
        bytes_of(backend, whole, merges))
    return said | specials(tokenizer, size, ends)


def bytes_of(backend: Any, whole: dict[str, Any], merges: list[list[str]]) -> dict[str, Any]:
    """What merges bytes. Raises UserError where text is cut in no way that has a name."""
    found = _plain(whole["pre_tokenizer"])
    way = next((x for x in WAYS if _plain(json.loads(cuts(x).__getstate__())) == found), None)
    normal = "NFC" if way == "qwen2" else None
    if way is None or (whole["normalizer"] or {}).get("type") != normal:
        raise UserError("its tokenizer cuts text in a way for which GGUF files have no name, or "
                        f"none that is known here: {REMEDY}")
    if whole["model"].get("ignore_merges", False) is not (way in WHOLE):
        raise UserError(f"its tokenizer merges words otherwise than llama.cpp's {way}: {REMEDY}")
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": way,
            "tokenizer.ggml.merges": [" ".join(x) for x in merges]}


def _plain(cut: Any) -> Any:
    """A way to cut without what only concerns offsets, lists of one as their one."""
    if not isinstance(cut, dict):
        return cut
    parts = [_plain(x) for x in cut.get("pretokenizers", [])]
    if len(parts) == 1:
        return parts[0]
    own = {k: x for k, x in cut.items() if k not in ("trim_offsets", "pretokenizers")}
    return own | {"parts": parts}


def pieces(whole: dict[str, Any], merges: list[list[str]], tokens: list[str]) -> dict[str, Any]:
    """What joins pieces: the earlier it is joined, the higher its score."""
    first: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        first.setdefault("".join(pair), rank)
    scores = [float(-first.get(x, len(merges))) for x in tokens]
    return {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.scores": scores,
            "tokenizer.ggml.add_space_prefix": "Prepend" in json.dumps(whole["normalizer"])}


def specials(tokenizer: PreTrainedTokenizerBase, size: int, ends: list[int]) -> dict[str, Any]:
    """Which of `size` tokens begin, end and fill, and the chat template. Raises UserError for more
    ends than a file can name."""
    said: dict[str, Any] = {
        "tokenizer.ggml.add_bos_token": tokenizer.bos_token_id is not None
        and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]}
    named = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id,
             "padding": tokenizer.pad_token_id, "unknown": tokenizer.unk_token_id}
    more = [x for x in ends if x != named["eos"]]
    if named["eos"] not in ends and more:  # what the model ends with goes before a name
        named["eos"] = more.pop(0)
    if len(more) > 1:
        raise UserError(f"its answers end in {len(ends)} tokens, and a GGUF file names two: "
                        f"{REMEDY}")
    named["eot"] = more[0] if more else None
    said |= {f"tokenizer.ggml.{k}_token_id": x for k, x in named.items()
             if x is not None and x < size}
    if tokenizer.chat_template:
        said["tokenizer.chat_template"] = tokenizer.chat_template
    return said
