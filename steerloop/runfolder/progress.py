"""What is seen while a run works: a bar for what is running, under one for the round. On a terminal
only; elsewhere the log lines say it."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from loguru import logger
from tqdm import tqdm

from steerloop.ranks import own
from steerloop.runfolder.layout import SAID, SHARES

ROUND = "{desc} {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left{postfix}"


class Bar(tqdm):
    """A bar that leaves nothing behind, and is not there where nobody looks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        off = own() > 0 or os.environ.get("TQDM_DISABLE", "0") not in ("", "0")
        hidden = True if off else None  # None: unless on a terminal
        super().__init__(*args, leave=False, disable=hidden, miniters=0, **kwargs)
        self.tokens, self.began = 0, time.monotonic()

    def drew(self, tokens: int, ended: int) -> None:
        """So many tokens were drawn in one step, with which so many rows ended."""
        self.tokens += tokens
        if not self.disable:
            pace = self.tokens / max(time.monotonic() - self.began, 1e-9)
            self.set_postfix_str(f"{pace:,.0f} tokens/s", refresh=False)
            self.update(ended)

    def update(self, n: float | int | None = 1) -> bool | None:
        """As tqdm has it."""
        painted = super().update(n)
        above = _above.get()
        if painted and above is not None and above is not self:
            above.refresh()
        return painted


_above: ContextVar[Bar | None] = ContextVar("above", default=None)


@contextmanager
def beneath(bar: Bar | None) -> Iterator[None]:
    """Until the block ends, `bar` is painted again whenever another one is."""
    token = _above.set(bar)
    try:
        yield
    finally:
        _above.reset(token)


class Rounds:
    """The bar of the round that is under way: how much of it is done, and the time left."""

    def __init__(self) -> None:
        self.shares, self.seconds = dict(SHARES), dict[str, float]()
        self.round, self.bar = -1, None

    @contextmanager
    def stage(self, round: int, stage: str, over: bool = True) -> Iterator[None]:
        """What the block makes is a stage of a round, or a part of one that is not `over` yet."""
        if round != self.round:
            self.open(round, stage)
        start = time.monotonic()
        try:
            with beneath(self.bar):
                yield
        except BaseException:
            self.close()  # what is said now should not be torn
            raise
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - start
        if not over:
            return
        logger.info(f"round {round + 1}: {SAID[stage]} in {self.seconds[stage]:.1f} s")
        self.bar.update(self.shares[stage])
        if stage == list(SHARES)[-1]:
            self.close()

    def open(self, round: int, stage: str) -> None:
        """A bar for a round that begins with a stage; those before it were read, not made."""
        self.close()
        if self.seconds.keys() == self.shares.keys():  # a whole round
            self.shares = {k: x / sum(self.seconds.values()) for k, x in self.seconds.items()}
        self.round, self.seconds, stages = round, {}, list(self.shares)
        total = sum(self.shares[x] for x in stages[stages.index(stage):])
        self.bar = Bar(total=total, desc=f"round {round + 1}", bar_format=ROUND, smoothing=0)

    def note(self, **numbers: str) -> None:
        """Numbers to stand beside the bar."""
        if self.bar is not None:
            self.bar.set_postfix(numbers)

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        self.round = -1
