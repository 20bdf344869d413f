"""llama.cpp answers greedily, through its own C functions, in an environment without this package.

    build/llama-cpp/bin/python on_llama_cpp.py JOB.json OUT

The Python package carries llama.cpp whole. Its classes load adapters, but no control vectors, and
give no logits; the library below them does both. Structs of options are taken as they come from
their defaults and handed on, so their fields need not be known, but for two: by default attention
is fused and in 16 bits, which costs 2e-6 nats a token; here it is neither.
"""

import ctypes as c
import json
import sys
from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np
import xllamacpp

ROOM = 4096  # bytes for a struct of options, more than any has
NUMBERS = 34  # words at the start of a context's options; flags and what was never written follow
LEFT, HALF, SINGLE = -1, 1, 0  # to the model; ggml's types of numbers


class Options(c.Structure):
    _fields_ = [("bytes", c.c_char * ROOM)]


class Batch(c.Structure):
    _fields_ = [("n", c.c_int32), *((x, c.c_void_p) for x in (
        "token", "embd", "pos", "n_seq_id", "seq_id", "logits"))]


@c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)
def quiet(level, text, _):
    """Errors alone are printed."""
    if level >= 4:
        sys.stderr.write(text.decode(errors="replace"))


lib = c.CDLL(next(str(x) for x in Path(xllamacpp.__file__).parent.glob("xllamacpp*.so")))
for name, result, args in (
    ("llama_log_set", None, [type(quiet), c.c_void_p]),
    ("llama_model_default_params", Options, []),
    ("llama_context_default_params", Options, []),
    ("llama_model_load_from_file", c.c_void_p, [c.c_char_p, Options]),
    ("llama_model_free", None, [c.c_void_p]),
    ("llama_model_get_vocab", c.c_void_p, [c.c_void_p]),
    ("llama_vocab_n_tokens", c.c_int32, [c.c_void_p]),
    ("llama_model_n_embd", c.c_int32, [c.c_void_p]),
    ("llama_model_n_layer", c.c_int32, [c.c_void_p]),
    ("llama_init_from_model", c.c_void_p, [c.c_void_p, Options]),
    ("llama_free", None, [c.c_void_p]),
    ("llama_set_n_threads", None, [c.c_void_p, c.c_int32, c.c_int32]),
    ("llama_adapter_lora_init", c.c_void_p, [c.c_void_p, c.c_char_p]),
    ("llama_set_adapters_lora", c.c_int32,
     [c.c_void_p, c.POINTER(c.c_void_p), c.c_size_t, c.POINTER(c.c_float)]),
    ("llama_set_adapter_cvec", c.c_int32,
     [c.c_void_p, c.POINTER(c.c_float), c.c_size_t, c.c_int32, c.c_int32, c.c_int32]),
    ("llama_get_memory", c.c_void_p, [c.c_void_p]),
    ("llama_memory_clear", None, [c.c_void_p, c.c_bool]),
    ("llama_batch_get_one", Batch, [c.POINTER(c.c_int32), c.c_int32]),
    ("llama_decode", c.c_int32, [c.c_void_p, Batch]),
    ("llama_tokenize", c.c_int32, [c.c_void_p, c.c_char_p, c.c_int32, c.POINTER(c.c_int32),
                                   c.c_int32, c.c_bool, c.c_bool]),
    ("llama_get_logits_ith", c.POINTER(c.c_float), [c.c_void_p, c.c_int32]),
):
    function = getattr(lib, name)
    function.restype, function.argtypes = result, args
lib.llama_log_set(quiet, None)


def options(default=False):
    """Options of a context, by `default`, or such that it computes in fp32. What is left to the
    model is four neighbours, the last of them whether attention is fused; the types of keys and
    values are the two that are HALF."""
    known = lib.llama_context_default_params()
    words = np.frombuffer(known, np.int32)[:NUMBERS]
    auto = np.flatnonzero(words == LEFT)
    here = np.flatnonzero((words[:-1] == HALF) & (words[1:] == HALF))
    if default:
        return known
    if len(here) != 1 or (auto - auto[0]).tolist() != [0, 1, 2, 3]:
        print("llama.cpp: its options are not where they were, so attention is in 16 bits")
    else:
        words[auto[3]] = 0
        words[here[0] : here[0] + 2] = SINGLE
    return known


def steer(context, model, path):
    """Set a control vector, laid out as llama.cpp's own loader lays it out: block 1 first."""
    width, blocks = lib.llama_model_n_embd(model), lib.llama_model_n_layer(model)
    data = np.zeros((blocks - 1, width), np.float32)
    found = {int(x.name.removeprefix("direction.")): x.data for x in gguf.GGUFReader(path).tensors}
    for block, direction in found.items():
        data[block - 1] = direction
    pointer = data.ctypes.data_as(c.POINTER(c.c_float))
    return lib.llama_set_adapter_cvec(context, pointer, data.size, width, min(found), max(found))


def logits_of(context, ids, words):
    """Logits after the last of some tokens."""
    row = (c.c_int32 * len(ids))(*ids)
    if lib.llama_decode(context, lib.llama_batch_get_one(row, len(ids))):
        sys.exit("llama_decode failed")
    return np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (words,)).copy()


def cut(vocabulary, text):
    """A text's tokens, names of special tokens read as such."""
    raw = text.encode()
    room = (c.c_int32 * (len(raw) + 8))()
    count = lib.llama_tokenize(vocabulary, raw, len(raw), room, len(room), False, True)
    return list(room[:count])


def answered(state, prompts, tokens, texts):
    """Greedy tokens (n, t), the logits (n, t, v) that they were taken from, and each text's
    tokens."""
    model = lib.llama_model_load_from_file(state["model"].encode(),
                                           lib.llama_model_default_params())
    context = model and lib.llama_init_from_model(model, options("fused" in state))
    if not context:
        sys.exit(f"llama.cpp does not load {state['model']}")
    lib.llama_set_n_threads(context, 2, 2)
    if "lora" in state:
        adapter = lib.llama_adapter_lora_init(model, state["lora"].encode())
        if not adapter or lib.llama_set_adapters_lora(
                context, (c.c_void_p * 1)(adapter), 1, (c.c_float * 1)(1.0)):
            sys.exit(f"llama.cpp does not load {state['lora']}")
    if "vector" in state and steer(context, model, state["vector"]):
        sys.exit(f"llama.cpp does not take {state['vector']}")
    vocabulary = lib.llama_model_get_vocab(model)
    words, parts = lib.llama_vocab_n_tokens(vocabulary), [cut(vocabulary, x) for x in texts]
    taken = np.zeros((len(prompts), tokens), np.int64)
    logits = np.zeros((len(prompts), tokens, words), np.float32)
    for i, prompt in enumerate(prompts):
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        ids = prompt
        for k in range(tokens):
            logits[i, k] = logits_of(context, ids, words)
            taken[i, k] = logits[i, k].argmax()
            ids = [int(taken[i, k])]
    lib.llama_free(context)
    lib.llama_model_free(model)
    return taken, logits, parts


if __name__ == "__main__":
    job, out = json.loads(Path(sys.argv[1]).read_text("utf-8")), Path(sys.argv[2])
    for name, state in job["states"].items():
        taken, logits, parts = answered(state, job["prompts"], job["tokens"], job.get("texts", []))
        (out / f"{name}.texts.json").write_text(json.dumps(parts))
        np.save(out / f"{name}.tokens.npy", taken)
        np.save(out / f"{name}.logits.npy", logits)
    (out / "versions.json").write_text(json.dumps({
        "xllamacpp": version("xllamacpp"), "llama.cpp": str(getattr(xllamacpp, "BUILD_INFO", ""))}))
