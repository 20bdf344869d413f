"""One parser for every command: a wrong option is one line and exit status 2, none may be cut
short, and numbers are finite and in a range. No torch: reports are made without it."""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from steerloop.cli.knobs import DIAL, Range, expanded

USAGE = 2  # exit status: the command line cannot be used
LONGEST = 2000  # characters of a line that somebody should read
Number = TypeVar("Number", int, float)


def one_line(text: str) -> str:
    """Any text as one line for a terminal: white space of any kind is one space, what is not
    printable is replaced, and of a very long one both ends are shown."""
    joined = " ".join(text.split())
    shown = "".join(x if x.isprintable() else "\ufffd" for x in joined)
    half = LONGEST // 2
    return shown if len(shown) <= LONGEST else f"{shown[:half]} ... {shown[-half:]}"


class Parser(argparse.ArgumentParser):
    """argparse, with those rules."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, allow_abbrev=False, **options)
        self._negative_number_matcher = re.compile(r"-[\d.]")  # -1e-3 and -1,0 are values, too

    def error(self, message: str) -> NoReturn:
        """One line on stderr, exit status 2."""
        print(one_line(f"error: {message} (--help lists every option)"), file=sys.stderr)
        sys.exit(USAGE)


def number(kind: type[Number], low: Number | None, high: Number) -> Callable[[str], Number]:
    """The type of an option that takes a finite number from `low` (None: above 0) to `high`, in the
    unit of the option."""
    allowed = Range(low, high)

    def read(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not allowed.holds(value):
            whole = "whole" if kind is int else "finite"
            raise argparse.ArgumentTypeError(f"takes {whole} numbers {allowed}, not {text!r}")
        return value

    return read


def filled(text: str) -> str:
    """The type of an option whose text may not be empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty: give a value, or leave the option out")
    return text


def gates(text: str) -> str:
    """The type of an option that takes gates, one number or several; they stay text until it is
    known how many there have to be."""
    for gate in filled(text).replace(",", " ").split():
        number(float, *DIAL)(gate)
    return text


def path(text: str) -> Path:
    """The type of an option that takes a path; ~ is the home directory. Raises UserError."""
    return Path(expanded(filled(text)))
