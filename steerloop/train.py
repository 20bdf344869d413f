"""The method, in one loop.

    extract   steer.py     a vector from opposed personas, or from files (--vector)
    dose      dose.py      how hard to steer: c*, and a walk below it
    sample    sample.py    prompts × doses → completions; kernels/decode.py draws the tokens (pick)
    filter    filter.py    a completion is marked as kept, or dropped for a reason; those that are
                           kept are taken by `choose` (dose.py)
    heal      heal.py      trains Δ, the live A and B (lora.py) of the layers that model.py wraps,
                           under the hinge of barrier.py
    fold      lora.py      Δ joins the gated stack; all gates at zero are the base
    evaluate  evaluate.py  foundations and coherence of the model as it stands

python -m steerloop.train                          the embedded model, CPU, minutes
python -m steerloop.train --model gemma-3-1b-it    the real thing, one 24 GB GPU
python -m steerloop.train --tiny                   smoke run with types checked, seconds
"""

from pathlib import Path

import torch
from loguru import logger

from steerloop import dose, evaluate, filter, heal, sample, steer
from steerloop.baselines import rivals
from steerloop.cli.entry import command
from steerloop.config import Config, parse
from steerloop.dose import ask
from steerloop.evidence.bounds import Bounds
from steerloop.evidence.drift import drift
from steerloop.evidence.journal import Journal
from steerloop.evidence.launch import in_ranks
from steerloop.evidence.lengths import check_lengths
from steerloop.harness import present
from steerloop.lora import fold
from steerloop.model import Model, load
from steerloop.runfolder.recorder import NOTHING, Recorder
from steerloop.teacher import told
from steerloop.texts.data import Data, read_data

STAGES = (
    evaluate.evaluate, filter.calibrate, steer.extract, dose.dose, dose.short, sample.sample,
    filter.filter, dose.choose, heal.heal, drift,
)  # fmt: skip


@torch.no_grad()
def loop(model: Model, data: Data, cfg: Config, run: Recorder = NOTHING) -> str:
    """Round after round; the last student is left in `model`. Returns what ended it before all were
    done, or ''. Gradients are on in `heal` alone.

    `run` is put on once, around the stages: it may keep what they return, show it, measure more.
    Raises UserError, naming the remedy, where a prompt does not fit or a round cannot go on.
    """
    check_lengths(model, data, cfg)
    (evaluate, calibrate, extract, dose, short, sample,
     filter, choose, heal, drift) = run.keeps(*STAGES)
    bounds = Bounds(cfg, evaluate(model, data, cfg))
    limit = calibrate(model, data, cfg)  # of perplexity, from the base's own completions
    for round in run.rounds(cfg.rounds):
        vector = extract(model, data, cfg)
        c_star, curve = dose(model, vector, data, cfg, f"{round}")
        kappas = bounds.allows(c_star, curve)  # least and most
        if kappas is None:
            return "budget spent"
        batches = []
        while short(batches, kappas, cfg):
            asked, stage = ask(model, data, cfg, batches, c_star, kappas)
            drawn = sample(model, told(model, asked, data, cfg), vector, cfg, f"{round}|{stage}")
            batches.append(filter(model, drawn.with_columns(asked["prompt_ids"]), data, cfg, limit))
        rows, kappa = choose(batches, kappas, cfg)
        kept = rows.filter("train")
        _, delta = heal(model, kept, cfg, round, run)
        fold(model.layers, model.gates, delta)
        went, *_ = drift(model, kept, data, cfg, vector)
        bounds.book(kappa, went)
        if not bounds.holds(evaluate(model, data, cfg)):
            return "below the floor"
    return ""


@in_ranks
def train(cfg: Config) -> Path:
    """The loop, kept in a run folder with its evidence and pages; returns the folder.

    What the folder of --resume holds is read, not made again. Raises UserError, naming the remedy;
    what was written until then stays.
    """
    present(cfg)  # what is not there is said at once
    data, model = read_data(cfg), load(cfg)
    with Journal(model, data, cfg) as run:
        loop(model, data, cfg, run)
        rivals(run, loop)
        logger.info(f"{run.path}\n{run.finish()}")
    return run.path


def main(argv: list[str] | None = None) -> None:
    """Command line entry: one clear line and a non-zero exit status on bad input."""
    command(parse, train, argv)


if __name__ == "__main__":
    main()
