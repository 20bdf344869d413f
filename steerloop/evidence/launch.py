"""A run that torchrun starts: its ranks find each other, and a launch that was started again goes
on in the folder that it began."""

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path

from steerloop.config import Config, parse
from steerloop.ranks import RESTARTS, joined
from steerloop.runfolder.opening import begun, forget_launch


def in_ranks(run: Callable[[Config], Path]) -> Callable[[Config], Path]:
    """`run` as every rank of a launch calls it; one process alone calls it as it is."""

    @wraps(run)
    def together(cfg: Config) -> Path:
        with joined():
            before = begun() if int(os.environ.get(RESTARTS, "0")) else None
            path = run(cfg if cfg.resume or not before else parse(["--resume", str(before)]))
            forget_launch()
            return path

    return together
