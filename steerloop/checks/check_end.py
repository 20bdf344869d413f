"""How commands start and end: any option value is used or refused in one line with exit status 2;
whatever ends a command is one line with how to go on, and where the traceback is."""

import dataclasses
import io
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from random import Random

import polars as pl
import pytest
import torch
from safetensors import SafetensorError

from steerloop import UserError
from steerloop.bench.__main__ import options as bench
from steerloop.chat.__main__ import parse as chat
from steerloop.checks.conftest import ROOT
from steerloop.checks.many import many
from steerloop.checks.small import short_config, small_config
from steerloop.cli.entry import Stopped, command
from steerloop.cli.knobs import RANGE
from steerloop.cli.options import one_line
from steerloop.config import Config, parse
from steerloop.export.__main__ import parse as export
from steerloop.report.__main__ import parse as report
from steerloop.runfolder import opening
from steerloop.score.__main__ import parse as score
from steerloop.sweep.__main__ import parse as sweep
from steerloop.tinyworld.build import options as build
from steerloop.train import main, train

FIELDS = {x.name: x for x in dataclasses.fields(Config)}
HOSTILE = [
    "0", "-0", "1", "-1", "2", ".5", "-.5", "1e-3", "-1e-3", "1e20", "1e99", "-1e99", "1e400",
    "nan", "-nan", "inf", "-inf", "infinity", "0x10", "1_000", "1,5", "1.", "½", "١٢", "9" * 5000,
    str(2**31), str(2**63), str(2**64), "99999999999999999999", "true", "None", "", " ", "\n", "-",
    "a\nb", "\x1b[2J", "\u202eabc", "~", "~nobody-of-that-name", "/", "..", "os", "os:", ":path",
    "os:getcwd", "a b:c", "auto", "meta", "cuda:-1", "nf4", "bfloat16", "kl_rev", "nll", "{split}",
    "%s", "$HOME", "@file", "--", "--lr", "\udcff", "x" * 3000,
]


def ended(work, capsys):
    """Exit status and the lines said by a command that runs `work` on its parsed options, None and
    nothing where it came to its end. What the interpreter would print is among them."""
    try:
        work()
    except SystemExit as e:
        said = capsys.readouterr().err.splitlines()
        return (1, [str(e)]) if isinstance(e.code, str) else (e.code, said)
    assert capsys.readouterr().err == ""
    return None, []


def fine(cfg):
    """Whether every value of a config is of its kind and in its range."""
    for name, field in FIELDS.items():
        value = getattr(cfg, name)
        for x in value if isinstance(value, list) else [value]:
            if isinstance(x, int | float) and not isinstance(x, bool):
                low, high = field.metadata[RANGE]
                if not ((x > 0 if low is None else x >= low) and x <= high < float("inf")):
                    return False
    pairs = cfg.steer_band or [0, 1], cfg.lora_band, cfg.betas
    return bool(all(len(x) == 2 for x in pairs) and cfg.runs.strip() and max(cfg.betas) < 1
                and cfg.steer_band == sorted(cfg.steer_band) and cfg.val_share < 1
                and all(x.count(":") == 1 for x in cfg.probes) and cfg.device != "meta")


def check_any_value_of_any_knob_is_used_or_refused(capsys):
    """Some 2,000 command lines (`many` of them): each with hostile values, and several."""
    random, third = Random(0), len(HOSTILE) // 3
    lines = [[f"--{name}={x}"] for name in FIELDS for x in random.sample(HOSTILE, third)]
    for _ in range(500):
        count = random.choice([1, 2, 3])
        lines.append([f"--{random.choice(list(FIELDS))}", *random.choices(HOSTILE, k=count)])
    lines, used = random.sample(lines, many(len(lines))), 0
    for argv in lines:
        seen = []
        status, said = ended(lambda seen=seen, argv=argv: command(parse, seen.append, argv), capsys)
        if seen:
            used += 1
            assert status is None and fine(seen[0]), argv
        else:
            assert status == 2 and len(said) == 1 and said[0].startswith("error: "), (argv, said)
            assert said[0].isprintable() and len(said[0]) < 4000, argv
    assert len(lines) > many(1800) and many(200) < used < len(lines) / 2


COMMANDS = {  # options that take a value, and what has to stand before them
    "chat": (chat, ["run"], "gates dose tokens temperature seed device round model"),
    "export": (export, ["run", "--to", "merged"], "rank tolerance dose shard gates device round "
               "dtype merge-base to out key-prefix"),
    "score": (score, ["model"], "dtype quant split every think_tokens batch_rows bootstrap seed "
              "threads device runs base"),
    "sweep": (sweep, ["frontier"], "seeds processes split regimes models points out"),
    "bench": (bench, ["sample"], "blocks rows twin_rows tokens prompt think repeats shape quant"),
    "build": (build, [], "seed tokens threads global-layer work out"),
    "report": (report, [], "with single-file"),
}
KNOWN_BAD = {
    "chat": "--tokens=-5 --dose=nan --dose=101 --temperature=-1 --seed=-1 --gates=1,nan --rounds=1",
    "export": "--shard=abc --shard=0GB --shard=banana --tolerance=nan --tolerance=-1 --rank=-1 "
              "--rank=2 --dose=2 --dose=nan --dtype=float16 --key-prefix=x",
    "score": "--dtype=float16 --quant=int3 --split=train --every=0 --seed=-1 --threads=100000 "
             "--device=meta --bootstrap=1e3 --runs= --seed=9223372036854775808",
    "sweep": "--processes=0 --processes=-1 --seeds=-1 --seeds=99999999999999999999 --models= x",
    "bench": "--blocks=99 --blocks=-1 --repeats=0 --rows=0 --shape=huge --tokens=1e9",
    "build": "--threads=0 --threads=-1 --seed=-1 --tokens=0 --global-layer=6",
    "report": "--single --with=x nowhere --runs=x",
}


@pytest.mark.parametrize("name", COMMANDS)
def check_any_value_of_any_option_is_used_or_refused(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read, before, names = COMMANDS[name]
    random = Random(0)
    lines = [[f"--{x}={value}"] for x in names.split() for value in random.sample(HOSTILE, 12)]
    lines += [[f"--{x}", value] for x in names.split() for value in random.sample(HOSTILE, 4)]
    bad = [[x] for x in KNOWN_BAD[name].split()]
    for argv in lines + bad:
        seen = []
        status, said = ended(lambda seen=seen, argv=argv: command(
            read, seen.append, [*before, *argv]), capsys)
        refused = status == 2 and len(said) == 1 and said[0].startswith("error: ")
        assert refused or (seen and status is None and argv not in bad), (argv, said)
        assert not said or said[0].isprintable()
    assert not list(tmp_path.iterdir())


def check_help_and_no_option_cut_short(capsys):
    for name, (read, before, names) in COMMANDS.items():
        assert ended(partial(command, read, print, ["--help"]), capsys)[0] == 0
        for option in names.split():
            argv = [*before, f"--{option[:-1]}=1"]
            status, _ = ended(partial(command, read, print, argv), capsys)
            assert status == 2, (name, option)


ERRORS = [ValueError, IndexError, RuntimeError, KeyError, TypeError, AssertionError, RecursionError,
          MemoryError, OSError, FileNotFoundError, ZeroDivisionError, NotImplementedError, EOFError,
          UserError, FloatingPointError, KeyboardInterrupt, Stopped, BrokenPipeError, StopIteration,
          torch.OutOfMemoryError, SafetensorError, pl.exceptions.ComputeError,
          pl.exceptions.PanicException, pickle.PicklingError, subprocess.SubprocessError]
PARTS = ["\n", "\r\n", "\r", "\x1b[31m", "\x00", "\x07", "\u2028", "\u202e", "\u200b", "\x85",
         "\x0c", "\udcff", "Traceback (most recent call last):", "Δ", "  two  spaces  ",
         "CUDA out of memory", "'", "{x}", "%s", "\\", "word", "--resume", "x" * 3000]


def check_whatever_escapes_is_one_line(capsys, tmp_path, monkeypatch):
    """Two thousand errors (`many`) of every kind, with any text, with notes and without."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    random = Random(0)
    for number in range(many(2000)):
        kind = ERRORS[number % len(ERRORS)]
        parts = random.choices(PARTS, k=random.randrange(6))
        error = kind(*(["".join(parts)] if parts else []))
        if noted := random.random() < 0.3:
            error.add_note("--resume runs/x goes on\n; its traceback is in runs/x/log.txt")

        def stop(options, error=error):
            raise error

        status, said = ended(partial(command, str, stop, []), capsys)
        stopped = isinstance(error, KeyboardInterrupt)
        assert status == (130 if stopped else 1)
        (line,) = said
        assert line.startswith("interrupted" if stopped else "error: ") and line.isprintable()
        assert len(line) > len("error: ")
        assert len(line) < 2100 and ("--resume runs/x goes on" in line or not noted)
        foreseen = isinstance(error, UserError | FloatingPointError | BrokenPipeError) or stopped
        kept = list(tmp_path.iterdir())
        assert len(kept) == (0 if foreseen or noted else 1)
        for file in kept:
            assert line.endswith(str(file)) and kind.__name__ in file.read_text()
            file.unlink()
        if isinstance(error, MemoryError | torch.OutOfMemoryError) and len("".join(parts)) < 900:
            assert "--batch_rows" in line or "memory" not in str(error)


def check_a_traceback_that_cannot_be_kept_says_so(capsys, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at/all")
    status, (line,) = ended(partial(command, str, lambda x: {}["key"], []), capsys)
    assert status == 1 and line.startswith("error: KeyError: 'key'; its traceback could not be")


@pytest.fixture
def cfg(folders, tmp_path):
    return short_config(tmp_path, small_config(folders(), quant="none"), rounds=1)


@pytest.mark.parametrize("error", [IndexError("list index\nout of range"), OSError(5, "I/O error"),
                                   UserError("too little is kept"), KeyboardInterrupt(), Stopped(),
                                   UserError("{run}/x is damaged: delete it, --resume {run}")])
def check_what_ends_a_run_says_how_to_go_on(cfg, capsys, monkeypatch, tmp_path, error):
    """And its log has the traceback, which the terminal does not show. Then it does go on."""
    def stop(journal, *args):
        if "{run}" in str(error):
            raise UserError(str(error).replace("{run}", str(journal.path)))
        raise error

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with monkeypatch.context() as patch:
        patch.setattr("steerloop.evidence.journal.Journal.on_dose", stop)
        status, said = ended(partial(command, lambda _: cfg, train, []), capsys)
    (run,) = (tmp_path / "runs").iterdir()
    stopped = isinstance(error, KeyboardInterrupt)
    assert status == (130 if stopped else 1) and said[-1].count(f"--resume {run}") == 1
    foreseen = stopped or isinstance(error, UserError)
    assert (f"its traceback is in {run}/log.txt" in said[-1]) != foreseen
    log = (run / "log.txt").read_text()
    assert "Traceback (most" in log and "in stop" in log and type(error).__name__ in log
    assert not any("Traceback" in x for x in said)
    if isinstance(error, IndexError):
        train(dataclasses.replace(cfg, resume=str(run)))
        assert (run / "summary.json").exists()


def check_a_full_disk_keeps_no_traceback_and_does_not_claim_to(monkeypatch, tmp_path):
    def full(text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(opening.logger, "debug", full)
    error = ValueError("x")
    opening.note_end(error, tmp_path, "--resume it goes on")
    assert error.__notes__ == ["--resume it goes on"]


START = "import os, signal, sys, time; from steerloop.cli.entry import command; "


BARE = {k: x for k, x in os.environ.items() if k != "STEERLOOP_TYPECHECK"}


def process(code, *argv, **options):
    """A process that runs `code` after START, types not checked."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": BARE}
    return subprocess.Popen([sys.executable, "-c", START + code, *argv], cwd=ROOT, text=True,
                            **pipes | options)


def finished(started):
    """Exit status, what was printed, and what was said about errors."""
    out, err = started.communicate(timeout=60)
    return started.returncode, out, err


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "SIGHUP"])
def check_signals_end_a_command_as_ctrl_c_does(how):
    """Ctrl-C too where these checks run in the background, and so are told to ignore it."""
    code = ("signal.signal(signal.SIGINT, signal.default_int_handler); "
            "command(str, lambda _: (print('up', flush=True), time.sleep(60)), [])")
    started = process(code)
    assert started.stdout.readline() == "up\n"
    started.send_signal(getattr(signal, how))
    status, _, err = finished(started)
    assert (status, err) == (130, "interrupted\n")


def check_a_signal_that_means_something_else_still_does():
    """nohup; a script with a handler of its own; and after the command all is as it was."""
    code = ("signal.signal(signal.SIGHUP, signal.SIG_IGN); mine = lambda *_: print('mine'); "
            "signal.signal(signal.SIGTERM, mine); work = lambda _: [os.kill(os.getpid(), x) for x "
            "in (signal.SIGHUP, signal.SIGTERM)]; command(str, work, []); "
            "print(signal.getsignal(signal.SIGTERM) is mine); "
            "signal.signal(signal.SIGTERM, signal.SIG_DFL); command(str, lambda _: None, []); "
            "print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)")
    assert finished(process(code)) == (0, "mine\nTrue\nTrue\n", "")


def check_a_command_works_outside_of_the_main_thread():
    code = ("import threading; x = threading.Thread(target=lambda: command(str, print, [])); "
            "x.start(); x.join()")
    assert finished(process(code)) == (0, "[]\n", "")


@pytest.mark.parametrize("what", ["print('x' * 10**6)", "[print('x' * 999) for _ in range(999)]",
                                  "print('short')"])
def check_a_closed_pipe_is_no_traceback(what):
    into, out = os.pipe()
    started = process(f"command(str, lambda _: {what}, [])", stdout=out)
    os.close(out)
    os.close(into)
    started.wait(60)
    err = started.stderr.read()
    assert started.returncode == 1
    assert err == "error: what read the output has closed it\n"


def check_help_into_a_closed_pipe_is_silent():
    into, out = os.pipe()
    started = subprocess.Popen([sys.executable, "-m", "steerloop.report", "--help"], cwd=ROOT,
                               stdout=out, stderr=subprocess.PIPE, text=True, env=BARE)
    os.close(out)
    os.close(into)
    started.wait(60)
    assert started.stderr.read() == ""


def check_what_cannot_be_printed_fails():
    with Path("/dev/full").open("w") as full:
        status, _, err = finished(process("command(str, lambda _: print('x'), [])", stdout=full))
    assert status == 1 and err.startswith("error: [Errno 28]") and err.count("\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def check_a_terminal_that_lacks_a_character_shows_another(encoding):
    env = BARE | {"PYTHONIOENCODING": encoding}
    code = "work = lambda _: (print('Δ', 'a'), print('Δ', file=sys.stderr)); command(str, work, [])"
    assert finished(process(code, env=env)) == (0, "? a\n", "?\n")


def check_a_script_without_our_command_does_not_die_of_a_log_line(monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    opening.show("Δ\n")
    monkeypatch.setattr(sys, "stdout", None)  # closed when the process began
    opening.show("Δ\n")
    shown.flush()
    assert shown.buffer.getvalue() == b"?\n"


def check_a_script_is_not_replaced_by_a_smoke_run(monkeypatch, capsys):
    monkeypatch.delenv("STEERLOOP_TYPECHECK")
    status, (line,) = ended(partial(main, ["--tiny"]), capsys)
    assert status == 2 and "set STEERLOOP_TYPECHECK=1" in line


def check_the_program_itself_is_started_anew_with_types_checked(monkeypatch):
    """It is in this process that a stage is set for one: nothing is started."""
    def replaced(program, argv):
        assert os.environ["STEERLOOP_TYPECHECK"] == "1" and program == argv[0] == sys.executable
        assert argv[1:] == ["-m", "steerloop.train", "--tiny"]
        raise SystemExit(77)

    monkeypatch.delenv("STEERLOOP_TYPECHECK")
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("steerloop.train", None))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "steerloop.train", "--tiny"])
    monkeypatch.setattr(os, "execv", replaced)
    with pytest.raises(SystemExit, match="77"):
        main(["--tiny"])


def check_one_line_keeps_what_can_be_read():
    assert one_line("a\r\n  b\x1bc\u202e\n\n") == "a b\ufffdc\ufffd"
    assert one_line("runs/two  spaces") == "runs/two  spaces"
    long = one_line("a" * 9999 + "the end")
    assert len(long) < 2010 and long.endswith("the end") and " ... " in long
