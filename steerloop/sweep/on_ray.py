"""Groups of arms as tasks of a Ray cluster. A task makes rows and writes nothing; they come to the
process that was started, arm by arm, and it appends them.

A task whose worker or node dies is begun again, wherever there is room, with the rows that came so
far: only arms that had not ended are run anew. Ray's own retries would run all of them, and are
off. A worker ends with its task, so that no two groups share a process, nor memory of a GPU.
"""

import os
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read at Ray's import: nobody is told that it is used
os.environ.setdefault("TQDM_DISABLE", "1")  # read at its import, by workers too: nobody sees bars

from loguru import logger

from steerloop import UserError
from steerloop.runfolder.identity import source
from steerloop.sweep.equal import Row
from steerloop.sweep.points import Group, append, file_of, missing, read_rows, tell, todo

PORT = 6379  # of a cluster's head, unless it was started on another
ANSWER = 10  # seconds that a head may take to answer
DEATHS = 5  # of workers or nodes in a row, without a row between, after which a group is left
Make = Callable[[Group, list[Row]], Iterator[list[Row]]]


@dataclass(frozen=True)
class Asked:
    """Where the cluster is (HOST, HOST:PORT or auto; if empty, whichever Ray finds, else one that
    is started on this machine), what a task takes of it, and what its node has to have."""

    address: str = ""
    cpus: int = 1
    gpus: float = 0.0
    folder: str = field(default_factory=os.getcwd)  # relative names of models are seen from here
    source: str = field(default_factory=source)  # hash of the code


def drive(groups: list[Group], make: Make, asked: Asked) -> Iterator[Group]:
    """Run what groups lack on a cluster; rows are appended as they come. Yields a group whenever
    one is done.

    Raises UserError where there is no cluster, where a node cannot do what it is given, and, when
    all others are done, for groups that were left."""
    ray = library()
    died = (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError,
            ray.exceptions.ObjectLostError, ray.exceptions.OutOfMemoryError)
    arms = {x: len(todo(x, there(x))) for x in groups}
    wanted, deaths = sum(arms.values()), Counter[Group]()
    with joined(ray, asked):
        remote = ray.remote(num_cpus=asked.cpus, num_gpus=asked.gpus, num_returns="streaming",
                            max_retries=0, max_calls=1)
        # where types are checked `task` is a wrapper, which Ray does not take for a generator
        run = remote(lambda *given: (yield from task(*given)))

        def begun(group: Group) -> Any:
            given = replace(group, out=group.out.absolute())
            return run.remote(given, there(group), group.weights, make, asked)

        running = {begun(x): x for x in groups if arms[x] or missing(x, there(x))}
        while running:
            (stream,), _ = ray.wait(list(running), num_returns=1)
            group = running[stream]
            try:
                host, rows = ray.get(next(stream))
            except StopIteration:
                del running[stream]
                yield group
            except died as e:
                del running[stream]
                deaths[group] += 1
                logger.warning(f"{group}: its worker or node died ({type(e).__name__})")
                if deaths[group] < DEATHS:
                    running[begun(group)] = group
            except ray.exceptions.RayTaskError as e:  # whose text is a traceback
                raise e.cause if isinstance(e.cause, Exception) else e  # noqa: B904
            else:
                deaths[group] = 0
                tell(append(file_of(group.out, group.sweep), rows))
                arms[group] = len(todo(group, there(group)))
                logger.info(f"{group}: {rows[0]['arm']} {rows[0]['setting']} came from {host}; "
                            f"{wanted - sum(arms.values())} of {wanted} arms are done")
    if left := [str(x) for x, n in deaths.items() if n >= DEATHS]:
        raise UserError(f"{'; '.join(left)}: left, workers died {DEATHS} times in a row; if for "
                        "lack of memory, ask for more of a node, by --cpus-per-run or "
                        "--gpus-per-run; the same command goes on")


def there(group: Group) -> list[Row]:
    """The rows of a group that came so far."""
    return group.own(read_rows(file_of(group.out, group.sweep)))


def task(
    group: Group, rows: list[Row], weights: str, make: Make, asked: Asked
) -> Iterator[tuple[str, list[Row]]]:
    """What a worker does: `make` the rows of a group that are not among `rows`; with the name of
    its machine. Raises UserError where code or model are others than where the sweep was
    started."""
    if Path(asked.folder).is_dir():
        os.chdir(asked.folder)
    host = socket.gethostname()
    if source() != asked.source:
        raise UserError(f"{host} has another version of steerloop than the machine that the sweep "
                        "was started on: install the same one on all")
    if group.weights != weights:
        raise UserError(f"{host} has another model of the name {group.model}: give one that all "
                        "machines see, in a shared folder or by short name")
    for made in make(group, rows):
        yield host, made


def library() -> Any:
    """Ray. Raises UserError where it is not installed."""
    try:
        import ray
        import ray.exceptions  # a folder of that name has none
    except ImportError as e:
        raise UserError("--on ray needs Ray: pip install 'steerloop[ray]'") from e
    return ray


@contextmanager
def joined(ray: Any, asked: Asked) -> Iterator[None]:
    """Until the block ends this process is a driver of the cluster; then its tasks are ended.
    Raises UserError where there is none at the address."""
    before = signal.getsignal(signal.SIGTERM)
    host, _, port = asked.address.partition(":")
    address = f"{host}:{port or PORT}" if host not in ("", "auto", "local") else asked.address
    try:
        if ":" in address:  # of a machine that does not answer Ray says so after minutes
            socket.create_connection((host, int(port or PORT)), timeout=ANSWER).close()
        ray.init(address or None, log_to_driver=False, include_dashboard=False,
                 logging_level="WARNING")
    except (OSError, RuntimeError, ValueError) as e:
        raise UserError(f"--address {asked.address}: no cluster that can be joined: start one with "
                        f"`ray start --head`, with this version of Ray ({e})") from e
    signal.signal(signal.SIGTERM, before)  # ends as Ctrl-C does, which Ray's handler does not
    try:
        nodes = [x["Resources"] for x in ray.nodes() if x["Alive"]]
        if not any(x.get("CPU", 0) >= asked.cpus and x.get("GPU", 0) >= asked.gpus for x in nodes):
            logger.warning(f"no node of the cluster has {asked.cpus} CPUs and {asked.gpus:g} GPUs: "
                           "waiting for one that does")
        yield
    finally:
        ray.shutdown()
