"""The method, in one loop: extract, dose, sample, filter, heal, fold, evaluate.

python -m steerloop.train                          the embedded model, CPU, minutes
python -m steerloop.train --model gemma-3-1b-it    the real thing, one 24 GB GPU
python -m steerloop.train --tiny                   smoke run with types checked, seconds
"""

import sys
from pathlib import Path

import polars as pl
import torch
from loguru import logger

from steerloop import lora, report
from steerloop.config import Config, parse
from steerloop.dose import collect, solve
from steerloop.evaluate import evaluate
from steerloop.filter import calibrate
from steerloop.heal import heal
from steerloop.kernels.budget import Ledger
from steerloop.kernels.files import read_data
from steerloop.kernels.folder import work
from steerloop.kernels.options import EVALS, band, command, resolve
from steerloop.kernels.spectral import cosine
from steerloop.model import Model, load
from steerloop.record import open_run
from steerloop.steer import Vector, extract, steered


@torch.no_grad()
def train(cfg: Config) -> Path:
    """Run the whole method and return the run folder. Gradients are on in `heal` alone.

    What the folder of --resume holds is read, not made again: every stage goes through `run.once`.
    Raises UserError, naming the remedy; what was written until then stays.
    """
    data, model = read_data(cfg), load(cfg)
    blocks = band(cfg.steer_blocks, cfg.steer_band, len(model.decoder.layers), "steer")
    probes = [resolve(name) for name in cfg.probes + EVALS[cfg.eval]]
    run = open_run(cfg, str(model.device))

    def measure(state: str, round: int, vector: Vector, dose: float = 0.0, who: Model = model
                ) -> dict[str, float]:
        files = [f"rounds/{round:02d}/{state}.{x}" for x in ("eval", "items")]
        with steered(who, vector, dose):
            rows, items = run.once(files, evaluate, who, data, cfg, probes)
        found = report.measures(rows, items)
        run.event("evaluate", round=round, state=state, dose=dose, measures=found)
        return found

    def healed_and_folded(kept: pl.DataFrame, round: int) -> tuple[dict, dict[str, torch.Tensor]]:
        return heal(model, kept, cfg, round, run), lora.fold(model.layers, model.gates)

    run.event("axis", axis=[data.down, data.up])
    base, vectors, ledger = measure("base", 0, {}), [], Ledger(cfg)
    floor = min(cfg.coh_floor, base["coherence"] - cfg.coh_drop)
    limit = run.once("limit", calibrate, model, data, cfg)
    run.once("planted", resolve("steerloop.evidence:planted"), model, data, cfg, limit)
    run.event("start", floor=floor, ppl_limit=limit)
    for round in range(cfg.rounds):
        at = f"rounds/{round:02d}"
        vectors.append(run.once(f"{at}/vector", extract, model, data.pairs, data.contexts, blocks,
                                cfg.batch_rows))
        c_star, curve = run.once([f"{at}/dose", f"{at}/curve"], solve, model, vectors[-1], data,
                                 cfg, str(round))
        if (most := ledger.allows(curve, c_star)) < cfg.kappa_min:
            logger.warning(f"stopped: {ledger.spent:.3f} nats spent, no dose fits --kl_budget")
            break
        table, kappa = run.once([f"{at}/completions", f"{at}/kappa"], collect, model, vectors[-1],
                                c_star, data, cfg, limit, round, most, run)
        run.event("sample", round=round, c_star=c_star, kappa=kappa, curve=curve.to_dicts(),
                  survival=report.survival(table), cos_first=cosine(vectors[-1], vectors[0]))
        kept = table.filter("train")
        resolve("steerloop.evidence:examples")(model, data, cfg, table, round)
        measure("steered", round, vectors[-1], kappa * c_star)
        stats, adapter = run.once(
            [f"{at}/heal", f"{at}/adapter"], healed_and_folded, kept, round,
            round=round, model=cfg.model, r=cfg.r, alpha=cfg.alpha, targets=cfg.targets)
        if model.gates.live == round:  # that was before an interruption
            lora.load_round(model.layers, model.gates, adapter)
        run.event("heal", round=round, **stats)
        drift = run.once(f"{at}/drift", resolve("steerloop.evidence:drift"), model, kept, data, cfg,
                         vectors[-1])
        run.event("drift", round=round, **drift)
        ledger.book(kappa, drift["kl_base"])
        run.once(f"{at}/diary", resolve("steerloop.evidence:diary"), model, data, cfg, vectors[-1],
                 kappa * c_star, round)
        healed = measure("healed", round, {})
        run.done(work(round))
        logger.info(f"round {round + 1} of {cfg.rounds}\n{report.after_round(run.path, round)}")
        if healed["coherence"] < floor:
            logger.warning(f"stopped: coherence {healed['coherence']:.3f} is below {floor:.3f}")
            break
    resolve("steerloop.baselines:rivals")(model, data, cfg, run, measure, vectors[0], base, healed)
    logger.info(f"{run.path}\n{report.finish(run.path)}")
    return run.path


def main(argv: list[str] | None = None) -> None:
    """Command line entry: one clear line and a non-zero exit status on bad input."""
    command(parse, train, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    main()
