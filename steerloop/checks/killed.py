"""A run stopped at every place where it touches its folder, one after another.

A place is a call that changes what is on the disk: open for writing, write, sync, rename, mkdir,
truncate, unlink, rmdir, a line of the log. The run is made once, in a process that is forked from
one that has loaded the model (`Zygote`). At each place two things are done:

    killed   What SIGKILL leaves behind is what is in the folder at that instant, since all that a
             process has beside it is gone with it. So the folder's content is noted, and later a
             process resumes from a copy of it; where bytes were written since the last place,
             there is one more place, which has half of them. That a real kill leaves the same
             is tried at some of the places (`Watch.die`).
    failed   A process is forked that has a copy of the folder, and goes on in it, but from this
             call on all writing fails (disk full, or read only). It has to end in one line. (Not
             where a page is written while the run goes on: that ends no run, and a forked process
             cannot compute on; `check_followed` looks at these.)

States with the same content are resumed once: nothing else reaches the process that resumes.
"""

import builtins
import dataclasses
import errno
import hashlib
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from safetensors import SafetensorError

from steerloop.checks.digest import of_tensors

SERVER = multiprocessing.get_context("forkserver")
APART = ("log.txt", "lock")  # nothing reads them, and the clock writes into one
FAULTS = (errno.ENOSPC, errno.EROFS)
NOBODY = 999999999  # number of no process
LINE = 30  # seconds that a process may take to say why it ends
State = dict[str, str]  # path → SHA-256 of its content, "" of a folder


class Short:
    """An open file on a disk that becomes full: half of what is written arrives."""

    def __init__(self, file: Any, number: int) -> None:
        self.file, self.number = file, number

    def write(self, data: Any) -> int:
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        raise OSError(self.number, os.strerror(self.number))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "Short":
        if ".parquet" in str(self.file.name):  # polars' threads did not survive the fork
            self.write(b"PAR1PAR1")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


class Watch:
    """Sees every place of the process it is in, below `root`/runs, and keeps each state of that
    folder below `store`. At a `share` of them, drawn, the disk fails for a copy of the process.
    With `die` the process is killed at the place of that number."""

    def __init__(self, root: Path, store: Path, share: float = 0.0, die: int = -1) -> None:
        self.root, self.store, self.share, self.die = root / "runs", store, share, die
        self.rng = Random(0)
        self.real = {x: getattr(os, x) for x in (
            "replace", "fsync", "mkdir", "unlink", "rmdir", "truncate")}
        self.open, self.broken, self.busy = io.open, 0, False
        self.hashes: dict[tuple[Any, ...], str] = {}
        self.now: State = {}
        self.places: list[dict[str, Any]] = []  # op, path, state, page
        self.paging = False  # whether a page is written while the run goes on
        self.said: list[dict[str, Any]] = []  # of the processes on a broken disk
        store.mkdir(parents=True, exist_ok=True)
        self.install()

    def install(self) -> None:
        """Put the hooks in; they go with the process."""
        from loguru._file_sink import FileSink
        from loguru._logger import Logger

        from steerloop.report import summary
        from steerloop.runfolder import folder

        tried = summary.tried

        def paged(*args: Any, **kwargs: Any) -> None:
            self.paging = True
            try:
                tried(*args, **kwargs)
            finally:
                self.paging = False

        summary.tried = paged
        def hooked(name: str, path_of: Callable[..., Any]) -> None:
            real = self.real[name]

            def call(*args: Any, **kwargs: Any) -> Any:
                path = None if self.busy else path_of(*args, **kwargs)
                if path is not None and self.inside(path):
                    self.place(name, path)
                    self.fail()
                return real(*args, **kwargs)

            setattr(os, name, call)

        def there(path: Any, *_: Any, dir_fd: int | None = None) -> Path | None:
            folder = Path() if dir_fd is None else Path(os.readlink(f"/proc/self/fd/{dir_fd}"))
            return folder / path if os.path.lexists(folder / path) else None

        hooked("replace", lambda source, target: Path(target))
        hooked("fsync", lambda number: Path(os.readlink(f"/proc/self/fd/{number}")))
        hooked("mkdir", lambda path, *_: None if os.path.lexists(path) else Path(path))
        hooked("unlink", there)
        hooked("rmdir", there)
        hooked("truncate", lambda path, _: Path(path))

        def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            named = isinstance(file, str | os.PathLike) and not self.busy
            if not named or not set(mode) & set("wax+") or not self.inside(Path(file)):
                return self.open(file, mode, *args, **kwargs)
            self.place("open", Path(file))
            self.fail()
            stream, origin = self.open(file, mode, *args, **kwargs), self.root.absolute()
            self.place("write", Path(file))
            if not self.broken:
                return stream
            copy = self.root / Path(file).absolute().relative_to(origin) if Path(
                file).is_absolute() else file  # the working directory is the copy's
            return Short(self.open(copy, mode, *args, **kwargs), self.broken)

        io.open = builtins.open = opened
        save = folder.save_file

        def saved(tensors: Any, path: Path, *args: Any) -> None:
            self.place("save", path)
            self.fail()
            save(tensors, path, *args)

        folder.save_file = saved
        log, write = Logger._log, FileSink.write

        def logged(logger: Any, *args: Any, **kwargs: Any) -> None:
            if not self.busy and (path := next(self.root.glob("*/log.txt"), None)):
                self.place("log", path)
            log(logger, *args, **kwargs)

        def written(sink: Any, message: str) -> None:
            if self.broken:
                write(sink, message[: len(message) // 2])
                self.fail()
            write(sink, message)

        Logger._log, FileSink.write = logged, written

    def inside(self, path: Path) -> bool:
        return path.absolute().is_relative_to(self.root.absolute())

    def fail(self) -> None:
        if self.broken:
            raise OSError(self.broken, os.strerror(self.broken))

    def look(self) -> State:
        """What is on the disk; a temporary file by the name of what it becomes."""
        state: State = {}
        for path in self.root.rglob("*"):
            name = str(path.relative_to(self.root))
            if path.name.endswith(".part"):
                of = path.name[1:].rsplit(".", 2)[0]
                name = str(Path(name).parent / f".{of}.{NOBODY}.part")
            if path.is_dir():
                state[name] = ""
                continue
            at = path.stat()
            key = (name, at.st_ino, at.st_size, at.st_mtime_ns)
            if key not in self.hashes:
                self.hashes[key] = self.keep(path.read_bytes())
            state[name] = self.hashes[key]
        return state

    def keep(self, data: bytes) -> str:
        """Put a content into the store."""
        name = hashlib.sha256(data).hexdigest()
        if not (self.store / name).exists():
            (self.store / name).write_bytes(data)
        return name

    def place(self, op: str, path: Path) -> None:
        """Note the folder, and that it may be found like this; see that nothing was written
        unseen; let a copy of the process fail here."""
        if self.broken:
            return
        self.busy = True
        before, self.now = self.now, self.look()
        names = {x for x in before.keys() | self.now.keys() if before.get(x) != self.now.get(x)}
        names = {x for x in names if not x.endswith("/log.txt")}
        renamed = {str(Path(x).parent / f".{Path(x).name}.{NOBODY}.part") for x in names} & names
        unseen = names - renamed
        assert len(unseen) <= 1, f"written unseen before {op} {path}: {unseen}"
        for name in (*(unseen if not renamed else ()), *(
                x for x in self.now if x.endswith("/log.txt"))):
            if before.get(name) != self.now.get(name) and self.now.get(name):
                self.halved(name, before.get(name, ""))
        if len(self.places) == self.die:
            os.kill(os.getpid(), signal.SIGKILL)
        self.note(op, str(path))
        for number in FAULTS if self.rng.random() < self.share and not self.paging else ():
            self.broken_from_here(number)
            if self.broken:
                break
        self.busy = False

    def halved(self, name: str, before: str) -> None:
        """A place more: half of what was written to a file since the last one is there."""
        data = (self.store / self.now[name]).read_bytes()
        start = (self.store / before).read_bytes() if before else b""
        kept = len(start) if data.startswith(start) else 0
        if len(data) - kept > 1:
            half = self.keep(data[: kept + (len(data) - kept) // 2])
            self.note("half", name, self.now | {name: half})

    def note(self, op: str, path: str, state: State | None = None) -> None:
        self.places.append({"op": op, "path": path, "state": dict(state or self.now),
                            "page": self.paging})

    def broken_from_here(self, number: int) -> None:
        """A process like this one, in a copy of the folder, whose disk is broken; this one waits
        until it has ended."""
        at = self.root.parent.with_name(f"broken-{len(self.places)}-{number}")
        if process := os.fork():
            _, status = os.waitpid(process, 0)
            result = at / "said.json"
            said = json.loads(result.read_text()) if result.exists() else {
                "said": f"no word: status {status}"}
            self.said.append(said | {k: self.places[-1][k] for k in ("op", "path")})
            shutil.rmtree(at)
            return
        signal.alarm(LINE)
        shutil.copytree(self.root.parent, at)
        for link in Path("/proc/self/fd").iterdir():
            if link.is_symlink() and (target := Path(os.readlink(link))).name == "log.txt":
                with self.open(at / target.relative_to(self.root.parent.absolute()), "ab") as file:
                    os.dup2(file.fileno(), int(link.name))
        os.chdir(at)
        self.root, self.broken = at / "runs", number


def ended(run: Callable[[], Any]) -> str:
    """How a command ended: "" well, its last word, or a traceback."""
    try:
        run()
    except SystemExit as e:
        return str(e.args[0] or "") if e.args else ""
    except BaseException:
        return f"traceback\n{traceback.format_exc()}"
    return ""


def put(state: State, store: Path, root: Path) -> None:
    """Make a folder that has this state."""
    for name, content in sorted(state.items()):
        path = root / "runs" / name
        if content:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(store / content, path)
        else:
            path.mkdir(parents=True, exist_ok=True)


def print_of(runs: Path) -> dict[str, str]:
    """Every file of a finished run and what lies beside it; what a digest says of tensors, since
    the library writes their metadata in any order."""
    found = {}
    for path in sorted(x for x in runs.rglob("*") if x.name not in APART):
        name = str(path.relative_to(runs))
        if path.is_dir():
            found[name] = ""
        elif ".safetensors" in path.name:
            with suppress(SafetensorError):  # of which half was written
                found[name] = of_tensors(path)
        elif "checksums.txt" in path.name:
            lines = path.read_text().splitlines()
            found[name] = "\n".join(x for x in lines[1:] if not x.endswith(".safetensors"))
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


class Zygote:
    """Has loaded the model of `cfg`, and forks a process for each job: nothing is loaded twice. It
    has read no table yet: polars' threads do not survive a fork."""

    def __init__(self, cfg: Any) -> None:
        import torch

        import steerloop.report.__main__  # noqa: F401, so that no fork has to load it
        from steerloop import train
        from steerloop.runfolder import identity

        torch.set_num_threads(1)
        self.cfg = dataclasses.replace(cfg, runs="runs")
        model = train.load(self.cfg)
        train.load = lambda cfg: model
        identity.code_version = lambda: ""

    def fork(self, job: Callable[[], Any], root: Path) -> int:
        """A process that does a job in a folder of its own, and leaves there what it returns."""
        if pid := os.fork():
            return pid
        try:
            root.mkdir(parents=True, exist_ok=True)
            os.chdir(root)
            with (root.with_suffix(".out")).open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            result = job()
        except BaseException:
            result = {"said": f"traceback\n{traceback.format_exc()}"}
        with root.with_suffix(".json").open("w") as file:
            file.write(json.dumps(result))
        os._exit(0)

    def all(self, jobs: dict[str, Callable[[], Any]], into: Path, beside: int) -> dict[str, Any]:
        """What the jobs return, so many of them at a time."""
        at, todo = set(), list(jobs.items())
        while todo or at:
            if todo and len(at) < beside:
                name, job = todo.pop(0)
                at.add(self.fork(job, into / name))
            else:
                at.discard(os.wait()[0])
        read = {name: into / f"{name}.json" for name in jobs}
        return {k: json.loads(x.read_text()) if x.exists() else {"said": "killed"}
                for k, x in read.items()}

    def first(self, into: Path, share: float = 0.0, die: int = -1) -> dict[str, Any]:
        """The run from its beginning, watched."""
        from steerloop.cli.entry import command
        from steerloop.runfolder import opening
        from steerloop.train import train

        class Still(opening.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return cls(2024, 1, 2, 3, 4, 5, tzinfo=tz)

        opening.datetime = Still  # runs of one name
        watch = Watch(Path.cwd(), into, share, die)
        said = ended(lambda: command(lambda _: self.cfg, train, []))
        watch.busy = True
        if watch.broken:
            Path("said.json").write_text(json.dumps({"said": said, "state": watch.look()}))
            os._exit(0)
        watch.note("end", "", watch.look())
        return {"said": said, "places": watch.places, "broken": watch.said,
                "print": print_of(Path("runs"))}

    def again(self, state: State, store: Path, whole: dict[str, str]) -> dict[str, Any]:
        """A folder as it was found: what `report` says of it, and whether the resumed run is the
        `whole` one."""
        from steerloop.cli.entry import command
        from steerloop.config import parse
        from steerloop.report.__main__ import main as report
        from steerloop.train import train

        result: dict[str, Any] = {"report": ""}
        here = Path.cwd()
        runs = sorted({x.split("/")[0] for x in state if state[x] == "" and "/" not in x})
        run = Path("runs") / runs[0] if runs else None
        if run is None or not any(x.endswith("/config.json") for x in state):
            result["said"] = ended(lambda: command(parse, train, ["--resume", str(run)]))
            return result | {"same": "no run folder" in result["said"]}  # nothing is lost
        (here / "looked").mkdir()
        os.chdir(here / "looked")
        put(state, store, Path())
        result["report"] = ended(lambda: report([str(run)]))
        result["ledger"] = ended(lambda: report([]))
        os.chdir(here)
        shutil.rmtree(here / "looked")
        put(state, store, Path())
        result["said"] = ended(lambda: command(parse, train, ["--resume", str(run)]))
        found = print_of(Path("runs"))
        other = sorted(x for x in whole.keys() | found.keys() if whole.get(x) != found.get(x))
        shutil.rmtree("runs")
        return result | {"same": not other, "other": other}


def key_of(state: State) -> str:
    """What of a state reaches the process that resumes."""
    return json.dumps({k: "" if Path(k).name in APART else x for k, x in sorted(state.items())})


def survey(cfg: Any, into: Path, most: int, dies: int, share: float) -> None:
    """All of it, into `into`/found.json: the run, its places, what became of each. `most` states
    (0: all), drawn, are resumed; at `dies` places the process is really killed, at a `share` of
    them the disk fails."""
    rng, store, beside = Random(0), into / "store", os.cpu_count() or 1
    zygote = Zygote(cfg)
    first = zygote.all({"whole": lambda: zygote.first(store, share)}, into, 1)["whole"]
    if first["said"] or "places" not in first:  # it has to come to its end
        raise SystemExit(str(first.get("said")))
    places = first["places"]
    kinds: dict[str, dict[str, Any]] = {}
    for x in places:
        kinds.setdefault(key_of(x["state"]), x)
    for x in first["broken"]:
        if "state" in x:
            kinds.setdefault(key_of(x["state"]), x | {"op": f"{x['op']} failed"})
    chosen = list(kinds.values())
    if most:
        by_op: dict[str, list[dict[str, Any]]] = {}
        for x in chosen:
            by_op.setdefault(x["op"], []).append(x)
        while sum(map(len, by_op.values())) > most:  # some of each kind of call
            longest = max(by_op.values(), key=len)
            longest.pop(rng.randrange(len(longest)))
        chosen = [x for group in by_op.values() for x in group]
    jobs = {f"state-{i}": partial(zygote.again, x["state"], store, first["print"])
            for i, x in enumerate(chosen)}
    resumed = zygote.all(jobs, into, beside)
    calls = [i for i, x in enumerate(places) if x["op"] not in ("half", "end")]
    numbers = sorted(rng.sample(range(len(calls)), dies))
    seen = [{k: x[k] for k in ("op", "path", "page")} for x in places]
    found = {"places": seen, "states": len(kinds),
             "resumed": [{k: x[k] for k in ("op", "path")} | resumed[f"state-{i}"]
                         for i, x in enumerate(chosen)],
             "broken": [{k: x.get(k) for k in ("op", "path", "said")} for x in first["broken"]],
             "died": dies_alike(zygote, into, [calls[x] for x in numbers], places, beside)}
    (into / "found.json").write_text(json.dumps(found, indent=1))


def dies_alike(
    zygote: Zygote, into: Path, numbers: list[int], places: list[dict[str, Any]], beside: int
) -> list[dict[str, Any]]:
    """Whether a process that is really killed at a place leaves the state noted there."""
    died = []
    jobs = {f"die-{x}": partial(zygote.first, into / f"store-{x}", die=x) for x in numbers}
    said = zygote.all(jobs, into, beside)
    for x in numbers:
        put(places[x]["state"], into / "store", into / f"noted-{x}")
        left, noted = (print_of(into / f"{k}-{x}" / "runs") for k in ("die", "noted"))
        left = {re.sub(r"\.\d+\.part$", f".{NOBODY}.part", k): v for k, v in left.items()}
        died.append({"op": places[x]["op"], "path": places[x]["path"],
                     "killed": said[f"die-{x}"] == {"said": "killed"}, "same": left == noted})
    return died


def surveyed(cfg: Any, into: Path, most: int = 0, dies: int = 12, share: float = 1.0
             ) -> dict[str, Any]:
    """What `survey` found, from a process of its own."""
    process = SERVER.Process(target=survey, args=(cfg, into, most, dies, share))
    process.start()
    process.join()
    return json.loads((into / "found.json").read_text())
