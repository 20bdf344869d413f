"""What is seen while a run works: a bar for what is running, under one for the round. On a terminal
only; elsewhere the log lines say it."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from loguru import logger
from tqdm import tqdm

# Of a round's time, by what a stage leaves behind, in their order: those of the embedded model
# (docs/bench), until a round of this run has shown its own.
SHARES = {"vector": 0.03, "dose": 0.14, "completions": 0.14, "steered.eval": 0.15, "heal": 0.29,
          "drift": 0.08, "diary": 0.02, "healed.eval": 0.15}
SAID = {"vector": "vector extracted", "dose": "dose solved",
        "completions": "completions sampled and filtered",
        "steered.eval": "steered model evaluated", "heal": "healed and folded",
        "drift": "drift measured", "diary": "diary written",
        "healed.eval": "healed model evaluated"}
ROUND = "{desc} {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left{postfix}"


class Bar(tqdm):
    """A bar that leaves nothing behind, and is not there where nobody looks. When it is painted, so
    is the one of the round."""

    above: "Bar | None" = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        off = os.environ.get("TQDM_DISABLE", "0") not in ("", "0")
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
        if painted and Bar.above is not None and Bar.above is not self:
            Bar.above.refresh()
        return painted


class Rounds:
    """The bar of the round that is under way: how much of it is done, and the time left."""

    def __init__(self) -> None:
        self.shares, self.seconds, self.round, self.bar = dict(SHARES), {}, "", None
        self.inside = False

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What the block makes, rounds/00/vector for instance, is a stage of a round, or none."""
        round, _, stage = name.removeprefix("rounds/").partition("/")
        if stage not in self.shares:
            if not self.inside:
                self.close()  # the rounds are over
            yield
            return
        if round != self.round:
            self.open(round, stage)
        start, self.inside = time.monotonic(), True
        try:
            yield
        except BaseException:
            self.close()  # what is said now should not be torn
            raise
        finally:
            self.inside = False
        self.seconds[stage] = time.monotonic() - start
        logger.info(f"round {int(round) + 1}: {SAID[stage]} in {self.seconds[stage]:.1f} s")
        self.bar.update(self.shares[stage])
        if stage == list(SHARES)[-1]:
            self.close()

    def open(self, round: str, stage: str) -> None:
        """A bar for a round that begins with a stage; those before it were read, not made."""
        self.close()
        if self.seconds.keys() == self.shares.keys():  # a whole round
            self.shares = {k: x / sum(self.seconds.values()) for k, x in self.seconds.items()}
        self.round, self.seconds, stages = round, {}, list(self.shares)
        total = sum(self.shares[x] for x in stages[stages.index(stage):])
        self.bar = Bar.above = Bar(total=total, desc=f"round {int(round) + 1}", bar_format=ROUND,
                                   smoothing=0)

    def note(self, **numbers: str) -> None:
        """Numbers to stand beside the bar."""
        if self.bar is not None:
            self.bar.set_postfix(numbers)

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()
            self.bar = Bar.above = None
        self.round = ""
