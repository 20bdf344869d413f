"""The method, in one loop: extract, dose, sample, filter, heal, fold, evaluate.

python -m steerloop.train                          the embedded model, CPU, minutes
python -m steerloop.train --model gemma-3-1b-it    the real thing, one 24 GB GPU
python -m steerloop.train --tiny                   smoke run with types checked, seconds
"""

import importlib
import os
import sys
from pathlib import Path

import torch
from loguru import logger

from steerloop import UserError, lora, report
from steerloop.config import Config, band, parse, read_data
from steerloop.dose import collect, solve
from steerloop.evaluate import Evaluation, Fixed, evaluate, matched_dose
from steerloop.filter import calibrate, survival
from steerloop.heal import heal
from steerloop.model import load
from steerloop.record import Run, log_to_terminal
from steerloop.steer import Vector, cosine, extract, steered


@torch.no_grad()
def train(cfg: Config) -> Path:
    """Run the whole method and return the run folder. Gradients are on in `heal` alone.

    Raises UserError, naming the remedy; what was written until then stays.
    """
    data, model = read_data(cfg), load(cfg)
    blocks = band(cfg.steer_blocks, cfg.steer_band, len(model.decoder.layers), "steer")
    probes = [getattr(importlib.import_module(m), f) for m, f in (x.split(":") for x in cfg.probes)]
    run = Run(cfg)
    logger.info(f"run folder {run.path}")

    def measure(state: str, round: int, vector: Vector, dose: float = 0.0) -> Evaluation:
        with steered(model, vector, Fixed(torch.tensor([dose], device=model.device))):
            now = evaluate(model, data, cfg, probes)
        run.table(f"rounds/{round:02d}/{state}.eval", now.rows)
        run.table(f"rounds/{round:02d}/{state}.items", now.items)
        run.event("evaluate", round=round, state=state, dose=dose, measures=now.measures())
        return now

    base = measure("base", 0, {}).measures()
    floor = min(cfg.coh_floor, base["coherence"] - cfg.coh_drop)
    limit = calibrate(model, data, cfg)
    run.event("start", axis=[data.down, data.up], floor=floor, ppl_limit=limit)
    for round in range(cfg.rounds):
        vector = extract(model, data.pairs, data.contexts, blocks, cfg.batch_rows)
        c_star, curve = solve(model, vector, data, cfg, str(round))
        first, c_first = (vector, c_star) if round == 0 else (first, c_first)
        table, kappa = collect(model, vector, c_star, data, cfg, limit, str(round))
        run.tensors(f"rounds/{round:02d}/vector", {f"block.{b}": v for b, v in vector.items()})
        run.table(f"rounds/{round:02d}/completions", table)
        run.event("sample", round=round, c_star=c_star, kappa=kappa, curve=curve.to_dicts(),
                  survival=survival(table), cos_first=cosine(vector, first))
        one = table.filter("keep").row(-1, named=True)
        logger.info(f"a kept completion at dose {one['dose']:.2f}, in full:\n"
                    + model.decode(one["prompt_ids"] + one["completion_ids"], special=True))
        measure("steered", round, vector, kappa * c_star)
        stats = heal(model, table.filter("train"), cfg, round)
        run.event("heal", round=round, **stats)
        lora.fold(model.layers, model.gates)
        run.tensors(f"rounds/{round:02d}/adapter", lora.folded(model.layers, round), r=cfg.r,
                    alpha=cfg.alpha, targets=cfg.targets, round=round, model=cfg.model)
        healed = measure("healed", round, {}).measures()
        logger.info(f"round {round + 1} of {cfg.rounds}\n{report.round_table(run.path, round)}")
        if healed["coherence"] < floor:
            logger.warning(f"stopped: coherence {healed['coherence']:.3f} is below {floor:.3f}")
            break
    with model.gates(model.gates.before(0)):  # plain steering, at the trait the student reached
        dose = matched_dose(model, first, data, healed[f"{data.down}_nats"], 4 * c_first, cfg)
        measure("matched", round, first, dose)
    report.finish(run.path)
    logger.info(f"{run.path}\n{report.run_table(run.path)}")
    return run.path


def main(argv: list[str] | None = None) -> None:
    """Command line entry: one clear line and a non-zero exit status on bad input."""
    argv = sys.argv[1:] if argv is None else argv
    log_to_terminal()
    try:
        cfg = parse(argv)
        if cfg.tiny and os.environ.get("STEERLOOP_TYPECHECK") != "1":
            # types are checked by an import hook, which has to be there before the core is
            os.environ["STEERLOOP_TYPECHECK"] = "1"
            os.execv(sys.executable, [sys.executable, "-m", "steerloop.train", *argv])
        train(cfg)
    except (UserError, OSError) as e:
        sys.exit(f"error: {e}")
    except KeyboardInterrupt:
        sys.exit("interrupted: every file in the run folder is whole, the round in flight is lost")


if __name__ == "__main__":
    main()
