"""lm-evaluation-harness answers a small local task, word for word what the student answers."""

import json
import os
import subprocess
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from steerloop.export.parity import Logits
from steerloop.model import Model

TASK, FOLDER = "steerloop_mundane", "steerloop/export/tasks"
LIMIT, LONGEST = 12, 24  # questions, tokens of an answer


def checkpoint(model: Path) -> list[str]:
    """Flags by which the harness loads a checkpoint itself."""
    return ["--model", "hf", "--device", "cpu", "--model_args",
            f"pretrained={model},dtype=float32"]


def served(url: str, name: str) -> list[str]:
    """Flags by which it asks a server, four at once."""
    return ["--model", "local-chat-completions", "--model_args",
            f"model={name},base_url={url}/v1/chat/completions,num_concurrent=4,max_length=1024"]


def asked(python: Path, model: list[str], out: Path) -> tuple[float, list[tuple[str, str]]]:
    """The harness's own score of a model (share of exact matches), and its questions and answers.
    """
    done = subprocess.run(
        [python, "-m", "lm_eval", "run", *model, "--apply_chat_template", "--batch_size", "1",
         "--tasks", TASK, "--include_path", FOLDER, "--limit", str(LIMIT), "--gen_kwargs",
         f"max_gen_toks={LONGEST}", "--log_samples", "--output_path", out],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
                          "HF_HOME": str((out / "hf").absolute())},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    (out / "log.txt").write_bytes(done.stdout)
    if done.returncode:
        raise RuntimeError(f"the harness failed: {out / 'log.txt'} says why")
    newest = max(out.rglob("results_*.json"), key=lambda x: x.stat().st_mtime)
    samples = max(out.rglob("samples_*.jsonl"), key=lambda x: x.stat().st_mtime)
    score = json.loads(newest.read_text("utf-8"))["results"][TASK]
    rows = [json.loads(x) for x in samples.read_text("utf-8").split("\n") if x]
    return (next(x for k, x in score.items() if k.startswith("exact_match,")),
            [(x["doc"]["prompt"], x["resps"][0][0].strip()) for x in rows])


@torch.no_grad()
def greedy(logits: Logits, model: Model, prompt: str) -> str:
    """The student's own answer, token by token, nothing cached."""
    ids, taken = model.render(prompt), []
    tokenizer: PreTrainedTokenizerBase = model.tokenizer
    for _ in range(LONGEST):
        token = int(logits(torch.tensor([ids + taken]))[0, -1].argmax())
        if token in model.stop_ids:
            break
        taken.append(token)
    return tokenizer.decode(taken, skip_special_tokens=True).strip()
