"""Tasks of the lm-evaluation-harness on a state of the model: what it could do before, and still
can.

The package `lm_eval` (extra `eval`) says what is asked and what counts as right; the model in
memory answers, as it stands (language.py). Kept is a value per item (items.py), so that two states
are compared on the same items (report/capability.py).
"""

import hashlib
import json
import logging
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from difflib import get_close_matches
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from loguru import logger

from steerloop import UserError
from steerloop.config import Config
from steerloop.harness.items import table
from steerloop.model import Model
from steerloop.readouts.probes import probes
from steerloop.readouts.states import Vector
from steerloop.steer import steered
from steerloop.trackers import usable

PACKAGE = "lm_eval"
OURS = (UserError, RuntimeError, MemoryError, OSError)  # errors that are no task's


class Tasks(NamedTuple):
    """Tasks, ready to be asked: by the name that was asked for, the names of those it stands for;
    and what the harness takes (of a group, its parts)."""

    names: dict[str, list[str]]
    loaded: dict[str, Any]


def present(cfg: Config) -> None:
    """Whether all is there that --probes, --eval, --tasks and --track name; data of tasks is
    fetched. Raises UserError where something is not, so that nothing is computed before."""
    usable(cfg.track)
    probes(cfg)
    if cfg.tasks:
        tasks_of(cfg)


def tasks_of(cfg: Config) -> Tasks:
    """The tasks of a run. Raises UserError (see `load_tasks`)."""
    return load_tasks(tuple(cfg.tasks), cfg.tasks_path, cfg.seed)


@cache
def load_tasks(names: tuple[str, ...], folder: str, seed: int) -> Tasks:
    """Tasks by name (a group or a tag stands for its parts), of the harness and of `folder`; once a
    process. Few-shot examples are drawn by `seed`.

    Raises UserError where the package is not installed, there is no such task, its data cannot be
    had, or it asks for what is not answered here: pictures, or code that is run.
    """
    if find_spec(PACKAGE) is None:
        raise UserError(f"--tasks needs the package {PACKAGE}, which is not installed here: "
                        "pip install 'steerloop[eval]'")
    from lm_eval.tasks import TaskManager

    logging.getLogger(PACKAGE).setLevel(logging.ERROR)
    manager = TaskManager(include_path=folder or None)
    parts, whole = {}, {"tasks": {}, "groups": {}, "group_map": {}}
    for name in names:
        if name not in manager.task_index:
            near = ", ".join(get_close_matches(name, manager.all_tasks, 3))
            raise UserError(f"--tasks {name}: there is no such task" + (
                f"; there are {near}" if near else "") + " (--tasks_path names a folder of others)")
        try:
            with no_bars(), own_draws(seed):
                found = manager.load([name])
        except Exception as e:  # whatever the code or the data of a task comes to
            raise UserError(f"--tasks {name}: it cannot be loaded ({type(e).__name__}: "
                            f"{first_line(e)})") from e
        for part, task in found["tasks"].items():
            prepare(name, part, task, seed)
        parts[name] = list(found["tasks"])
        for kind in whole:
            whole[kind] |= found[kind]
    return Tasks(parts, whole)


def first_line(error: Exception) -> str:
    """What an error of others says first."""
    return (str(error).strip() or "no reason given").splitlines()[0]


def prepare(name: str, part: str, task: Any, seed: int) -> None:
    """Settle how many examples a task shows, as the harness does, and which. Raises UserError for
    one that is not answered here."""
    for flag, why in (("MULTIMODAL", "shows pictures"), ("UNSAFE_CODE", "runs what is written")):
        if getattr(task, flag, False):
            raise UserError(f"--tasks {name}: {part} {why}, which is not done here")
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=seed)


def definitions(cfg: Config) -> dict[str, Any]:
    """What a run records of its tasks: the version of the harness, and of every part its version
    and a hash of its definition."""
    tasks, known = tasks_of(cfg), {}
    for part, task in tasks.loaded["tasks"].items():
        text = json.dumps(task.dump_config(), sort_keys=True, default=lambda x: type(x).__name__)
        known[part] = f"{task.VERSION} {hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return {PACKAGE: version(PACKAGE), "tasks": {
        name: {part: known[part] for part in parts} for name, parts in tasks.names.items()}}


@torch.no_grad()
def capability(
    model: Model, cfg: Config, vector: Vector | None = None, dose: float = 0.0
) -> pl.DataFrame:
    """The tasks of a run on the model as it stands, steered at `dose` (units of the vector): a row
    per item and measure (see `items.table`). Raises UserError for what gives no numbers."""
    from lm_eval.evaluator import evaluate

    from steerloop.harness.language import Asked

    tasks, begun = tasks_of(cfg), monotonic()
    asked = Asked(model, cfg)
    with steered(model, vector or {}, dose), own_draws(cfg.seed), no_bars():
        try:
            found = evaluate(
                asked, tasks.loaded, limit=cfg.tasks_limit or None, bootstrap_iters=0,
                apply_chat_template=cfg.tasks_chat, fewshot_as_multiturn=cfg.tasks_chat)
        except OURS:
            raise
        except Exception as e:  # whatever the code of a task comes to
            raise UserError(f"--tasks {','.join(cfg.tasks)}: the harness fails on them "
                            f"({type(e).__name__}: {first_line(e)})") from e
    if asked.cut:
        logger.warning(f"tasks: {asked.cut} prompts were longer than the model takes, and were cut "
                       "at their start")
    rows = table(tasks.names, tasks.loaded["tasks"], found["samples"])
    logger.info(f"tasks: {', '.join(cfg.tasks)} in {monotonic() - begun:.1f} s")
    return rows


@contextmanager
def no_bars() -> Iterator[None]:
    """While open, bars of the harness go nowhere, unless to a terminal: steerloop's log lines say
    what is going on."""
    if sys.stderr is not None and sys.stderr.isatty():
        yield
        return
    with redirect_stderr(StringIO()):
        yield


@contextmanager
def own_draws(seed: int) -> Iterator[None]:
    """While open, the global generators, which tasks may use, start from `seed`; afterwards they
    are where they were: a run draws the same with tasks and without."""
    here, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(here)
            np.random.set_state(numbers)
