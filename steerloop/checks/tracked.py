"""Stand-ins for the libraries of --track, put in their place: each takes what the real one takes,
as far as it is called, and a `Store` is what outlives a process: files, a server, a database.

What a process has not handed over yet is lost when it is killed (`Store.killed`).
"""

import sys
from collections import defaultdict
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

NAMES = {
    "tensorboard": ("tensorboard", "tensorboard.backend", "tensorboard.backend.event_processing",
                    "tensorboard.backend.event_processing.event_accumulator",
                    "torch.utils.tensorboard", "torch.utils.tensorboard.summary"),
    "wandb": ("wandb",),
    "trackio": ("trackio", "trackio.sqlite_storage", "trackio.utils"),
}


class Broken(Exception):
    """What a library raises."""


class Store:
    """Points by run, session by session: (name, at, value); the same of words, without a place."""

    def __init__(self, online: bool = True, fails: str = "") -> None:
        self.points: dict[str, list[list[tuple[str, int, float]]]] = defaultdict(list)
        self.words: dict[str, str] = {}
        self.config: dict[str, Any] = {}
        self.online, self.fails, self.killed = online, fails, False
        self.closed: list[Any] = []

    def at(self, place: str) -> None:
        """The library comes to this place, which may be where it fails."""
        if place == self.fails:
            raise Broken("the network is down\nand more")

    def all(self) -> list[tuple[str, int, float]]:
        """Points of the one run that there is, of all sessions."""
        (run,) = self.points.values()
        return [x for session in run for x in session]

    def begun(self, run: str) -> list[tuple[str, int, float]]:
        """Where a session of a run puts its points."""
        self.killed = False
        self.points[run].append([])
        return self.points[run][-1]


def tensorboard(store: Store) -> dict[str, dict[str, Any]]:
    """What is written is in the file once it was flushed."""

    class SummaryWriter:
        def __init__(self, log_dir: str) -> None:
            store.at("open")
            Path(log_dir).mkdir(exist_ok=True)
            self.file, self.buffer = store.begun(log_dir), []
            self.file_writer = SimpleNamespace(add_summary=lambda summary: None)

        def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
            store.at("row")
            self.buffer.append((tag, global_step, scalar_value))

        def add_text(self, tag: str, text_string: str, global_step: int) -> None:
            assert f"{tag}/text_summary" not in store.words or tag == "run"
            store.words[f"{tag}/text_summary"] = text_string

        def flush(self) -> None:
            self.file += [] if store.killed else self.buffer
            self.buffer = []

        def close(self) -> None:
            store.at("close")
            self.flush()

    class EventAccumulator:
        def __init__(self, path: str, size_guidance: dict[str, int]) -> None:
            assert set(size_guidance.values()) == {0}  # all of them, no sample
            self.path = path

        def Reload(self) -> Any:
            self.rows = [x for session in store.points[self.path] for x in session]
            return self

        def Tags(self) -> dict[str, list[str]]:
            return {"scalars": sorted({x[0] for x in self.rows}), "tensors": [*store.words]}

        def Scalars(self, tag: str) -> list[Any]:
            return [SimpleNamespace(step=x[1], value=x[2]) for x in self.rows if x[0] == tag]

        def Tensors(self, tag: str) -> list[Any]:
            return [SimpleNamespace(step=0)]

    def hparams(hparam_dict: dict[str, Any], metric_dict: dict[str, Any]) -> tuple[()]:
        assert all(isinstance(x, bool | int | float | str) for x in hparam_dict.values())
        store.config = hparam_dict
        return ()

    return {NAMES["tensorboard"][3]: {"EventAccumulator": EventAccumulator},
            "torch.utils.tensorboard": {"SummaryWriter": SummaryWriter},
            "torch.utils.tensorboard.summary": {"hparams": hparams}}


def wandb(store: Store) -> dict[str, dict[str, Any]]:
    """A service has what was logged, whatever becomes of the process. It takes no step that is
    behind; online it knows the steps of earlier sessions."""

    class Run:
        def __init__(self, id: str, config: dict[str, Any]) -> None:
            known = [x[3] for session in steps[id] for x in session] if store.online else []
            self.step = max(known, default=-1) + 1
            self.rows, self.history = store.begun(id), []
            steps[id].append(self.history)
            self.summary, store.config = store.words, config
            self.axes: dict[str, str] = {}

        def define_metric(self, name: str, step_metric: str) -> None:
            self.axes[name.removesuffix("*")] = step_metric

        def log(self, data: dict[str, float], step: int) -> None:
            store.at("row")
            assert step >= self.step, "the library drops it"
            (axis,) = {axis for start, axis in self.axes.items() for x in data
                       if x.startswith(start) and x != axis}
            self.rows += [(k, data[axis], x) for k, x in data.items() if k != axis]
            self.history += [(k, data[axis], x, step) for k, x in data.items()]
            self.step = step + 1

        def finish(self, exit_code: int) -> None:
            store.at("close")
            store.closed.append(exit_code)

    steps: dict[str, list[Any]] = defaultdict(list)

    def init(project: str, id: str, name: str, config: dict[str, Any], resume: str, dir: str,
             reinit: str, settings: Any) -> Run:
        store.at("open")
        assert (resume, reinit, settings.console) == ("allow", "create_new", "off")
        assert len(id) <= 128 and not set(id) & set("/\\#?%:") and Path(dir).name == name
        (Path(dir) / "wandb").mkdir(exist_ok=True)
        return Run(id, config)

    return {"wandb": {"init": init, "login": lambda verify: store.at("login"),
                      "Settings": SimpleNamespace}}


def trackio(store: Store) -> dict[str, dict[str, Any]]:
    """A thread writes what was logged a little later: the last row is still to be written."""

    class Run:
        def __init__(self, name: str) -> None:
            self.rows, self.queue = store.begun(name), []

        def log(self, metrics: dict[str, Any], step: int) -> None:
            store.at("row")
            self.write()
            self.queue = [(k, step, x) for k, x in metrics.items()]

        def write(self) -> None:
            self.rows += [x for x in self.queue if not isinstance(x[2], str)]
            store.words |= {k: x for k, _, x in self.queue if isinstance(x, str)}

        def finish(self) -> None:
            store.at("close")
            if not store.killed:
                self.write()

    def init(project: str, name: str, resume: str, embed: bool, config: dict[str, Any]) -> Run:
        store.at("open")
        assert project == "steerloop" and resume == "allow" and not embed
        store.config = config
        return Run(name)

    def get_logs(project: str, run: str) -> list[dict[str, Any]]:
        there = [x for session in store.points[run] for x in session] if store.online else []
        return [{"step": at, "timestamp": "", k: x} for k, at, x in there]

    return {"trackio": {"init": init}, "trackio.utils": {"get_storage_mode": lambda: "sqlite"},
            "trackio.sqlite_storage": {"SQLiteStorage": SimpleNamespace(get_logs=get_logs)}}


def stand_in(monkeypatch: Any, track: str, store: Store) -> None:
    """From now on a library is this one."""
    make: Callable[[Store], dict[str, dict[str, Any]]] = globals()[track]
    content = make(store)
    for name in NAMES[track]:
        module = ModuleType(name)
        module.__spec__, module.__path__ = ModuleSpec(name, None), []
        vars(module).update(content.get(name, {}))
        monkeypatch.setitem(sys.modules, name, module)
    if track == "trackio":
        for name in ("sqlite_storage", "utils"):
            setattr(sys.modules["trackio"], name, sys.modules[f"trackio.{name}"])


def absent(monkeypatch: Any, track: str) -> None:
    """From now on a library cannot be imported."""
    for name in NAMES[track]:
        monkeypatch.setitem(sys.modules, name, None)
