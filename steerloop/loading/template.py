"""A model's chat template, run within bounds: it is a program of a stranger.

The library's sandbox keeps it from files, imports and Python's insides. What that leaves open is
closed here: the clock stands still and nothing is drawn, so that prompts are the same tomorrow; and
time, memory and what it writes are bounded.
"""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from textwrap import shorten
from threading import current_thread, main_thread
from types import FrameType
from typing import Any, no_type_check

import jinja2
from transformers.utils import chat_template_utils

from steerloop import UserError
from steerloop.texts.printable import printable

TODAY = datetime(2024, 7, 26)
SECONDS = 2.0  # of computing, for one prompt: the longest templates in use take a hundredth of one
MEMORY = 2**28  # bytes beyond what the process has
WRITES = 2**20  # characters beyond the texts of the turns, and the size of a product


class Refused(UserError):
    """The template itself ended on an error: its own, or one of the bounds."""


@contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Inside, templates end with TimeoutError after that time of computing, looked at before each
    of their steps, and on Linux with MemoryError beyond MEMORY bytes more than the process has; in
    the main thread alone, since that limit holds for whatever other threads do, too."""
    end, before = time.thread_time() + seconds, sys.gettrace()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    limited = sys.platform == "linux" and current_thread() is main_thread()

    @no_type_check  # called at every step
    def watch(frame: FrameType, event: str, arg: Any) -> Any:
        if time.thread_time() > end:
            raise TimeoutError(f"it computes for more than {seconds:g} seconds")
        return watch if frame.f_code.co_filename == "<template>" else None

    if limited:
        pages = int(Path("/proc/self/statm").read_bytes().split()[0])
        room = pages * resource.getpagesize() + MEMORY
        lowest = min(x for x in (room, *limits) if x != resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_AS, (lowest, limits[1]))
    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)
        if limited:
            resource.setrlimit(resource.RLIMIT_AS, limits)


def product(context: Any, operator: str, left: Any, right: Any) -> Any:
    """left * right or left ** right of a template. Raises OverflowError for what gets out of hand:
    within a single step, so that nothing else would end it."""
    size, times = (len(x) if hasattr(x, "__len__") else abs(x) for x in (left, right))
    if operator == "**" or size * times > WRITES:
        raise OverflowError("it computes a power, or a product beyond what a template needs")
    return left * right


def drawn(*args: Any, **options: Any) -> Any:
    """In the place of what would differ from one rendering to the next."""
    raise jinja2.TemplateError("it draws at random, so prompts would not stay the same")


@cache
def compiled(text: str) -> jinja2.Template:
    """A template in the library's environment, made a little smaller."""
    environment = chat_template_utils._compile_jinja_template("").environment.overlay()
    environment.globals = environment.globals | {"strftime_now": TODAY.strftime, "lipsum": drawn}
    environment.filters = environment.filters | {"random": drawn}
    environment.intercepted_binops = frozenset({"*", "**"})
    environment.call_binop = product
    return environment.from_string(text)


def written(template: str, turns: list[dict[str, Any]], **names: Any) -> str:
    """What a template makes of `turns` (role, content), with these names defined.

    Raises Refused, with its reason, where it ends on an error or goes beyond a bound.
    """
    pieces, room = [], WRITES + sum(len(str(x["content"])) for x in turns)
    try:
        with bounded(SECONDS):
            for piece in compiled(template).generate(messages=turns, **names):
                pieces.append(piece)
                room -= len(piece)
                if room < 0:
                    raise OverflowError(f"it writes more than {WRITES:,} characters of its own")
    except Exception as e:  # the errors of a program have no common base
        why = shorten(printable(str(e)), 160, placeholder=" ...") or type(e).__name__
        raise Refused(f"the chat template refuses such turns: {why}") from e
    return "".join(pieces)
