"""A run in a process of its own that ends, by a signal, around one of its writes.

Processes are forked from a server that has imported the heavy libraries and nothing else: polars'
threads do not survive a fork.
"""

import dataclasses
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "transformers"])


def work(cfg: Any, said: Path, at: int, how: int, seconds: float) -> None:
    """Run `cfg`; send `how` to itself at write number `at`, before the file has its name (odd) or
    after, or when the seconds are over."""
    import torch

    from steerloop.cli.entry import command
    from steerloop.runfolder import files
    from steerloop.train import train

    torch.set_num_threads(1)
    replace, count = os.replace, iter(range(10**6))
    with said.open("w") as file:
        os.dup2(file.fileno(), 2)

    def replaced(*paths: Any) -> None:
        if (now := next(count)) == at and at % 2:
            os.kill(os.getpid(), how)
        replace(*paths)
        if now == at:
            os.kill(os.getpid(), how)

    files.os.replace = replaced
    if seconds:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), how))
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        command(lambda _: cfg, train, [])
    except SystemExit as e:
        print(e, file=sys.stderr, flush=True)
        os._exit(3)


def cut_off(
    cfg: Any, runs: Path, at: int = -1, how: int = signal.SIGKILL, seconds: float = 0.0
) -> tuple[Path, int, str]:
    """The folder of the run, the exit status (-signal), and what was said last."""
    process = SERVER.Process(target=work, args=(
        dataclasses.replace(cfg, runs=str(runs)), runs / "said", at, how, seconds))
    process.start()
    process.join()
    (run,) = (x for x in runs.iterdir() if x.is_dir())
    lines = [x for x in (runs / "said").read_text().splitlines() if x.strip()]
    return run, process.exitcode, lines[-1] if lines else ""
