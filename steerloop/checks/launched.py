"""A run of several ranks, forked from a process that has loaded the model (`Zygote`): they find
each other as torchrun's do, through a store that outlives them, and one of them may be struck at
any stage. Nothing but the ranks themselves ends the others, for so long as is said here."""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial, wraps
from pathlib import Path
from typing import Any

from steerloop.checks.killed import SERVER, Zygote, ended

STAGES = ("evaluate", "calibrate", "extract", "dose", "sample", "filter", "choose", "heal", "drift")
MIDDLE = "heal, its second step"  # gradients of one were added up already
WAIT = 4  # seconds that a rank waits for another
LONGEST = 150  # seconds of a launch of which no rank ends
MOST = WAIT + 6  # seconds that the others may take to end


@dataclass(frozen=True)
class Strike:
    """What happens to which ranks, as they come to the call of a stage, counted from 0."""

    how: str  # exception, exit, memory, hang, kill
    stage: str
    ranks: tuple[int, ...] = (1,)
    call: int = 0

    def fall(self) -> None:
        import torch

        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "exit":
            os._exit(3)
        if self.how == "hang":
            time.sleep(1e6)
        if self.how == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        raise RuntimeError("planted")

    def struck(self, stage: Callable[..., Any]) -> Callable[..., Any]:
        """A stage that this falls on."""
        calls = [0]

        @wraps(stage)
        def run(*args: Any) -> Any:
            if calls[0] == self.call:
                self.fall()
            calls[0] += 1
            return stage(*args)

        return run


def as_rank(rank: int, count: int, port: int, argv: list[str], strike: Strike | None, cfg: Any
            ) -> dict[str, Any]:
    """What a process of a launch is and does; what it said at its end."""
    from steerloop import train
    from steerloop.cli.entry import command
    from steerloop.config import parse
    from steerloop.evidence import journal
    from steerloop.healing.course import Course

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
                   "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
                   "STEERLOOP_WAIT": str(WAIT)}
    if strike and rank in strike.ranks:
        if strike.stage == MIDDLE:
            Course.advance = Strike(strike.how, "", call=1).struck(Course.advance)
        train.STAGES = tuple(strike.struck(x) if x.__name__ == strike.stage else x
                             for x in train.STAGES)
        if strike.stage == "evaluate":  # which is called from where states are measured
            journal.evaluate = strike.struck(journal.evaluate)
    options = (lambda _: parse(argv)) if argv else (lambda _: cfg)
    return {"said": ended(lambda: command(options, train.train, []))}


def launch(zygote: Zygote, at: Path, count: int, strike: Strike | None = None,
           resume: Path | None = None) -> dict[str, Any]:
    """A launch of so many ranks in a folder: of each its status (negative: a signal) and what it
    said; the seconds that the last took to end after the first; those that had to be killed; and
    the folder of the run."""
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=60),
                          wait_for_workers=False)
    argv, left, first, hung = ["--resume", str(resume)] if resume else [], {}, 0.0, []
    status: dict[int, int] = {}
    start = time.monotonic()
    for rank in range(count):
        job = partial(as_rank, rank, count, store.port, argv, strike, zygote.cfg)
        left[zygote.fork(job, at / f"rank-{rank}")] = rank
    while left:
        pid, code = os.waitpid(-1, os.WNOHANG)
        if pid:
            status[left.pop(pid)] = os.waitstatus_to_exitcode(code)
            first = first or time.monotonic()
            continue
        time.sleep(0.01)
        over = first and time.monotonic() - first > MOST
        if not hung and (over or time.monotonic() - start > LONGEST):
            hung = sorted(left.values())
            for other in left:
                os.kill(other, signal.SIGKILL)
    spent, words = time.monotonic() - first, {x: at / f"rank-{x}.json" for x in range(count)}
    said = [json.loads(x.read_text())["said"] if x.exists() else "killed" for x in words.values()]
    run = resume or next((at / "rank-0" / "runs").glob("2*"), None)
    return {"status": [status[x] for x in range(count)], "said": said, "seconds": spent,
            "hung": hung, "run": str(run.absolute()) if run else ""}


def survey(cfg: Any, into: Path, cases: dict[str, list[tuple[int, Strike | None]]]) -> None:
    """Each case in a folder of its own: launches of so many ranks, of which the second goes on in
    the folder of the first. What they came to, into `into`/found.json."""
    zygote, found = Zygote(cfg), {}
    for name, launches in cases.items():
        run, found[name] = None, []
        for number, (count, strike) in enumerate(launches):
            found[name].append(launch(zygote, into / name / str(number), count, strike, run))
            run = Path(found[name][0]["run"])
    (into / "found.json").write_text(json.dumps(found, indent=1))


def surveyed(cfg: Any, into: Path, cases: dict[str, list[tuple[int, Strike | None]]]
             ) -> dict[str, list[dict[str, Any]]]:
    """What `survey` found, from a process of its own."""
    process = SERVER.Process(target=survey, args=(cfg, into, cases))
    process.start()
    process.join()
    return json.loads((into / "found.json").read_text())
