"""What things cost, on random weights of an exact shape; figures as JSON.

Ours against a straightforward twin, in the same process, in turn:

    python -m steerloop.bench loss --shape gemma-3-1b --quant bf16    loss and its gradient
    python -m steerloop.bench heal --shape gemma-3-270m --blocks 6    one optimiser step
    python -m steerloop.bench sample --shape gemma-3-270m             steered completions
    python -m steerloop.bench evaluate --think 32                     forced choice, free answer
    python -m steerloop.bench dose --shape embedded                   the iso-KL dose
    python -m steerloop.bench extract                                 a steering vector
    python -m steerloop.bench round                                   a round of the embedded model

All of it that matters on a GPU, correctness first, in a few minutes:

    python -m steerloop.bench gpu --out DIR           (--device cpu --shape tiny: a rehearsal)

Ours alone:

    python -m steerloop.bench ranks                        two ranks of one thread against one
    python -m steerloop.bench decode --shape gemma-3-1b    a decoding step at 8, 48, 192 rows
    python -m steerloop.bench round --shape gemma-3-1b     a round on random weights, by stage

    python -m steerloop.bench load --shape gemma-3-1b      load, sample and heal once: time, peaks
    python -m steerloop.bench memory --shape gemma-3-4b    GPU memory by part, computed
    python -m steerloop.bench launches --shape gemma-3-1b  what a GPU would launch, counted
    python -m steerloop.bench student --shape gemma-3-270m      a stack beside weights, or merged
    python -m steerloop.bench readouts                     reasons, contrast, said beside the rest
    python -m steerloop.bench pages --run RUN              pages in Chromium: bytes, times
    python -m steerloop.bench limits                       measured matrix-product and memory peaks

Ours against the twins on a real model, sampling up to its end tokens:

    python -m steerloop.bench sample --weights smollm2-135m --quant bf16

--shape embedded takes the embedded model with its own preset, whatever --quant says.
"""

import contextlib
import json
import os
import shutil
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from steerloop.bench import (
    decode,
    gpu,
    launches,
    load,
    measure,
    memory,
    pages,
    races,
    ranks,
    readouts,
    round,
    serve,
    student,
)
from steerloop.bench.shapes import SHAPES, depth, save_random
from steerloop.bench.work import Size
from steerloop.cli.entry import command
from steerloop.cli.options import Parser, number, path
from steerloop.config import Config, parse
from steerloop.kernels.hardware import hardware, precision
from steerloop.kernels.hardware import memory as memory_of
from steerloop.runfolder.files import write_whole
from steerloop.runfolder.identity import code_version

QUANT = {"nf4": "nf4", "bf16": "none"}  # --quant of the bench → that of a run
# rows, tokens, prompt: the sizes that docs/bench holds against their targets
NAMED = {"loss": (8, 128, 0), "heal": (0, 200, 100), "sample": (48, 64, 100),
         "evaluate": (64, 0, 0), "round": (96, 512, 0), "dose": (12, 40, 0), "extract": (64, 0, 0),
         "load": (8, 32, 0), "student": (48, 32, 100), "decode": (192, 256, 100),
         "launches": (8, 300, 100), "pages": (2000, 0, 0)}
PUBLISHED = ("loss", "load", "memory", "decode", "launches", "gpu")  # whose shapes these take
OWN = ("round", "readouts", "ranks", "serve", "pages")  # of the embedded model, or another
GPU = ("what", "shape", "device", "out", "minutes", "models", "only")  # what gpu takes
OF = {"smoke": "round", "checkpointing": "memory", "run": "pages", "rounds": "pages",
      **dict.fromkeys(("out", "minutes", "models", "only"), "gpu")}
REAL = (*races.MODELS, "student", "load", "readouts")  # what --weights is for


def options(argv: list[str]) -> Namespace:
    """Command line → options, sizes filled in."""
    parser = Parser(prog="python -m steerloop.bench", description=__doc__)
    add, count, size = parser.add_argument, number(int, 1, 10**6), number(int, 0, 10**6)
    add("what", choices=["loss", *races.MODELS, "student", "readouts", "round", "load", "memory",
                          "limits", "decode", "launches", "ranks", "serve", "pages", "gpu"])
    add("--shape", choices=[*SHAPES, "embedded"],
        help="tiny; for round and readouts embedded, for gpu gemma-3-1b")
    add("--blocks", type=size, default=0, help="keep that many blocks of the shape; 0: all")
    add("--device", choices=["cpu", "cuda"], help="cpu; for gpu cuda")
    add("--quant", choices=QUANT, default="nf4", help="4-bit base, or dense")
    add("--weights", help="a model in the place of --shape: a short name, folder or .gguf file")
    add("--template", default="", help="its chat template, as for a run")
    add("--keep", type=path, help="folder to keep the random weights in")
    add("--rows", type=count, help="rows of ours: completions, vignettes, prompts, pairs")
    add("--twin_rows", type=count, default=4, help="rows that a slow twin is measured on")
    add("--tokens", type=count, help="tokens of a completion")
    add("--prompt", type=size, help="tokens of the prompt before it")
    add("--think", type=size, help="tokens of thought, for evaluate (0) and round (128)")
    add("--repeats", type=count, default=3, help="how often each runs after its warm-up")
    add("--json", type=path, help="write the figures there, too")
    add("--memory", type=size, default=0, help="GB of a GPU that may be taken; 0: all,"
        " for memory 24")
    add("--checkpointing", action="store_true", help="memory: activations are recomputed")
    add("--smoke", action="store_true", help="a round at the scale of --tiny")
    add("--run", type=path, help="pages: a finished run folder")
    add("--rounds", type=count, default=10, help="pages: made up to so many, of --rows each")
    add("--out", type=path, help="gpu: folder for logs, figures, table and archive")
    add("--minutes", type=number(float, None, 10**4), default=8, help="gpu: limit of all steps")
    add("--models", type=path, help="gpu: folder of real models")
    add("--only", nargs="+", default=[], help="gpu: steps by name")
    chosen = parser.parse_args(argv)
    for name in [k for k, x in vars(chosen).items() if x != parser.get_default(k)]:
        if name not in GPU if chosen.what == "gpu" else OF.get(name, chosen.what) != chosen.what:
            parser.error(f"{chosen.what} takes no --{name}")
    named = dict(zip(("rows", "tokens", "prompt"), NAMED.get(chosen.what, (0, 0, 0)), strict=True))
    whole = chosen.what == "gpu"
    named |= {"shape": "gemma-3-1b" if whole else "embedded" if chosen.what in OWN else "tiny",
              "device": "cuda" if whole else "cpu",
              "think": 128 if chosen.what == "round" else 0}
    vars(chosen).update({k: x for k, x in named.items() if vars(chosen)[k] is None})
    if chosen.shape == "embedded" and chosen.what in PUBLISHED:
        parser.error(f"{chosen.what} takes the shape of a published model, not embedded")
    if chosen.what == "pages" and not chosen.run:
        parser.error("pages takes --run, a finished run folder")
    if whole and not chosen.out:
        parser.error("gpu takes --out, a folder for what it finds")
    if chosen.models and not gpu.real_models(chosen.models, chosen.device, chosen.out):
        parser.error(f"--models {chosen.models} has no folder with a config.json and no .gguf file")
    if chosen.only and (wrong := set(chosen.only) - gpu.names(chosen)):
        parser.error(f"--only: no step {', '.join(sorted(wrong))}; there are "
                     f"{', '.join(sorted(gpu.names(chosen)))}")
    if chosen.weights and (chosen.what not in REAL or chosen.blocks):
        parser.error(f"--weights is for {', '.join(REAL)}, without --blocks")
    if chosen.weights:
        chosen.shape = chosen.weights
    elif chosen.blocks and (chosen.shape == "embedded" or chosen.blocks > depth(chosen.shape)):
        parser.error(f"--blocks {chosen.blocks} is more than can be kept of --shape "
                     f"{chosen.shape}")
    return chosen


@contextlib.contextmanager
def weights(chosen: Namespace) -> Iterator[Config]:
    """The config of a model with random weights. They are made elsewhere: peaks are those of a
    process. Those in --keep have to be of the shape asked for. With --weights, of that model."""
    if chosen.weights:
        yield parse(["--model", chosen.weights, "--template", chosen.template, "--device",
                     chosen.device, "--quant", QUANT[chosen.quant]])
        return
    if chosen.shape == "embedded":
        yield parse(["--model", "embedded", "--device", chosen.device])
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = (chosen.keep or Path(scratch)) / f"{chosen.shape}-{chosen.blocks}"
        if not folder.exists():
            made = folder.with_name(f"{folder.name}.{os.getpid()}")
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                pool.submit(save_random, made, chosen.shape, blocks=chosen.blocks,
                            device=chosen.device).result()
            try:
                made.rename(folder)
            except OSError:  # another process was sooner
                if not folder.exists():
                    raise
                shutil.rmtree(made)
        middle = [chosen.blocks // 2] if chosen.blocks else []  # a short stack may miss the band
        yield Config(model=str(folder), device=chosen.device, steer_blocks=middle,
                     quant=QUANT[chosen.quant])


def figures(chosen: Namespace) -> dict[str, Any]:
    """What was asked for."""
    if chosen.what == "memory":
        cfg = Config(quant=QUANT[chosen.quant], checkpointing=chosen.checkpointing)
        card = chosen.memory or memory.CARD
        return {"card_gb": card, "gb": memory.need(chosen.shape, cfg, card)}
    device = hardware(chosen.device, 0)
    if chosen.memory and device.type == "cuda":
        share = 1e9 * chosen.memory / memory_of(device)
        torch.cuda.set_per_process_memory_fraction(min(1.0, share))
    size = Size(chosen.rows, min(chosen.twin_rows, chosen.rows or chosen.twin_rows),
                      chosen.tokens, chosen.prompt, chosen.think, chosen.repeats,
                      bool(chosen.weights))
    if chosen.what == "pages":
        return pages.run(chosen.run, chosen.rounds, chosen.rows, size.repeats)
    if chosen.what == "limits":
        return {"limits": measure.limits(device)}
    if chosen.what == "loss":
        return races.loss(chosen.shape, device, torch.bfloat16, size)
    if chosen.what == "round" and chosen.shape == "embedded":
        return round.run(chosen.device, size.twin_rows)
    with weights(chosen) as cfg:
        if chosen.what == "round":
            if chosen.smoke:
                return round.alone(replace(cfg, **round.SMOKE), 4, 8, 0)
            return round.alone(cfg, size.rows, size.tokens, size.think)
        if chosen.what == "decode":
            return decode.run(cfg, size)
        if chosen.what == "launches":
            return launches.run(cfg, size)
        if chosen.what == "load":
            return load.run(cfg, size.rows, size.tokens)
        if chosen.what == "student":
            return student.run(cfg, size)
        if chosen.what == "ranks":
            return ranks.run(replace(cfg, rounds=1, u0=False), size.repeats, list(ranks.TARGETS))
        if chosen.what == "serve":
            return serve.run(cfg, size.rows, size.repeats)
        if chosen.what == "readouts":
            return readouts.run(cfg, size.repeats)
        return races.run(chosen.what, cfg, size)


def computed_in(chosen: Namespace) -> torch.dtype:
    """The dtype that ours and the twins compute in."""
    if chosen.shape == "embedded":
        return torch.float32
    return precision(Config.dtype, torch.device(chosen.device))


def rounded(x: Any) -> Any:
    """Four digits are more than a clock gives."""
    if isinstance(x, dict):
        return {k: rounded(v) for k, v in x.items()}
    if isinstance(x, list):
        return [rounded(v) for v in x]
    return float(f"{x:.4g}") if isinstance(x, float) else x


def measure_and_print(chosen: Namespace) -> None:
    """Print what was asked for. Raises UserError where that cannot be."""
    if chosen.what == "gpu":
        gpu.run(chosen)
        return
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with contextlib.redirect_stdout(sys.stderr):  # what a run logs is not the answer
        measured = figures(chosen)
    cuda = chosen.what != "memory" and chosen.device == "cuda"
    machine = torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} CPU cores"
    facts = {"bench": chosen.what, "shape": chosen.shape, "blocks": chosen.blocks or "all",
             "quant": chosen.quant, "dtype": str(computed_in(chosen)), "machine": machine,
             "threads": torch.get_num_threads(), "torch": torch.__version__,
             "code": code_version()}
    if chosen.shape == "embedded":
        facts |= {"quant": "none (float32)"}
    text = json.dumps(rounded(facts | measured), indent=1)
    print(text)
    if chosen.json:
        write_whole(chosen.json, lambda path: path.write_text(text + "\n", encoding="utf-8"))


def main(argv: list[str] | None = None) -> None:
    """Command line entry: one clear line and a non-zero exit status on bad input."""
    command(options, measure_and_print, argv)


if __name__ == "__main__":
    main()
