"""python -m steerloop.traits new my_trait                              a commented skeleton
python -m steerloop.traits check my_trait --model smollm2-135m        its texts, and U0 on a model
python -m steerloop.traits check register --model embedded            one of ours, by name
python -m steerloop.traits matrix register mood --model smollm2-135m  vectors × readouts
python -m steerloop.traits sheet RUN [RUN ...] --out sheet.jsonl      answers to label, blind
python -m steerloop.traits join sheet.jsonl --out my_trait/labels.jsonl
python -m steerloop.traits audit my_trait                             readouts against labels
python -m steerloop.traits audit my_trait --judge http://localhost:8000/v1 --judge_model NAME

`check` ends with 1 where a text is at fault, or the model's readouts do not see the trait. What
else a run takes (--quant none, --steer_band .4 .6, …) may follow.

`matrix` steers with the vector of every pack at its c*, reads said and contrast of every pack, and
prints the responses in units of what null vectors do there: a pack's own should lead.

`sheet` writes what all states of the runs answered, shuffled, each answer once, and beside it
sheet.key.jsonl, which a reader should not open. Fill in `trait` (does the answer show the pole
`up`?) and `sensible` (does it make sense? the end may be cut off) with true or false; `join` puts
the two together. `audit` prints how well `said` orders the answers by their labels, and what the
filter tells of those that make no sense. With --judge it asks a server that speaks the OpenAI chat
protocol about the same answers, and prints its agreement with the labels; its key, where it wants
one, is in the environment variable OPENAI_API_KEY. A judge reads what a model wrote, and may be
fooled by it.
"""

import sys
from argparse import Namespace
from itertools import takewhile
from pathlib import Path

import torch
from loguru import logger

from steerloop import UserError
from steerloop.cli.entry import command
from steerloop.cli.options import Parser, filled, number, path
from steerloop.config import Config, parse
from steerloop.dose import dose
from steerloop.evaluate import evaluate
from steerloop.evidence.lengths import check_lengths
from steerloop.model import load
from steerloop.report.sight import PASS, judged, verdict
from steerloop.report.text import markdown
from steerloop.report.verdicts import band_lines, sight_lines
from steerloop.sight import bands, look, settled
from steerloop.steer import extract
from steerloop.texts.data import read, read_data
from steerloop.texts.packs import TRAIT, folder_of, persona
from steerloop.texts.parts import parts
from steerloop.traits.audit import audit
from steerloop.traits.faults import faults
from steerloop.traits.judge import address, opinions, question
from steerloop.traits.labels import read_labels, write_labels, write_sheet
from steerloop.traits.matrix import matrix, shown
from steerloop.traits.skeleton import begin


@torch.no_grad()
def sight(cfg: Config) -> bool:
    """U0 of the pack of a config on its model, said; whether it passes."""
    data, model = read_data(cfg), load(cfg)
    check_lengths(model, data, cfg)
    base = evaluate(model, data, cfg)
    if not cfg.steer_blocks and not cfg.steer_band:
        table = bands(model, data, cfg)
        logger.info(markdown(band_lines(table)))
        cfg = settled(cfg, table)
    vector = extract(model, data, cfg)
    c_star, _ = dose(model, vector, data, cfg, "0")
    responses = look(model, data, cfg, vector, c_star, base)
    found = verdict(judged(base, responses, [data.down, data.up]))
    lines = sight_lines(found)
    by = f", read by {found['headline']}" if found["headline"] else ""
    table = markdown(lines) if lines else "no readout was measured"
    logger.info(f"U0 on {cfg.model}, c* {c_star:.3g}: {found['verdict']}{by}\n{table}\n"
                f"{found['why']}")
    return found["verdict"] == PASS


def check(cfg: Config) -> None:
    """The texts of a pack, then U0. Exits with 1 where either is at fault."""
    wrong = [x for part in parts(cfg.trait, "trait") for x in faults(folder_of(part.name))]
    for line in wrong:
        logger.warning(line)
    logger.info(f"{cfg.trait}: {len(wrong) or 'no'} faults in its texts")
    if not sight(cfg) or wrong:
        sys.exit(1)


def matrix_options(argv: list[str]) -> tuple[list[str], Config]:
    """Of `matrix`: packs, then the options of a run."""
    names = list(takewhile(lambda x: not x.startswith("--"), argv))
    if len(set(names)) < max(2, len(names)):
        raise UserError("matrix takes two packs or more, each once, then --model and the like")
    return names, parse(["--trait", names[0], *argv[len(names) :]])


def sheet_options(argv: list[str]) -> Namespace:
    """Of `sheet`."""
    parser = Parser(prog="python -m steerloop.traits sheet")
    parser.add_argument("runs", nargs="+", type=path, metavar="RUN", help="run folders of a trait")
    parser.add_argument("--out", required=True, type=path, help="the sheet, JSON lines")
    parser.add_argument("--seed", type=number(int, 0, 2**31), default=0, help="of the order")
    return parser.parse_args(argv)


def join_options(argv: list[str]) -> Namespace:
    """Of `join`."""
    parser = Parser(prog="python -m steerloop.traits join")
    parser.add_argument("sheets", nargs="+", type=path, metavar="SHEET", help="filled in")
    parser.add_argument("--out", required=True, type=path, help="labels.jsonl of a pack")
    return parser.parse_args(argv)


def audit_options(argv: list[str]) -> Namespace:
    """Of `audit`."""
    parser = Parser(prog="python -m steerloop.traits audit")
    parser.add_argument("trait", type=filled, metavar="PACK", help="a folder, or one of ours")
    parser.add_argument("--judge", type=address, metavar="URL", help="where chat/completions is")
    parser.add_argument("--judge_model", type=filled, default="default", metavar="NAME",
                        help="as the server calls it")
    return parser.parse_args(argv)


def compare(args: Namespace) -> None:
    """The instruments, and a judge if there is one, against a pack's labels, printed."""
    folder = folder_of(args.trait)
    labels = read_labels(folder)
    print(audit(labels))
    if args.judge:
        pairs, up, down = read(str(folder / TRAIT), persona)
        rows = opinions(labels, question(pairs[0], up, down), args.judge, args.judge_model)
        print(f"\nThe judge against the labels:\n\n{markdown(rows)}")


def main(argv: list[str] | None = None) -> None:
    """Command line entry: one clear line and a non-zero exit status on bad input."""
    argv = sys.argv[1:] if argv is None else argv
    match argv:
        case ["new", name]:
            command(lambda _: name, lambda x: logger.info(f"{begin(Path(x))}: fill in its files"),
                    argv)
        case ["check", trait, *rest]:
            command(lambda _: parse(["--trait", trait, *rest]), check, argv)
        case ["matrix", *rest]:
            command(matrix_options, lambda x: print(shown(x[0], matrix(*x))), rest)
        case ["sheet", *rest]:
            command(sheet_options, lambda x: write_sheet(x.runs, x.out, x.seed), rest)
        case ["join", *rest]:
            command(join_options, lambda x: write_labels(x.sheets, x.out), rest)
        case ["audit", *rest]:
            command(audit_options, compare, rest)
        case ["-h" | "--help", *_]:
            print(__doc__)
        case _:
            command(usage, check, argv)


def usage(argv: list[str]) -> Config:
    """Raises UserError with what there is."""
    raise UserError("python -m steerloop.traits new NAME, or check FOLDER --model MODEL; --help "
                    "says what else")


if __name__ == "__main__":
    main()
