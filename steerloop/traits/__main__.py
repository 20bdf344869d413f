"""python -m steerloop.traits new my_trait                              a commented skeleton
python -m steerloop.traits check my_trait --model smollm2-135m        its texts, and U0 on a model
python -m steerloop.traits check register --model embedded            one of ours, by name

`check` ends with 1 where a text is at fault, or the model's readouts do not see the trait. What
else a run takes (--quant none, --steer_band .4 .6, …) may follow.
"""

import sys
from pathlib import Path

import torch
from loguru import logger

from steerloop import UserError
from steerloop.cli.entry import command
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
from steerloop.texts.data import read_data
from steerloop.texts.packs import folder_of
from steerloop.traits.faults import faults
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
    wrong = faults(folder_of(cfg.trait))
    for line in wrong:
        logger.warning(line)
    logger.info(f"{cfg.trait}: {len(wrong) or 'no'} faults in its texts")
    if not sight(cfg) or wrong:
        sys.exit(1)


def main(argv: list[str] | None = None) -> None:
    """Command line entry: one clear line and a non-zero exit status on bad input."""
    argv = sys.argv[1:] if argv is None else argv
    match argv:
        case ["new", name]:
            command(lambda _: name, lambda x: logger.info(f"{begin(Path(x))}: fill in its files"),
                    argv)
        case ["check", trait, *rest]:
            command(lambda _: parse(["--trait", trait, *rest]), check, argv)
        case ["-h" | "--help", *_]:
            print(__doc__)
        case _:
            command(usage, check, argv)


def usage(argv: list[str]) -> Config:
    """Raises UserError with what there is."""
    raise UserError("python -m steerloop.traits new NAME, or check FOLDER --model MODEL")


if __name__ == "__main__":
    main()
