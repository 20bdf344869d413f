"""One batch for everybody: rows join it and leave it between two decoding steps.

Every row has gates, dose, draws and ways to sample of its own, so what it says hangs on none of its
neighbours. Whatever else a row is for stays with its seat (`Seat`), in the order of the rows.

Letters: b rows in flight, t tokens of a prompt, T tokens so far, m draws, R slots of the stack,
d width, v vocabulary.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerloop.kernels.batch import sent
from steerloop.kernels.caches import beside, empty_cache, without_first
from steerloop.kernels.decode import Rows, pick
from steerloop.kernels.graphs import Eager, Logits, steps
from steerloop.kernels.trunk import Trunk
from steerloop.model import Model
from steerloop.readouts.states import Vector
from steerloop.steer import steered

STEADY = 8  # steps after which a batch that nobody joined or left is worth recording
LEAST = -9999.0  # what the protocol says of a token that is impossible
PART = 256  # positions of a prompt whose logits are there at once


class Token(NamedTuple):
    """A token, and where somebody asked: its log-probability, nats, before any temperature, and
    those of the likeliest tokens."""

    id: int
    logprob: float | None = None
    top: dict[int, float] = {}  # noqa: RUF012  never written to


@dataclass(eq=False)
class Seat:
    """What belongs to one row. `dose` is in units of the vector; `draws` are the row's own, as many
    as it may have tokens; `top`: how many likeliest tokens are listed, None: no log-probabilities,
    `prompt_top` the same of the prompt's tokens."""

    prompt: list[int]
    gates: Float[Tensor, "R"]
    dose: float
    draws: Float[Tensor, "m"]
    temperature: float
    k: int
    p: float
    top: int | None = None
    prompt_top: int | None = None
    about_prompt: list[Token] = field(default_factory=list)

    @property
    def dial(self) -> tuple[float, ...]:
        """Under which the prompt is read."""
        return (self.dose, *self.gates.tolist())


class Flight:
    """The rows in flight. All calls come from one thread, and that under no_grad."""

    def __init__(self, model: Model, vector: Vector) -> None:
        self.model, self.vector = model, vector
        self.seats: list[Seat] = []
        self.rows: Rows | None = None
        self.opened: ExitStack | None = None  # gates and steering of the rows, while they are
        self.stepper: Eager | None = None
        self.calm = 0

    def under(self, seats: list[Seat], rows: Rows) -> ExitStack:
        """Gates and steering of some rows, until it is closed."""
        gates = torch.stack([x.gates for x in seats])
        alike = not (gates != gates[0]).any()
        vector = self.vector if any(x.dose for x in seats) else {}
        stack = ExitStack()
        stack.enter_context(self.model.gates(gates[0] if alike else gates))
        stack.enter_context(steered(self.model, vector, rows))
        return stack

    def settle(self) -> None:
        """The rows are about to change."""
        if self.stepper:
            self.stepper.close(self.rows)
        if self.opened:
            self.opened.close()
        self.stepper = self.opened = None
        self.calm = 0

    def read(self, seats: list[Seat]) -> tuple[Rows, list[Token]]:
        """Rows whose prompts were read, and the first token of each; the others stay as they are.
        """
        self.settle()
        rows, h = self.prompts(seats)
        tokens = self.chosen(self.model.head(h), seats, rows.draws[:, 0])
        drew(rows, tokens)
        return rows, tokens

    def join(self, seats: list[Seat], rows: Rows) -> None:
        """Rows that were `read` join the others. Should that fail, all of them are lost."""
        self.rows = rows if self.rows is None else joined(self.rows, rows)
        self.seats = self.seats + seats

    def prompts(self, seats: list[Seat]) -> tuple[Rows, Float[Tensor, "b d"]]:
        """Rows whose prompts were read, each only once, and their last hidden states."""
        model = self.model
        places: dict[tuple, int] = {}
        place = [places.setdefault((*x.prompt, None, *x.dial), len(places)) for x in seats]
        firsts = [place.index(i) for i in range(len(places))]
        some = [seats[i] for i in firsts]
        ids, mask = model.pad([x.prompt for x in some])
        dose = torch.tensor([x.dose for x in some], device=model.device).float()
        cache = empty_cache(model.hf)
        rows = Rows(torch.arange(len(some)), ids, mask, dose, dose[:, None], cache)
        with self.under(some, rows):
            h = model.trunk(rows.ids, rows.mask, rows.cache)
        for i, seat in enumerate(seats):
            if seat.prompt_top is not None:
                n = len(seat.prompt)
                seat.about_prompt = self.about(seat, h[place[i], -n:][:-1])
        if len(seats) > len(some):
            rows.select(torch.tensor(place))
        longest = max(1, *(len(x.draws) for x in seats))
        drawn = torch.zeros(len(seats), longest)
        for row, seat in zip(drawn, seats, strict=True):
            row[: len(seat.draws)] = seat.draws
        rows.draws = drawn.to(model.device)
        return rows, h[torch.tensor(place, device=h.device), -1]

    def about(self, seat: Seat, h: Float[Tensor, "t d"]) -> list[Token]:
        """The log-probabilities of a prompt's tokens but for the first."""
        found = []
        for at in range(0, len(h), PART):
            part = h[at : at + PART]
            ids = torch.tensor(seat.prompt[at + 1 : at + 1 + len(part)], device=h.device)
            found += listed(self.model.head(part), ids, [seat.prompt_top] * len(part))
        return found

    def chosen(self, logits: Float[Tensor, "b v"], seats: list[Seat], u: Float[Tensor, "b"]
               ) -> list[Token]:
        """The next token of each row, drawn in its own way. A row whose logits are no numbers has
        the token -1."""
        ways: dict[tuple, list[int]] = {}
        for i, x in enumerate(seats):
            ways.setdefault((x.temperature, x.k, x.p), []).append(i)
        ids = torch.empty(len(seats), dtype=torch.long, device=logits.device)
        for (temperature, k, p), some in ways.items():
            there = sent(torch.tensor(some), logits.device)
            part = logits if len(ways) == 1 else logits[there]
            ids[there] = pick(part, u[there], temperature, k, p)
        ids = ids.where(logits.isfinite().all(-1), -1)
        if all(x.top is None for x in seats):
            return [Token(x) for x in ids.tolist()]
        return listed(logits, ids, [x.top for x in seats])

    def step(self) -> list[Token]:
        """The next token of every row."""
        rows = self.rows
        if self.opened is None:
            self.opened = self.under(self.seats, rows)
        if self.stepper is None or self.calm == STEADY:
            # buffers of a graph have room for all draws behind all tokens: most often too much
            longest = max(len(x.prompt) + len(x.draws) for x in self.seats)
            fits = rows.mask.shape[1] + rows.draws.shape[1] <= longest
            kind = steps if self.calm == STEADY and fits else without_graphs
            self.stepper = kind(self.model.trunk, self.model.head, rows)
        self.calm += 1
        tokens = self.chosen(self.stepper(rows), self.seats, rows.draws[:, 0])
        drew(rows, tokens)
        return tokens

    def leave(self, gone: set[Seat]) -> None:
        """Some rows are over."""
        keep = [i for i, x in enumerate(self.seats) if x not in gone]
        if len(keep) == len(self.seats):
            return
        self.settle()
        self.seats = [self.seats[i] for i in keep]
        if not keep:
            self.rows = None
            return
        self.rows.select(torch.tensor(keep))
        unread = self.rows.mask.any(0).long().argmax().item()  # of every row
        if unread:
            self.rows.mask = self.rows.mask[:, unread:]
            without_first(self.rows.cache, unread, self.rows.mask.shape[1] - 1)

    def clear(self) -> None:
        """All rows are over, whatever happened to them."""
        self.stepper = None
        self.settle()
        self.seats, self.rows = [], None


def without_graphs(trunk: Trunk, head: Logits, rows: Rows) -> Eager:
    """Steps that follow the rows, as `steps` gives them where nothing can be recorded."""
    return Eager(trunk, head)


def drew(rows: Rows, tokens: list[Token]) -> None:
    """What is read next of some rows is what they drew."""
    ids = torch.tensor([[max(0, x.id)] for x in tokens])  # one that is no number leaves
    rows.ids = sent(ids, rows.mask.device)
    rows.mask = torch.cat([rows.mask, rows.ids >= 0], dim=1)
    rows.draws = rows.draws[:, 1:]


def joined(one: Rows, other: Rows) -> Rows:
    """Rows beside other ones; those of fewer tokens are filled up on the left."""
    T = max(one.mask.shape[1], other.mask.shape[1])
    m = max(one.draws.shape[1], other.draws.shape[1])
    pad = torch.nn.functional.pad
    beside(one.cache, other.cache)
    masks = [pad(x.mask, (T - x.mask.shape[1], 0)) for x in (one, other)]
    drawn = [pad(x.draws, (0, m - x.draws.shape[1])) for x in (one, other)]
    return Rows(
        torch.arange(len(one.ids) + len(other.ids)), torch.cat([one.ids, other.ids]),
        torch.cat(masks), torch.cat([one.dose, other.dose]), torch.cat(drawn), one.cache)


def listed(logits: Float[Tensor, "b v"], ids: Int[Tensor, "b"], tops: list[int | None]
           ) -> list[Token]:
    """Tokens with their log-probabilities, and as many of the likeliest as each row asks for; None:
    the token alone."""
    logp = logits.float().log_softmax(-1).clamp(min=LEAST)
    own = logp.gather(-1, ids.clamp(min=0)[:, None])[:, 0].tolist()
    most = max((x for x in tops if x is not None), default=0)
    best = logp.topk(min(most, logp.shape[-1]))
    found = []
    for i, x in enumerate(ids.tolist()):
        n = tops[i]
        if n is None:
            found.append(Token(x))
            continue
        pairs = zip(best.indices[i, :n].tolist(), best.values[i, :n].tolist(), strict=True)
        found.append(Token(x, own[i], dict(pairs)))
    return found
