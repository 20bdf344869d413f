"""Take a student elsewhere.

python -m steerloop.export RUN --to peft              one LoRA for PEFT and vLLM
python -m steerloop.export RUN --to merged            a plain checkpoint
python -m steerloop.export RUN --to gguf-lora         the same LoRA for llama.cpp
python -m steerloop.export RUN --to gguf              the merged student for llama.cpp
python -m steerloop.export RUN --to gguf-vector       a control vector for llama.cpp
python -m steerloop.export RUN --to vector            the same as safetensors
python -m steerloop.export RUN --to bundle            all that someone else needs to compare
python -m steerloop.export --verify BUNDLE            run the cheap parts of a bundle again
"""

import re
import sys
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

from loguru import logger
from transformers import AutoConfig

from steerloop import UserError, export
from steerloop.cli.entry import command
from steerloop.cli.knobs import DIAL, check_device
from steerloop.cli.options import Parser, filled, gates, number, path
from steerloop.export import adapter, merged_gguf
from steerloop.export.adapter import ranks
from steerloop.export.bundle import verify, write_bundle
from steerloop.export.extras import extra
from steerloop.export.llamacpp import family
from steerloop.export.student import Student, config_of, open_student, read_gates, rounds_of
from steerloop.export.vectors import blocks_of, check_gguf
from steerloop.loading.hub import locate
from steerloop.runfolder import layout

KINDS = ["peft", "merged", "gguf-lora", "gguf", "gguf-vector", "vector", "bundle"]
DTYPES = {"merged": ["float32", "bfloat16"], "gguf": [*merged_gguf.KINDS]}
MEANT = {  # what an option is for, where that is not every kind
    "rank": ["peft", "gguf-lora"], "key_prefix": ["peft"], "merge_base": ["merged"],
    "dtype": [*DTYPES],
    "shard": ["merged"], "dose": ["gguf-vector", "vector"], "round": KINDS[:-1],
    "gates": KINDS[:-1], "tolerance": KINDS[:-1],
}


def shard(text: str) -> str:
    """A size as the library takes it. Raises ArgumentTypeError."""
    if not re.fullmatch(r"[1-9]\d{0,5}([KMG]i?B)", text):
        raise ArgumentTypeError(f"takes a size such as 5GB or 200MB, not {text!r}")
    return text


def parse(argv: list[str]) -> Namespace:
    """Command line → options. One line and exit status 2 for those that do not go together."""
    parser = Parser(prog="python -m steerloop.export", description=__doc__)
    add = parser.add_argument
    add("run", nargs="?", type=path, help="a run folder")
    add("--to", choices=KINDS, help="what to write")
    add("--round", type=filled, help="best, or a number as the tables count; "
        "default: best, of vectors 1 (that of the untouched base)")
    add("--gates", type=gates, default="1", help="one number, or one a round: 1,1,0.5")
    add("--out", type=path, help=f"default: a folder in RUN/{layout.EXPORTS}")
    add("--rank", type=number(int, 0, 10**6), default=0,
        help="LoRAs: truncate by SVD; 0: exact")
    add("--key-prefix", default="", help="peft: where the blocks are in the class that will load "
        "it (default: found out)")
    add("--merge-base", choices=["dequant", "original"], default="dequant",
        help="merged, 4-bit runs: the base that the run saw, or the original")
    add("--dtype", choices=DTYPES["gguf"], default="",
        help="merged, gguf: of the files (merged: float32 or bfloat16); default: the run's")
    add("--shard", type=shard, default="5GB", help="merged: largest file")
    add("--dose", type=number(float, *DIAL), default=1.0,
        help="vectors: what scale 1 means, in multiples of c*")
    add("--tolerance", type=number(float, 0, 100), default=0.0,
        help="mean KL per token allowed, in fp32, nats; 0: 1e-6")
    add("--device", type=check_device, help="default: that of the run")
    add("--model", type=filled, help="where the base is now, if it was moved")
    add("--force", action="store_true", help="go on although an input changed; recorded")
    add("--verify", type=path, metavar="BUNDLE", help="compare a bundle with here")
    args = parser.parse_args(argv)
    if bool(args.verify) == bool(args.run and args.to) or (args.verify and (args.run or args.to)):
        parser.error("name a run folder and --to, or --verify BUNDLE")
    for name, kinds in MEANT.items():
        if args.to not in kinds and getattr(args, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} is for --to {' or '.join(kinds)}")
    if args.dtype not in ("", *DTYPES.get(args.to, [args.dtype])):
        parser.error(f"--dtype {args.dtype} is for --to gguf")
    if args.dose == 0:
        parser.error("--dose 0 is no vector")
    return args


def target(args: Namespace, rounds: int) -> Path:
    """Where an export goes: --out, or a folder that says what it is."""
    gates = "" if args.gates == "1" else "-g" + args.gates.replace(" ", ",")
    rank = f"-rank{args.rank}" if args.rank else ""
    return args.out or (
        args.run / layout.EXPORTS / f"{args.to}-round{rounds}{gates}{rank}")


def run(args: Namespace) -> None:
    """Do what the options say. Raises UserError."""
    logger.remove()
    logger.add(sys.stderr, format="{message}", level="INFO")
    if args.verify:
        verify(args.verify, args.device or "", args.model or "")
        return
    if args.to == "bundle":
        out = args.out or args.run / layout.EXPORTS / layout.BUNDLE
        absent(out)
        print(write_bundle(args.run, out, args.model or "", args.force))
        return
    round = args.round or ("1" if "vector" in args.to else "best")
    out = target(args, rounds_of(args.run, round))
    possible(args, round, out)
    student = open_student(args.run, round, args.gates, args.device or "", args.model or "",
                           args.force)
    print(write(args, student, out))


def absent(out: Path) -> None:
    """Raise UserError where something is there already."""
    if out.exists():
        raise UserError(f"{out} exists: remove it, or name another --out")


def possible(args: Namespace, round: str, out: Path) -> None:
    """Whatever can be refused by the run folder alone is refused before a model is loaded. Raises
    UserError."""
    absent(out)
    cfg, rounds = config_of(args.run), rounds_of(args.run, round)
    heard = read_gates(args.gates, rounds, cfg.rounds)
    if args.to == "peft":
        extra("peft")
        ranks(heard, cfg.r, args.rank)
    if args.to == "gguf-lora":
        adapter.heard(heard, cfg.r, args.rank)
    if args.to.startswith("gguf"):
        folder = locate(args.model or cfg.model)
        text = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
        if args.to == "gguf-vector":
            check_gguf(blocks_of(layout.vector(args.run, rounds - 1)), text.model_type)
        elif args.to == "gguf-lora":
            family(text)
        else:
            merged_gguf.possible(text, merged_gguf.tokenizer_at(folder))


def write(args: Namespace, student: Student, out: Path) -> Path:
    """Write and check one artefact; returns where it is."""
    if args.to == "peft":
        return export.export_adapter(student, out, args.rank, args.key_prefix, args.tolerance)
    if args.to == "merged":
        return export.export_merged(student, out, args.dtype, args.merge_base == "original",
                                    args.shard, args.tolerance)
    if args.to == "gguf-lora":
        return export.export_lora(student, out, args.rank, args.tolerance)
    if args.to == "gguf":
        return export.export_gguf(student, out, args.dtype, args.tolerance)
    return export.export_vector(student, out, args.to == "gguf-vector", args.dose, args.tolerance)


def main(argv: list[str] | None = None) -> None:
    """Command line entry: one clear line and a non-zero exit status on bad input."""
    command(parse, run, argv)


if __name__ == "__main__":
    main()
