"""What a run costs, on random weights of an exact shape; figures as JSON.

    python -m steerloop.bench load --shape gemma-3-1b      load, sample and heal once: time, peaks
    python -m steerloop.bench memory --shape gemma-3-4b    GPU memory by part, computed
"""

import argparse
import json
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from steerloop.bench import load, memory
from steerloop.bench.shapes import SHAPES, save_random
from steerloop.config import Config
from steerloop.kernels.files import code_version

PROMPT = 200  # tokens before a completion, for `memory`


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m steerloop.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("what", choices=["load", "memory"])
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quant", choices=["nf4", "none"], default="nf4")
    parser.add_argument("--weights", type=Path, help="folder to keep the random weights in")
    parser.add_argument("--rows", type=int, default=8, help="sampled rows")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of a completion")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    return parser.parse_args()


def loaded(chosen: argparse.Namespace) -> dict[str, Any]:
    """Figures of `load.run`. The weights are made elsewhere: peaks are those of a process."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen.weights or Path(scratch)
        if not (folder / "config.json").exists():
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                pool.submit(save_random, folder, chosen.shape).result()
        cfg = Config(model=str(folder), quant=chosen.quant, device=chosen.device)
        return load.run(folder, cfg, chosen.rows, chosen.tokens)


def main() -> None:
    """Print what was asked for."""
    chosen = options()
    if chosen.what == "memory":
        found = {"gb": memory.need(chosen.shape, Config(quant=chosen.quant), PROMPT)}
    else:
        found = loaded(chosen)
    cuda = chosen.what == "load" and chosen.device == "cuda"
    machine = torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} CPU cores"
    facts = {"shape": chosen.shape, "quant": chosen.quant, "machine": machine,
             "torch": torch.__version__, "code": code_version()}
    text = json.dumps(facts | found, indent=1)
    print(text)
    if chosen.json:
        chosen.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
