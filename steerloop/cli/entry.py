"""How a command starts and ends: whatever ends it is said in one line on stderr, with how to go on.

    exit status   0 done · 1 failed · 2 the command line cannot be used
                  130 interrupted, by Ctrl-C, SIGTERM or SIGHUP

What was not foreseen says where its traceback is: in the log of the run folder, which notes it on
the exception (runfolder/opening.py), or in a temporary file.
"""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from tempfile import NamedTemporaryFile
from typing import Any, NoReturn, TypeVar

from steerloop import UserError
from steerloop.cli.options import FAILED, INTERRUPTED, USAGE, leave, one_line
from steerloop.runfolder.layout import LOG

T = TypeVar("T")
PACKAGE = __name__.partition(".")[0]
TYPED = "STEERLOOP_TYPECHECK"
FORESEEN = (UserError, FloatingPointError, KeyboardInterrupt)  # their text says it all
NO_MEMORY = ("out of memory", "can't allocate memory")  # as torch says it: GPU, CPU


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP came. As Ctrl-C, but nothing goes on after it."""


def command(
    parse: Callable[[list[str]], T], run: Callable[[T], Any], argv: list[str] | None = None
) -> None:
    """`run(parse(argv))`, of the command line by default. Raises SystemExit with one of the exit
    statuses above, after one line, for whatever else would come out of it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal that lacks a character shows another
            stream.reconfigure(errors="replace")
    status = USAGE
    with stoppable():
        try:
            options = parse(sys.argv[1:] if argv is None else argv)
            if getattr(options, "tiny", False) and os.environ.get(TYPED) != "1":
                start_typed()
            status = FAILED
            run(options)
            if sys.stdout is not None:
                sys.stdout.flush()
        except SystemExit:
            raise
        except KeyboardInterrupt as e:
            ended("interrupted", e, INTERRUPTED)
        except BaseException as e:  # those of libraries in Rust are no Exceptions
            ended("error", e, status)
        finally:
            hush()


@contextmanager
def stoppable() -> Iterator[None]:
    """Until the block ends, SIGTERM and SIGHUP end it as Ctrl-C does. One that means something else
    already, as SIGHUP under nohup, goes on to mean that."""
    def stop(number: int, frame: Any) -> NoReturn:
        raise Stopped

    mine = threading.current_thread() is threading.main_thread()  # signals are its alone
    taken = [x for x in (signal.SIGTERM, signal.SIGHUP)
             if mine and signal.getsignal(x) is signal.SIG_DFL]
    for x in taken:
        signal.signal(x, stop)
    try:
        yield
    finally:
        for x in taken:
            if signal.getsignal(x) is stop:
                signal.signal(x, signal.SIG_DFL)


def ours() -> bool:
    """Whether this process was started as one of our commands, not as somebody's script."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name.partition(".")[0] == PACKAGE


def start_typed() -> NoReturn:
    """Start this command anew with types checked: an import hook does it, which has to be there
    before the core is. Raises UserError in a process that is not ours to replace."""
    if not ours():
        raise UserError(f"--tiny checks types, which is switched on before {PACKAGE} is imported: "
                        f"set {TYPED}=1 for this process, or run `python -m {PACKAGE}.train "
                        "--tiny`")
    os.environ[TYPED] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def ended(how: str, error: BaseException, status: int) -> NoReturn:
    """Say how it ended, and exit."""
    if ours():
        for x in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # it is ending already
            signal.signal(x, signal.SIG_IGN)
    leave(line(how, error), status)


def line(how: str, error: BaseException) -> str:
    """How it ended, in one line: what was said, the remedy, what was noted on the exception, where
    the traceback is."""
    said, notes = one_line(str(error)), getattr(error, "__notes__", [])
    if isinstance(error, BrokenPipeError):
        said = "what read the output has closed it"
    plain = isinstance(error, (*FORESEEN, OSError)) if said else how != "error"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # one of torchrun's
        how = f"rank {os.environ['RANK']}: {how}"
    parts = [": ".join(x for x in (how, "" if plain else type(error).__name__, said) if x)]
    if isinstance(error, MemoryError) or any(x in said for x in NO_MEMORY):
        parts.append("try --batch 1 --checkpointing, a smaller --batch_rows or --max_new_tokens, "
                     "--quant nf4")
    parts += notes
    if not isinstance(error, (*FORESEEN, BrokenPipeError)) and not any(LOG in x for x in notes):
        parts.append(kept(error))
    return "; ".join(parts)


def kept(error: BaseException) -> str:
    """Write a traceback to a file in the temporary folder, and say where."""
    try:
        with NamedTemporaryFile("w", prefix=f"{PACKAGE}-", suffix=".txt", delete=False,
                                encoding="utf-8", errors="replace") as file:
            file.writelines(traceback.format_exception(error))
    except OSError as e:
        return f"its traceback could not be written ({e})"
    return f"its traceback is in {file.name}"


def hush() -> None:
    """What is still to be printed goes nowhere where nobody reads it any more: the interpreter
    would complain about that at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
