"""All that is to be known of a GPU, by one command for the minutes that a machine is lent:

    python -m steerloop.bench gpu --out DIR [--minutes 8] [--device cuda] [--models DIR]

Right before fast: first what the checks show with stand-ins, shown with the device itself (side by
side, each in a process of its own), then speed, one step after another, then memory beside what is
computed, then real models. A step that fails or runs out of its time leaves what it said. DIR gets
of each step a log and its figures, a table, and all of that as one archive; they are written anew
as steps end, so that a machine that goes away leaves what was done.

Targets are for the shape of gemma-3-1b on an H100-class card, and stand in the table there alone.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from steerloop.cli.options import FAILED
from steerloop.runfolder.files import write_whole

KEPT = re.compile(r"its traceback is in (\S+\.txt)")  # where a command leaves what nobody foresaw
ROOT = __name__.partition(".")[0]
BENCH, ONDEVICE, TRAIN = (f"{ROOT}.{x}" for x in ("bench", "checks.ondevice", "train"))
TABLE, ARCHIVE = "table.md", "gpu.tar.gz"
Figure = Callable[[dict[str, Any]], float | int]  # one of the figures of a step
HEAD = ("step", "verdict", "figure", "floor (of memory: the most)", "target",
        "first line of the error")
BAD = ("WRONG", "FAILED", "TIME", "not run")
GB = 2**20 / 1e9  # of the megabytes that are measured
RIGHT = ("graphs", "blocks", "evaluation", "gates", "gradient", "nf4", "waits", "seed", "resume",
         "default")
SIZES = {  # of the steps of speed: those that targets are for, and those of a rehearsal
    "loss": ("--rows 8 --tokens 512", "--rows 2 --tokens 8"),
    "decode": ("--rows 192 --tokens 256 --prompt 100", "--rows 24 --tokens 4 --prompt 4"),
    "heal": ("--tokens 300 --prompt 100", "--tokens 8 --prompt 4"),
    "evaluate": ("--rows 168 --think 128 --twin_rows 1", "--rows 2 --twin_rows 1"),
    "round": ("--rows 96 --tokens 512 --think 128", "--smoke"),
    "load": ("--rows 48 --tokens 512", "--rows 2 --tokens 4"),
}


class Row(NamedTuple):
    """A line of the table out of the figures of a step: where its value is in them (seconds become
    `unit`), its floor there, and what it should be: at most, or with `least` at least."""

    name: str
    value: Figure
    unit: str = "s"
    floor: Figure = lambda x: 0.0
    target: float | int = 0.0
    least: bool = False


@dataclass(frozen=True)
class Step:
    """A process: a module and its arguments, most seconds, lines of the table. It
    writes figures to the path that follows --json; those of a step about what is right are `ok`
    and `figure`. Steps that go `together` run side by side."""

    name: str
    module: str
    argv: list[str]
    limit: int
    rows: list[Row] = field(default_factory=list)
    right: bool = False
    together: bool = False


def of(path: str, scale: float = 1.0) -> Figure:
    """The figure at a dotted path, times `scale`."""
    def read(figures: dict[str, Any]) -> float:
        for name in path.split("."):
            figures = figures[name]
        return scale * figures
    return read


def share(value: str, bound: str, scale: float = 1.0) -> Figure:
    """The least that a figure could be: itself, times its share of what binds it."""
    return lambda x: of(value, scale)(x) * of(bound)(x)


def speed(shape: str, device: str, weights: Path, real: bool) -> list[Step]:
    """Steps that are timed. `real`: at the sizes of the targets."""
    def step(what: str, limit: int, rows: list[Row], *more: str, name: str = "",
             of_shape: str = shape) -> Step:
        size = SIZES.get(what, ("", ""))[0 if real else 1].split()
        argv = [what, "--device", device, "--repeats", "1", "--shape", of_shape,
                "--keep", str(weights), *size, *more]
        most = limit if real else 4 * limit  # a rehearsal shares what cores there are
        return Step(name or what, BENCH, argv, most, rows, together=not real)

    ours, matmul = "runners.ours.seconds", "limit.share_of_matmul_peak"
    alone, free = "runners.ours.step_alone_seconds", "runners.sums in any order.seconds"
    decode = [Row(f"decoding step, {x} rows", of(f"rows.{x}.step_seconds", 1e3), "ms",
                  of(f"rows.{x}.floor_seconds", 1e3), target)
              for x, target in (zip((8, 48, 192), (1.2, 1.4, 2.1), strict=True) if real
                                else zip((1, 6, 24), (0, 0, 0), strict=True))]
    seen = "cuda" if device == "cuda" else "anon"
    peaks = [Row(f"peak of {x}", of(f"{x}.{seen}", GB), "GB", of(f"computed.{x}", GB))
             for x in ("heal", "sample")]
    figures = [
        step("limits", 60, [
            Row("bf16 products", of("limits.bf16.gflops", 1e-3), "TFLOP/s"),
            Row("copies", of("limits.bf16.gb_per_s", 1e-3), "TB/s")]),
        step("decode", 120, decode, "--quant", "bf16"),
        step("heal", 120, [
            Row("optimiser step", of(alone), "s", share(ours, matmul), 0.08),
            Row("it, against sums in any order", lambda x: of(alone)(x) / of(free)(x), "x",
                target=1.1),
            Row("ours against PEFT", of("runners.PEFT, dense loss.ours_times_faster"), "x",
                target=5, least=True)], "--quant", "bf16"),
        step("loss", 60, [
            Row("loss and gradient", of(ours, 1e3), "ms", share(ours, matmul, 1e3)),
            Row("its share of the product peak", of(matmul), "", target=0.6, least=True)],
             "--quant", "bf16"),
        step("evaluate", 120, [Row("evaluation", of(ours), "s", of("floor_seconds"), 2)],
             "--quant", "bf16"),
        step("round", 240, [
            Row("run of one round", of("run_of_one_round_seconds"), target=40),
            Row("its round", of("ours.seconds"), target=25),
            Row("its loading", of("loading_seconds"), target=4)]),
        step("load", 120, [*peaks, Row("peak of loading", of(f"weights.{seen}", GB), "GB",
                                       of("bound_mb", GB))])]
    if real:
        figures.append(step("round", 300, [
            Row("a round in gemma-3-4b's shape, 24 GB", of("ours.seconds"), target=90)],
            "--memory", "24", name="round-4b", of_shape="gemma-3-4b"))
    return figures


def right(device: str) -> list[Step]:
    """Steps that say whether the device computes what it should."""
    return [Step(x, ONDEVICE, [x, "--device", device], 150, right=True, together=True)
            for x in RIGHT]


def real_models(folder: Path | None, device: str, out: Path) -> list[Step]:
    """One short round of each model in a folder of them."""
    found = sorted([*folder.glob("*/config.json"), *folder.glob("**/*.gguf")]) if folder else []
    models = [x.parent if x.name == "config.json" else x for x in found if "mmproj" not in x.name]
    return [Step(f"model-{str(x.relative_to(folder)).replace('/', '-')}", TRAIN, [
        "--model", str(x), "--device", device, "--preset", "small-cpu", "--rounds", "1",
        "--trait", "register", "--runs", str(out / "runs")], 240) for x in models]


def end(process: subprocess.Popen) -> None:
    """Kill a process, if it still runs, and what it started; see it gone."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Bench:
    """Runs steps and keeps what they left in `out`."""

    def __init__(self, out: Path, minutes: float | int, targets: bool) -> None:
        self.out, self.targets, self.end = out, targets, time.monotonic() + 60 * minutes
        self.lines: dict[str, list[tuple[str, ...]]] = {}
        out.mkdir(parents=True, exist_ok=True)

    def run(self, steps: list[Step]) -> None:
        """Those that go together at once, the rest one after another; the table in their order."""
        self.lines |= {x.name: [(x.name, "not run", "", "", "", "")] for x in steps}
        self.write()
        self.wait([x for x in steps if x.together])
        for step in steps:
            if not step.together:
                self.wait([step])

    def wait(self, steps: list[Step]) -> None:
        """Start these steps and see them end."""
        waiting, started = list(steps), []
        try:
            while started or (waiting and time.monotonic() < self.end):
                if waiting and len(started) < (os.cpu_count() or 1) and time.monotonic() < self.end:
                    step = waiting.pop(0)
                    started.append((step, self.start(step), time.monotonic()))
                    continue
                time.sleep(0.05)
                for one in list(started):
                    self.look(one, started)
        finally:
            for _, process, _ in started:  # whatever ended this
                end(process)

    def look(self, one: tuple[Step, subprocess.Popen, float], started: list[Any]) -> None:
        """At a process: it has ended, its time is over, or it goes on."""
        step, process, since = one
        spent, late = time.monotonic() - since, time.monotonic() >= self.end
        alive = process.poll() is None
        over = alive and (spent > step.limit or late)
        if alive and not over:
            return
        end(process)
        started.remove(one)
        self.lines[step.name] = self.said(step, process.returncode, spent, over)
        self.write()

    def start(self, step: Step) -> subprocess.Popen:
        """Its process, at the head of a group of its own; all it says goes into its log at once."""
        command = [sys.executable, "-u", "-m", step.module, *step.argv]
        if step.rows or step.right:
            command += ["--json", str(self.out / f"{step.name}.json")]
        with (self.out / f"{step.name}.log").open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def said(self, step: Step, status: int, spent: float, over: bool) -> list[tuple[str, ...]]:
        """The lines of a step that ended after `spent` seconds, by us if its time was `over`."""
        if status:
            what = f"TIME, {spent:.0f} s" if over else "FAILED"
            why = f"killed by signal {-status}; " if status < 0 and not over else ""
            return [(step.name, what, "", "", "", why + self.error(step))]
        try:
            figures = self.figures(step) if step.rows or step.right else {}
        except (OSError, ValueError) as e:
            return [(step.name, "FAILED", "", "", "", f"it wrote no figures: {e}")]
        if step.right:
            verdict = "right" if figures["ok"] else "WRONG"
            return [(step.name, verdict, figures["figure"], "", "", "")]
        if not step.rows:
            return [(step.name, "done", f"{spent:.0f} s", "", "", "")]
        return [self.row(step, x, figures) for x in step.rows]

    def row(self, step: Step, row: Row, figures: dict[str, Any]) -> tuple[str, ...]:
        """A line of the table."""
        try:
            value, floor = row.value(figures), row.floor(figures)
        except (KeyError, TypeError) as e:
            return (row.name, "FAILED", "", "", "", f"no figure {e} in {step.name}.json")
        verdict, target = "measured", ""
        if self.targets and row.target:
            met = value >= row.target if row.least else value <= row.target
            verdict = "met" if met else "missed"
            target = f"{'≥' if row.least else '≤'} {row.target:g} {row.unit}".strip()
        least = f"{floor:.3g} {row.unit}" if floor else ""
        return (row.name, verdict, f"{value:.3g} {row.unit}".strip(), least, target, "")

    def figures(self, step: Step) -> dict[str, Any]:
        """What it wrote."""
        return json.loads((self.out / f"{step.name}.json").read_text(encoding="utf-8"))

    def error(self, step: Step) -> str:
        """The line that says why, the last that names an error, else the last one; a traceback that
        lies elsewhere joins the log."""
        log = self.out / f"{step.name}.log"
        text = log.read_text(encoding="utf-8", errors="replace")
        for kept in map(Path, KEPT.findall(text)):  # the machine may be gone before it is read
            with log.open("ab") as file:
                file.write(kept.read_bytes() if kept.is_file() else b"")
        lines = [x.strip() for x in text.split("\n") if x.strip()]
        named = [x for x in lines if "Error" in x or x.startswith("error")]
        return ([*lines, *named] or [""])[-1][:200].replace("|", "/")

    def table(self) -> str:
        """As it stands."""
        rows = [HEAD, tuple("---" for _ in HEAD), *(x for group in self.lines.values()
                                                     for x in group)]
        return "".join(f"| {' | '.join(x)} |\n" for x in rows)

    def write(self) -> None:
        """The table, and the archive of all that there is but runs and earlier archives."""
        table = self.table()
        write_whole(self.out / TABLE, lambda path: path.write_text(table, encoding="utf-8"))

        def pack(path: Path) -> None:
            with tarfile.open(path, "w:gz") as tar:
                for x in sorted(self.out.iterdir()):
                    if x.is_file() and x.name != ARCHIVE and not x.name.startswith("."):
                        tar.add(x, f"{self.out.name}/{x.name}")

        write_whole(self.out / ARCHIVE, pack)


def steps_of(chosen: Any, weights: Path) -> list[Step]:
    """Those of a command line, in their order."""
    return [*right(chosen.device),
            *speed(chosen.shape, chosen.device, weights, chosen.shape != "tiny"),
            *real_models(chosen.models, chosen.device, chosen.out)]


def names(chosen: Any) -> set[str]:
    """What those are called."""
    return {x.name for x in steps_of(chosen, Path())}


def run(chosen: Any, more: list[Step] | None = None) -> None:
    """All steps of a command line (`only` some of them, and `more`). Prints the table at the end;
    raises SystemExit where a step failed, ran out of time or was wrong."""
    weights = Path(tempfile.mkdtemp())
    steps = [x for x in steps_of(chosen, weights) if not chosen.only or x.name in chosen.only]
    steps += more or []
    bench = Bench(chosen.out, chosen.minutes, targets=chosen.shape == "gemma-3-1b"
                  and chosen.device == "cuda")
    try:
        bench.run(steps)
    finally:
        shutil.rmtree(weights, ignore_errors=True)
    print(bench.table(), end="", flush=True)
    if any(x[1].startswith(BAD) for group in bench.lines.values() for x in group):
        raise SystemExit(FAILED)
