"""Real consumers load our exports, and what they answer is compared with the student.

    python -m steerloop.checks.consumers [llama-cpp] [vllm] [lm-eval]

Each program has an environment of its own under build/, made once. Where it does not install, one
line says so. A model's run, two short rounds in fp32, is kept there, too.

Every program answers PROMPTS greedily; the student reads what it answered, so that both say a
distribution at every token: KL(student ‖ program), nats a token, and the share of tokens that the
student would have taken, too. The base alone takes the same road, so what it shows there is the
program's own rounding.
"""

import json
import re
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerloop import UserError
from steerloop.checks.consumers import harness
from steerloop.checks.consumers.environments import NEEDS, SURPLUS
from steerloop.config import parse
from steerloop.export.__main__ import main as export
from steerloop.export.merged_gguf import MIXED
from steerloop.export.parity import Logits, student_logits, widened
from steerloop.export.student import Student, config_of, open_student
from steerloop.export.vectors import baked, steered_logits
from steerloop.loading.files import source
from steerloop.loading.hub import EMBEDDED, SHORT, kept_folder, locate
from steerloop.texts.data import read_data
from steerloop.train import train

WORK, HERE = Path("build/consumers"), Path(__file__).parent
MODELS = ("smollm2-135m", EMBEDDED)
PROMPTS, TOKENS = 20, 16
EXACT = 1e-6  # mean KL, nats a token, that fp32 files may differ by; the maximum: 20 times
SHORT_RUN = (
    "--quant none --dtype float32 --device cpu --rounds 2 --n_prompts 4 --n_keep 4 --walk_rows 4 "
    "--epochs 1 --dose_prompts 2 --dose_tokens 8 --max_new_tokens 16 --max_contexts 8 "
    "--think_tokens 8 --every 25 --no_filter --bootstrap 100 --target_kl 0.3 --said_prompts 6 "
    "--said_pairs 2 --u0_items 4")


class State(NamedTuple):
    """What a program loads, by its own name for each file, and which model that has to be."""

    files: dict[str, Path]
    of: str  # base, student or steered


class Found(NamedTuple):
    """How a state in a program differs from what it has to be."""

    agrees: float  # share of greedy tokens
    mean_kl: float  # nats a token
    max_kl: float


def environment(name: str) -> Path | None:
    """The Python of a program's environment, made unless it is there; None, after a line, where it
    does not install."""
    folder = Path("build") / name
    python = folder / "bin/python"
    done = folder / "installed"
    if not done.is_file():
        venv.create(folder, with_pip=True, clear=True)
        pip = [python, "-m", "pip", "-q", "--disable-pip-version-check"]
        made = subprocess.run([*pip, "install", *NEEDS[name]])
        if made.returncode:
            print(f"{name}: skipped, it does not install here ({' '.join(NEEDS[name])})")
            return None
        if SURPLUS.get(name):
            subprocess.run([*pip, "uninstall", "-y", *SURPLUS[name]], check=True)
        done.write_text("")
    return python.absolute()


def run_of(model: str) -> Path:
    """A short run on a model, made unless it is there. Raises UserError where the model is not."""
    if model in SHORT and kept_folder(model) is None:
        raise UserError(f"{model} is not here: python -m steerloop.models fetch {model}")
    folder = WORK / "runs" / model
    known = [x.parent for x in sorted(folder.glob("*/summary.json"))]
    if known:
        return known[0]
    return train(replace(parse(["--model", model, *SHORT_RUN.split()]), runs=str(folder)))


def exported(run: Path, name: str, *flags: str) -> Path:
    """An export of a run's last round, made unless it is there."""
    out = run / "exports" / name
    if not out.exists():
        export([str(run), "--round", "2", "--out", str(out), *flags])
    return out


def llama_cpp(run: Path) -> dict[str, State]:
    """What llama.cpp loads: a base in fp32, with adapter and with vector, and the merged file."""
    base = exported(run, "gguf-base", "--to", "gguf", "--gates", "0", "--dtype", "float32")
    lora = exported(run, "gguf-lora", "--to", "gguf-lora")
    vector = exported(run, "gguf-vector", "--to", "gguf-vector", "--round", "1")
    merged = exported(run, "gguf", "--to", "gguf", "--dtype", "float32")
    eight = ("--to", "gguf", "--dtype", "q8_0", "--tolerance", "9")
    small = exported(run, "gguf-q8", *eight)
    small_base = exported(run, "gguf-base-q8", *eight, "--gates", "0")
    model = base / "model.gguf"
    fetched = source(locate(config_of(run).model))  # blocks of 4 bits, where it is such a file
    files = {} if fetched.is_dir() else {
        "base as fetched": State({"model": fetched}, "base"),
        "gguf-lora as fetched": State({"model": fetched, "lora": lora / "adapter.gguf"}, "student")}
    return {"base": State({"model": model}, "base"),
            "gguf-lora": State({"model": model, "lora": lora / "adapter.gguf"}, "student"),
            "gguf": State({"model": merged / "model.gguf"}, "student"),
            "gguf-vector": State({"model": model, "vector": vector / "vector.gguf"}, "steered"),
            "base by default": State({"model": model, "fused": model}, "base"),
            "base q8_0": State({"model": small_base / "model.gguf"}, "base"),
            "gguf q8_0": State({"model": small / "model.gguf"}, "student"), **files}


def vllm(run: Path) -> dict[str, State]:
    """What vLLM loads: a base with and without adapter, and the merged checkpoint."""
    base = exported(run, "base", "--to", "merged", "--gates", "0")
    peft = exported(run, "peft", "--to", "peft")
    merged = exported(run, "merged", "--to", "merged")
    return {"base": State({"model": base}, "base"),
            "peft": State({"model": base, "lora": peft}, "student"),
            "merged": State({"model": merged}, "student")}


ROUNDED = (  # shown, not judged
    "base by default", "base q8_0", "gguf q8_0", "base as fetched", "gguf-lora as fetched")

STATES: dict[str, Callable[[Path], dict[str, State]]] = {"llama-cpp": llama_cpp, "vllm": vllm}


def prompts_of(student: Student) -> list[list[int]]:
    """The trait's prompts as a chat, as ids. Raises UserError where there are too few."""
    texts = read_data(replace(student.cfg, n_prompts=PROMPTS)).prompts
    if len({*texts}) < PROMPTS:
        raise UserError(f"{len({*texts})} prompts of {PROMPTS} for {student.cfg.model}")
    return [student.model.render(x) for x in texts]


def models_of(run: Path) -> tuple[Student, dict[str, Logits]]:
    """The student in fp32, and the logits of what a state has to be."""
    student = widened(open_student(run, "2"))
    first = replace(student, rounds=1)
    return student, {
        "base": student_logits(student, 0 * student.gates),
        "student": student_logits(student, student.gates),
        "steered": steered_logits(first, baked(first, 1.0))}


@torch.no_grad()
def compared(
    logits: Logits, prompts: list[list[int]], taken: Int[Tensor, "n t"],
    theirs: Float[Tensor, "n t v"],
) -> Found:
    """Ours read what they answered: agreement and KL(ours ‖ theirs) at every token of it."""
    kls, same = [], []
    for prompt, tokens, row in zip(prompts, taken, theirs, strict=True):
        ids = torch.tensor([prompt + tokens[:-1].tolist()])
        ours = logits(ids)[0, len(prompt) - 1 :].double()
        same.append((ours.argmax(-1) == tokens).double())
        a = ours.log_softmax(-1)
        b = row.double()[:, : a.shape[1]].log_softmax(-1)
        kls.append((a.exp() * (a - b)).sum(-1))
    kl = torch.cat(kls)
    return Found(torch.cat(same).mean().item(), kl.mean().item(), kl.max().item())


def ask(
    program: str, python: Path, states: dict[str, State], prompts: list[list[int]], out: Path,
    texts: list[str],
) -> dict[str, str]:
    """Have a program answer in each state, and cut texts where it can, into `out`; returns its
    versions."""
    out.mkdir(parents=True, exist_ok=True)
    files = {k: {x: str(p.absolute()) for x, p in s.files.items()} for k, s in states.items()}
    job = {"prompts": prompts, "tokens": TOKENS, "states": files, "texts": texts}
    (out / "job.json").write_text(json.dumps(job), encoding="utf-8")
    script = HERE / f"on_{program.replace('-', '_')}.py"
    subprocess.run([python, script, out / "job.json", out], check=True)
    return json.loads((out / "versions.json").read_text("utf-8"))


def gate(program: str, python: Path, model: str) -> bool:
    """Compare every state of a model in a program; whether all that is exact in fp32 is equal."""
    try:
        run = run_of(model)
        states = STATES[program](run)
    except (UserError, SystemExit) as e:
        print(f"{program}, {model}: skipped, {e}", flush=True)
        return True
    student, ours = models_of(run)
    prompts, out = prompts_of(student), WORK / "answers" / f"{program}-{model}"
    tokenizer, fine = student.model.tokenizer, True
    texts = [*map(tokenizer.decode, prompts), MIXED]
    print(f"{program}, {model}: {ask(program, python, states, prompts, out, texts)}")
    for name, state in states.items():
        taken, theirs = (torch.from_numpy(np.load(out / f"{name}.{x}.npy"))
                         for x in ("tokens", "logits"))
        found = compared(ours[state.of], prompts, taken, theirs)
        if program == "llama-cpp":
            cut = json.loads((out / f"{name}.texts.json").read_text("utf-8"))
            same = [x == tokenizer(y, add_special_tokens=False).input_ids
                    for x, y in zip(cut, texts, strict=True)]
            print(f"{program}, {model}, {name}: {sum(same)} of {len(same)} texts are cut alike")
            fine &= all(same)
        exact = found.mean_kl <= EXACT and found.max_kl <= 20 * EXACT
        fine &= exact or name in ROUNDED
        far = compared(ours["base"], prompts, taken, theirs).mean_kl
        print(f"| {program} | {model} | {name} | {found.agrees:.1%} | {found.mean_kl:.1e} | "
              f"{found.max_kl:.1e} | {far:.1e} |", flush=True)
    return fine


def harness_gate(python: Path, model: str) -> bool:
    """The harness on base and merged checkpoint, and on both as they are served; whether every
    answer is the student's."""
    try:
        run = run_of(model)
        states = {"base": exported(run, "base", "--to", "merged", "--gates", "0"),
                  "merged": exported(run, "merged", "--to", "merged")}
    except (UserError, SystemExit) as e:
        print(f"lm-eval, {model}: skipped, {e}", flush=True)
        return True
    student, ours = models_of(run)
    asks = {k: harness.checkpoint(x) for k, x in states.items()}
    with serving(run) as url:
        asks |= {f"{x}, served": harness.served(url, x) for x in ("base", "student")}
        fine = True
        for name, flags in asks.items():
            out = WORK / "answers" / f"lm-eval-{model}-{name}"
            out.mkdir(parents=True, exist_ok=True)
            score, rows = harness.asked(python, flags, out)
            logits = ours["base" if name.startswith("base") else "student"]
            same = [harness.greedy(logits, student.model, x) == y for x, y in rows]
            fine &= all(same)
            print(f"| lm-eval | {model} | {name} | {sum(same)} of {len(same)} answers | exact "
                  f"match {score:.2f} |", flush=True)
    return fine


@contextmanager
def serving(run: Path) -> Iterator[str]:
    """`python -m steerloop.serve` of a run's last round, by its address."""
    command = [sys.executable, "-m", "steerloop.serve", str(run), "--round", "2", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        said = server.stdout.readline()
        try:
            yield re.search(r"http://[\d.:]+", said).group()
        finally:
            server.terminate()


GATES = {"llama-cpp": partial(gate, "llama-cpp"), "vllm": partial(gate, "vllm"),
         "lm-eval": harness_gate}


def main(names: list[str]) -> None:
    """Every program named, or all. Exits with one line where a state is not what it has to be."""
    torch.set_num_threads(2)
    wrong = []
    if unknown := sorted({*names} - {*GATES}):
        sys.exit(f"error: {unknown[0]} is none of {', '.join(GATES)}")
    for program in names or GATES:
        python = environment(program)
        if python:
            wrong += [f"{program} on {x}" for x in MODELS if not GATES[program](python, x)]
    if wrong:
        sys.exit(f"error: not the student: {', '.join(wrong)}")


if __name__ == "__main__":
    main(sys.argv[1:])
