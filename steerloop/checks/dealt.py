"""Groups of sweeps on a random model, whose real points take a second, in processes that see no
monkeypatch of a check: workers of Ray, and a driver that may be killed.

    python -m steerloop.checks.dealt ARGUMENTS OF steerloop.sweep     the command, of such groups
"""

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from steerloop.checks.small import short_config, small_config
from steerloop.config import Config
from steerloop.runfolder.files import write_whole
from steerloop.sweep import __main__ as command
from steerloop.sweep import points
from steerloop.sweep.arms import REGIMES, SWEEPS
from steerloop.sweep.equal import Row
from steerloop.sweep.points import Group

SEEN = "seen"  # folder of notes, beside the points: which process has which group


def small(group: Group, data: Path) -> Config:
    """What the arms of a group have in common, at the least scale; data files are written."""
    cfg = small_config(Path(group.model), quant="none", seed=group.seed, lr=3e-2)
    cfg = short_config(data, cfg, rounds=SWEEPS[group.sweep].rounds, bootstrap=20)
    return replace(cfg, **REGIMES[group.regime])


def dealt(group: Group, there: list[Row]) -> Iterator[list[Row]]:
    """The rows of a group by `rows_of`, of such a config; a note of each step is left."""
    notes = group.out / SEEN
    notes.mkdir(exist_ok=True)
    known = points.config
    with tempfile.TemporaryDirectory() as folder:
        points.config = lambda group: small(group, Path(folder))
        try:
            for count, rows in enumerate(points.rows_of(group, there), 1):
                note = {"group": str(group), "pid": os.getpid(), "node": node(), "arms": count}
                write_whole(notes / f"{os.getpid()}.json", lambda part, note=note: part.write_text(
                    json.dumps(note)))
                yield rows
        finally:
            points.config = known


def node() -> str:
    """The id of the node of this worker; empty in a process that is none."""
    import ray

    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""


def main() -> None:
    """The command, with `dealt` in place of `rows_of`."""
    command.rows_of = dealt
    command.main()


if __name__ == "__main__":
    main()
