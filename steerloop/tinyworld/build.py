"""Build the embedded model: tokenizer, training, weights, data files, acceptance table.

    python -m steerloop.tinyworld.build                     train seed 0 and ship it in the package
    python -m steerloop.tinyworld.build --seed 3 --out DIR  another seed, somewhere else
    python -m steerloop.tinyworld.build --check [DIR]       write data files again, elsewhere, and
                                                            measure weights; exit 1 on a FAIL

Half an hour to 40 minutes on one core (run two seeds side by side with OMP_NUM_THREADS=1). An
interrupted build continues where it stopped: its state is in the work folder, and every file is
written atomically.
"""

import os
import shutil
from argparse import Namespace
from pathlib import Path

import torch
from loguru import logger
from transformers import AutoTokenizer, Gemma3ForCausalLM, PreTrainedTokenizerBase

from steerloop import UserError
from steerloop.cli.entry import command
from steerloop.cli.knobs import SEEDS
from steerloop.cli.options import Parser, number, path
from steerloop.tinyworld.acceptance import check, table_text
from steerloop.tinyworld.files import DATA, stale, write_files
from steerloop.tinyworld.pretrain import LAYERS, Recipe, train
from steerloop.tinyworld.tokenizer import train_tokenizer

SHIPPED = Path(__file__).parent / "model"
TOKENIZER_SEED = 0  # one vocabulary for every training seed


def options(argv: list[str]) -> Namespace:
    """Command line → options."""
    parser = Parser(prog="python -m steerloop.tinyworld.build", description=__doc__)
    add = parser.add_argument
    add("--seed", type=number(int, 0, SEEDS), default=Recipe.seed, help="training seed")
    add("--tokens", type=number(int, 1, 10**10), default=Recipe.tokens,
        help="training length, tokens")
    add("--global-layer", type=int, default=Recipe.global_layer, choices=range(LAYERS),
        help="the layer that sees past the sliding window")
    add("--threads", type=number(int, 1, 1024), default=1, help="CPU threads")
    add("--work", type=path, default=Path("runs/tinyworld-build"),
        help="folder of resumable state")
    add("--out", type=path, default=SHIPPED, help="folder that receives the model")
    add("--check", type=path, nargs="?", const=SHIPPED, metavar="DIR",
        help="only measure the weights in DIR (default: the shipped ones)")
    return parser.parse_args(argv)


def tokenizer_in(work: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of the work folder, trained there once."""
    folder = work / "tokenizer"
    if not folder.exists():
        part = work / "tokenizer.part"
        train_tokenizer(TOKENIZER_SEED).save_pretrained(part)
        part.rename(folder)
    return AutoTokenizer.from_pretrained(folder)


def ship(model: Gemma3ForCausalLM, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write weights (bfloat16), configuration and tokenizer, replacing what was there at once."""
    part, old = out.with_name(out.name + ".part"), out.with_name(out.name + ".old")
    shutil.rmtree(part, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(part)
    tokenizer.save_pretrained(part)
    for file in part.iterdir():
        file.chmod(0o644)
    if out.exists():
        out.rename(old)
    part.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    size = sum(file.stat().st_size for file in out.iterdir())
    logger.info(f"{out}: {size / 1e6:.2f} MB")


def report(folder: Path) -> int:
    """Print the acceptance table of a folder; the number of lines that fail."""
    lines = check(folder)
    print(f"{folder}\n{table_text(lines)}")
    return sum(not line.passed for line in lines)


def build(chosen: Namespace) -> None:
    """Build or check. Raises UserError where data files are not what the recipe writes, or lines of
    the table fail."""
    torch.set_num_threads(chosen.threads)
    torch.set_flush_denormal(True)
    if chosen.check is None:
        chosen.work.mkdir(parents=True, exist_ok=True)
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        write_files(DATA)
        tokenizer = tokenizer_in(chosen.work)
        recipe = Recipe(chosen.seed, chosen.tokens, global_layer=chosen.global_layer)
        ship(train(recipe, tokenizer, chosen.work), tokenizer, chosen.out)
    if other := stale(DATA):
        raise UserError(f"{DATA} is not what the recipe writes: {', '.join(other)}; restore them")
    if failed := report(chosen.check or chosen.out):
        raise UserError(f"{failed} lines of the acceptance table fail")


def main(argv: list[str] | None = None) -> None:
    """Command line entry: one clear line and a non-zero exit status on bad input."""
    command(options, build, argv)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
