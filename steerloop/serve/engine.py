"""The thread in which the model works: asks come in through a queue with a bound, what is said goes
out as it is drawn, and nothing that befalls one ask ends the others, let alone the thread."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isnan
from typing import NamedTuple

import torch
from loguru import logger

from steerloop.model import Model
from steerloop.readouts.states import Vector
from steerloop.serve.batch import Flight, Seat, Token
from steerloop.serve.spoken import Spoken

PAUSE = 0.04  # seconds between two pieces of one row; the first and the last do not wait
READ = 2048  # tokens of prompts that are read between two steps of the others, if several


class Piece(NamedTuple):
    """What a row said since its last piece. `finish`: why it ended ('stop', 'length', 'error'),
    '' while it goes on. `about_prompt` comes with the first."""

    choice: int
    text: str
    tokens: list[Token]
    drawn: int  # how many there were
    finish: str = ""
    about_prompt: list[Token] = []  # noqa: RUF012  never written to


@dataclass(eq=False, kw_only=True)
class Row(Seat):
    """A seat with what is said from it, and who hears that; `streams`: while it is said."""

    choice: int
    hear: Callable[[Piece], None]
    spoken: Spoken
    streams: bool
    unread: list[int] = field(default_factory=list)  # tokens that nobody needed as text yet
    text: str = ""  # not given out yet
    tokens: list[Token] = field(default_factory=list)
    drawn: int = 0  # of all, and of those since the last piece
    fresh: int = 0
    over: bool = False  # its end was told
    told: float = 0.0  # when the last piece went out

    @property
    def longest(self) -> int:
        """How many tokens it may come to."""
        return len(self.prompt) + len(self.draws)

    def give(self, finish: str = "") -> None:
        """A piece goes out."""
        self.hear(Piece(self.choice, self.text, self.tokens, self.fresh, finish,
                        self.about_prompt))
        self.text, self.tokens, self.fresh, self.about_prompt = "", [], 0, []
        self.told, self.over = time.monotonic(), bool(finish)


class Full(Exception):
    """The queue has no room for so many rows."""


class Engine(threading.Thread):
    """Everything that is asked, in one batch. `rows`: how many are in it at most; `room`: how many
    keys and values, rows times tokens; `waiting`: how many rows may wait."""

    def __init__(self, model: Model, vector: Vector, rows: int, room: int, waiting: int) -> None:
        super().__init__(daemon=True, name="engine")
        self.model, self.flight = model, Flight(model, vector)
        self.most, self.room, self.waiting = rows, room, waiting
        self.queue: deque[Row] = deque()
        self.dropped: set[Row] = set()
        self.news = threading.Condition()
        self.ending = False

    def ask(self, rows: list[Row]) -> None:
        """Put rows into the queue. Raises Full, and then none is in it."""
        with self.news:
            if len(self.queue) + len(rows) > self.waiting:
                raise Full(f"{len(self.queue)} rows wait, {self.waiting} may")
            self.queue.extend(rows)
            self.news.notify()

    def drop(self, rows: list[Row]) -> None:
        """Nobody hears these any more: their rows are free with the next step."""
        with self.news:
            self.dropped |= set(rows)
            self.news.notify()

    def end(self) -> None:
        """The thread ends after its step; rows that are left say 'error'."""
        with self.news:
            self.ending = True
            self.news.notify()

    @property
    def load(self) -> tuple[int, int]:
        """Rows in flight, rows that wait."""
        return len(self.flight.seats), len(self.queue)

    @torch.no_grad()
    def run(self) -> None:
        while True:
            with self.news:
                while not (self.queue or self.dropped or self.flight.seats or self.ending):
                    self.news.wait()
                if self.ending:
                    break
                gone, self.dropped, new = self.dropped, set(), []
                for row in gone & set(self.queue):
                    self.queue.remove(row)
                new = self.admitted(gone)
            try:
                self.flight.leave(gone)
                if new:
                    self.begin(new)
                if self.flight.seats:
                    self.hears(self.flight.seats, self.flight.step())
            except Exception as e:  # whatever it is, the next ask may do better
                logger.exception("a step failed; its rows are given up")
                self.give_up([*self.flight.seats, *new], e)
                self.flight.clear()
        self.give_up([*self.flight.seats, *self.queue], RuntimeError("the server ends"))

    def admitted(self, gone: set[Row]) -> list[Row]:
        """The rows from the queue for which there is room, in order."""
        new: list[Row] = []
        there = [x for x in self.flight.seats if x not in gone]
        while self.queue and len(there) + len(new) < self.most:
            row = self.queue[0]
            rows = [*there, *new, row]
            full = len(rows) * max(x.longest for x in rows) > self.room
            prompts = [len(x.prompt) for x in (*new, row)]
            if (rows[1:] and full) or (new and len(prompts) * max(prompts) > READ):
                break
            new.append(self.queue.popleft())
        return new

    def begin(self, new: list[Row]) -> None:
        """Read prompts, and take their rows into the batch. Whatever it raises, all are lost."""
        try:
            fresh, tokens = self.flight.read(new)
        except Exception as e:
            logger.exception("prompts could not be read; their rows are given up")
            self.give_up(new, e)
            return
        self.flight.join(new, fresh)
        self.hears(new, tokens)

    def give_up(self, rows: list[Row], why: Exception) -> None:
        """These rows end, if they have not."""
        for row in dict.fromkeys(x for x in rows if not x.over):
            row.text = f"{type(why).__name__}: {why}"
            row.give("error")

    def hears(self, rows: list[Row], tokens: list[Token]) -> None:
        """What was drawn goes out; rows that ended leave."""
        now, over = time.monotonic(), set()
        for row, token in zip(rows, tokens, strict=True):
            due = row.streams and now - row.told > PAUSE
            finish = self.heard(row, token, due)
            if finish:
                over.add(row)
                if not row.streams and finish != "error":
                    row.text = row.spoken.whole()
                row.give(finish)
            elif due and (row.text or row.tokens):
                row.give()
        self.flight.leave(over)

    def heard(self, row: Row, token: Token, due: bool) -> str:
        """A token of one row; why the row ends with it, '' where it does not. What it reads like is
        looked up where somebody is `due` to hear it, or a stop might be in it."""
        most = len(row.draws)
        if token.id < 0 or any(isnan(x.logprob) for x in row.about_prompt):
            row.text = "the model gives no numbers under these gates and this dose: take less"
            row.about_prompt = []
            return "error"
        if not most:
            return "length"
        row.drawn += 1
        row.fresh += 1
        stops = token.id in self.model.stop_ids
        last = row.drawn == most
        if not stops or row.top is not None:
            row.tokens.append(token)
        row.unread += [] if stops else [token.id]
        cut = False
        if due or stops or last or row.spoken.stops:
            new, cut = row.spoken.add(row.unread, stops or last)
            row.text, row.unread = row.text + new, []
        if cut or stops:
            return "stop"
        return "length" if last else ""
