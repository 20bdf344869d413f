"""The method, in one loop: extract, dose, sample, filter, heal, fold, evaluate.

python -m steerloop.train                          the embedded model, CPU, minutes
python -m steerloop.train --model gemma-3-1b-it    the real thing, one 24 GB GPU
python -m steerloop.train --tiny                   smoke run with types checked, seconds
"""

import sys
from pathlib import Path

import torch
from loguru import logger

from steerloop import lora, report
from steerloop.config import Config, parse
from steerloop.dose import allowance, collect, solve
from steerloop.evaluate import evaluate
from steerloop.filter import calibrate
from steerloop.heal import heal
from steerloop.kernels.files import read_data
from steerloop.kernels.options import EVALS, band, command, resolve
from steerloop.model import Model, load
from steerloop.record import open_run
from steerloop.steer import Vector, cosine, extract, steered


@torch.no_grad()
def train(cfg: Config) -> Path:
    """Run the whole method and return the run folder. Gradients are on in `heal` alone.

    Raises UserError, naming the remedy; what was written until then stays.
    """
    data, model = read_data(cfg), load(cfg)
    blocks = band(cfg.steer_blocks, cfg.steer_band, len(model.decoder.layers), "steer")
    probes = [resolve(name) for name in cfg.probes + EVALS[cfg.eval]]
    run = open_run(cfg)

    def measure(state: str, round: int, vector: Vector, dose: float = 0.0, who: Model = model
                ) -> dict[str, float]:
        with steered(who, vector, dose):
            rows, items = evaluate(who, data, cfg, probes)
        run.table(f"rounds/{round:02d}/{state}.eval", rows)
        run.table(f"rounds/{round:02d}/{state}.items", items)
        found = report.measures(rows, items)
        run.event("evaluate", round=round, state=state, dose=dose, measures=found)
        return found

    run.event("axis", axis=[data.down, data.up])
    base, vectors, drift = measure("base", 0, {}), [], {"kl_base": 0.0}
    floor = min(cfg.coh_floor, base["coherence"] - cfg.coh_drop)
    limit = calibrate(model, data, cfg)
    run.table("planted", resolve("steerloop.evidence:planted")(model, data, cfg, limit))
    run.event("start", floor=floor, ppl_limit=limit)
    for round in range(cfg.rounds):
        vectors.append(extract(model, data.pairs, data.contexts, blocks, cfg.batch_rows))
        c_star, curve = solve(model, vectors[-1], data, cfg, str(round))
        if (most := allowance(curve, c_star, drift["kl_base"], cfg)) < cfg.kappa_min:
            logger.warning(f"stopped: {drift['kl_base']:.3f} nats spent, no dose fits --kl_budget")
            break
        table, kappa = collect(model, vectors[-1], c_star, data, cfg, limit, str(round), most)
        run.tensors(f"rounds/{round:02d}/vector", {f"block.{b}": v for b, v in vectors[-1].items()})
        run.table(f"rounds/{round:02d}/completions", table)
        run.event("sample", round=round, c_star=c_star, kappa=kappa, curve=curve.to_dicts(),
                  survival=report.survival(table), cos_first=cosine(vectors[-1], vectors[0]))
        kept = table.filter("train")
        resolve("steerloop.evidence:examples")(model, data, cfg, kept, round)
        measure("steered", round, vectors[-1], kappa * c_star)
        run.event("heal", round=round, **heal(model, kept, cfg, round))
        run.tensors(f"rounds/{round:02d}/adapter", lora.fold(model.layers, model.gates),
                    round=round, model=cfg.model, r=cfg.r, alpha=cfg.alpha, targets=cfg.targets)
        drift = resolve("steerloop.evidence:drift")(model, kept, data, cfg, vectors[-1])
        run.event("drift", round=round, **drift)
        resolve("steerloop.evidence:diary")(model, data, cfg, run, round, vectors[-1])
        healed = measure("healed", round, {})
        logger.info(f"round {round + 1} of {cfg.rounds}\n{report.after_round(run.path, round)}")
        if healed["coherence"] < floor:
            logger.warning(f"stopped: coherence {healed['coherence']:.3f} is below {floor:.3f}")
            break
    resolve("steerloop.baselines:rivals")(model, data, cfg, run, measure, vectors[0], base, healed)
    report.finish(run.path)
    logger.info(f"{run.path}\n{report.run_table(run.path)}")
    return run.path


def main(argv: list[str] | None = None) -> None:
    """Command line entry: one clear line and a non-zero exit status on bad input."""
    command(parse, train, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    main()
