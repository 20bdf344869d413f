"""Take a student elsewhere.

python -m steerloop.export RUN --to peft              one LoRA for PEFT and vLLM
python -m steerloop.export RUN --to merged            a plain checkpoint
python -m steerloop.export RUN --to gguf-vector       a control vector for llama.cpp
python -m steerloop.export RUN --to vector            the same as safetensors
python -m steerloop.export RUN --to bundle            all that someone else needs to compare
python -m steerloop.export --verify BUNDLE            run the cheap parts of a bundle again
"""

import argparse
import sys
from pathlib import Path

from loguru import logger
from transformers import AutoConfig

from steerloop import UserError, export
from steerloop.cli.entry import command
from steerloop.export.adapter import ranks
from steerloop.export.bundle import verify, write_bundle
from steerloop.export.extras import extra
from steerloop.export.student import Student, config_of, open_student, read_gates, rounds_of
from steerloop.export.vectors import blocks_of, check_gguf
from steerloop.loading.hub import locate
from steerloop.runfolder import layout

KINDS = ["peft", "merged", "gguf-vector", "vector", "bundle"]


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong option is answered by one line."""

    def error(self, message: str) -> None:
        print(f"error: {message} (--help lists every option)", file=sys.stderr)
        sys.exit(2)


def parse(argv: list[str]) -> argparse.Namespace:
    """Command line → options. Raises UserError for options that do not go together."""
    parser = Parser(prog="python -m steerloop.export", allow_abbrev=False, description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="a run folder")
    parser.add_argument("--to", choices=KINDS, help="what to write")
    parser.add_argument("--round", default="", help="best, or a number as the tables count; "
                        "default: best, of vectors 1 (that of the untouched base)")
    parser.add_argument("--gates", default="1", help="one number, or one a round: 1,1,0.5")
    parser.add_argument("--out", type=Path, help=f"default: a folder in RUN/{layout.EXPORTS}")
    parser.add_argument("--rank", type=int, default=0, help="peft: truncate by SVD; 0: exact")
    parser.add_argument("--key-prefix", default="", help="peft: where the blocks are in the class "
                        "that will load it (default: found out)")
    parser.add_argument("--merge-base", choices=["dequant", "original"], default="dequant",
                        help="merged, 4-bit runs: the base that the run saw, or the original")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="",
                        help="merged: of the files; default: the run's")
    parser.add_argument("--shard", default="5GB", help="merged: largest file")
    parser.add_argument("--dose", type=float, default=1.0,
                        help="vectors: what scale 1 means, in multiples of c*")
    parser.add_argument("--tolerance", type=float, default=0.0,
                        help="mean KL per token allowed, in fp32, nats; 0: 1e-6")
    parser.add_argument("--device", default="", help="default: that of the run")
    parser.add_argument("--verify", type=Path, metavar="BUNDLE", help="compare a bundle with here")
    args = parser.parse_args(argv)
    if not args.verify and not (args.run and args.to):
        parser.error("name a run folder and --to, or --verify BUNDLE")
    return args


def target(args: argparse.Namespace, rounds: int) -> Path:
    """Where an export goes: --out, or a folder that says what it is."""
    gates = "" if args.gates == "1" else "-g" + args.gates.replace(" ", ",")
    rank = f"-rank{args.rank}" if args.rank else ""
    return args.out or (
        args.run / layout.EXPORTS / f"{args.to}-round{rounds}{gates}{rank}")


def run(args: argparse.Namespace) -> None:
    """Do what the options say. Raises UserError."""
    logger.remove()
    logger.add(sys.stderr, format="{message}", level="INFO")
    if args.verify:
        verify(args.verify, args.device)
        return
    if args.to == "bundle":
        out = args.out or args.run / layout.EXPORTS / layout.BUNDLE
        absent(out)
        print(write_bundle(args.run, out))
        return
    round = args.round or ("1" if "vector" in args.to else "best")
    out = target(args, rounds_of(args.run, round))
    possible(args, round, out)
    print(write(args, open_student(args.run, round, args.gates, args.device), out))


def absent(out: Path) -> None:
    """Raise UserError where something is there already."""
    if out.exists():
        raise UserError(f"{out} exists: remove it, or name another --out")


def possible(args: argparse.Namespace, round: str, out: Path) -> None:
    """Whatever can be refused by the run folder alone is refused before a model is loaded. Raises
    UserError."""
    absent(out)
    cfg, rounds = config_of(args.run), rounds_of(args.run, round)
    gates = read_gates(args.gates, rounds, cfg.rounds)
    if args.to == "peft":
        extra("peft")
        ranks(gates, cfg.r, args.rank)
    if args.to == "gguf-vector":
        extra("gguf")
        text = AutoConfig.from_pretrained(locate(cfg.model), trust_remote_code=False)
        check_gguf(blocks_of(layout.vector(args.run, rounds - 1)),
                   text.get_text_config().model_type)


def write(args: argparse.Namespace, student: Student, out: Path) -> Path:
    """Write and check one artefact; returns where it is."""
    if args.to == "peft":
        return export.export_adapter(student, out, args.rank, args.key_prefix, args.tolerance)
    if args.to == "merged":
        return export.export_merged(student, out, args.dtype, args.merge_base == "original",
                                    args.shard, args.tolerance)
    return export.export_vector(student, out, args.to == "gguf-vector", args.dose, args.tolerance)


def main(argv: list[str] | None = None) -> None:
    """Command line entry: one clear line and a non-zero exit status on bad input."""
    command(parse, run, argv)


if __name__ == "__main__":
    main()
