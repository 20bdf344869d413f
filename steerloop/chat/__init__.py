"""Talk to a student, with a dial per round.

Token ids travel: a conversation is the ids of its prompts and answers, never tokenised again. All
answers to one prompt come from one batch whose rows differ in gates and dose alone, under the same
random draws.

Letters: b rows, R slots of the stack.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from steerloop import UserError
from steerloop.export.student import Student
from steerloop.kernels.caches import empty_cache
from steerloop.kernels.decode import Rows, draws, generate, pick
from steerloop.kernels.graphs import steps
from steerloop.readouts.states import Vector
from steerloop.steer import steered
from steerloop.texts.printable import printable


class Turn(NamedTuple):
    """A prompt, its answer, who spoke and under which dial."""

    user: str
    answer: str
    speaker: str
    dial: tuple[float, ...]


@dataclass
class Talk:
    """A conversation and its dial. `dose` is in multiples of `c_star`, the dose calibrated for
    `vector`, which is that of round 1 (of the untouched base)."""

    student: Student
    vector: Vector
    c_star: float
    gates: Float[Tensor, "R"]
    tokens: int
    temperature: float
    seed: int = 0
    dose: float = 0.0
    before: list[int] = field(default_factory=list)  # the context of the last prompt
    context: list[int] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    start: tuple[float, ...] = ()  # the dial that is called the student

    def __post_init__(self) -> None:
        self.start = self.start or self.dial

    @property
    def dial(self) -> tuple[float, ...]:
        """The dose, and the gates of the rounds that are baked."""
        return (self.dose, *self.gates[: self.student.rounds].tolist())

    @property
    def speaker(self) -> str:
        """Who answers under the dial: base, student (the dial of the start), or the dial itself."""
        if not any(self.dial):
            return "base"
        return "student" if self.dial == self.start else dialled(self.dial)

    @property
    def mixed(self) -> bool:
        """Whether some of the conversation was written under other dials."""
        return any(turn.dial != self.dial for turn in self.turns)


def dialled(dial: tuple[float, ...]) -> str:
    """A dial, dose (multiples of c*) and gates, in words."""
    dose, *gates = dial
    return f"gates {' '.join(f'{g:g}' for g in gates)} · dose {dose:g}"


def prompt_ids(talk: Talk, user: str) -> list[int]:
    """The conversation so far and the next user text, ready to be answered.

    Raises UserError where no room is left for an answer.
    """
    model = talk.student.model
    ids = talk.context + model.follow(user) if talk.context else model.render(user)
    limit = getattr(model.hf.config.get_text_config(), "max_position_embeddings", None)
    if limit and len(ids) + talk.tokens > limit:
        raise UserError(f"{len(ids)} tokens of conversation and {talk.tokens} of answer are more "
                        f"than the {limit} that the model takes: /reset, or fewer --tokens")
    return ids


@torch.no_grad()
def answer(
    talk: Talk, user: str, gates: Float[Tensor, "b R"], doses: list[float],
    show: Callable[[str], object] | None = None,
) -> list[list[int]]:
    """Token ids of one answer per row, under that row's gates and dose (multiples of c*).

    `show` receives the text of the first row as it comes.
    """
    model, cfg = talk.student.model, talk.student.cfg
    ids, b = prompt_ids(talk, user), len(doses)
    u = draws(f"{talk.seed}|chat|{len(talk.turns)}", talk.tokens).expand(b, -1).to(model.device)
    rows = Rows(torch.arange(b), *model.pad([ids] * b),
                talk.c_star * torch.tensor(doses, device=model.device), u,
                empty_cache(model.hf), model.gates if len(gates.unique(dim=0)) > 1 else None)
    stream = streamed(model.to_text, show) if show else None
    choose = partial(pick, temperature=talk.temperature, k=cfg.top_k, p=cfg.top_p)

    def choose_and_show(logits: Tensor, draw: Tensor) -> Tensor:
        nonlocal stream
        token = choose(logits, draw)
        if stream:
            stream(first := int(token[0]))
            if first in model.stop_ids:  # its row may stay for a while
                stream = stream(None)
        return token

    vector = talk.vector if any(doses) else {}
    with model.gates(gates if rows.gates else gates[0]), steered(model, vector, rows):
        step = steps(model.trunk, model.head, rows)
        ids = generate(step, rows, choose_and_show, model.stop_ids)
    if stream:
        stream(None)
    return ids


def streamed(
    text: Callable[[list[int]], str], show: Callable[[str], object]
) -> Callable[[int | None], None]:
    """A token id → what it adds to the text is shown; half a character waits for its rest, or for
    None, the end."""
    ids: list[int] = []
    done = ""

    def add(token: int | None) -> None:
        nonlocal done
        ids.extend([] if token is None else [token])
        now = text(ids)
        if token is None or (now.startswith(done) and not now.endswith("\ufffd")):
            show(printable(now)[len(done):])
            done = now

    return add


def say(talk: Talk, user: str, show: Callable[[str], object] | None = None) -> str:
    """Answer under the dial, and remember: the answer's ids join the conversation."""
    prompt = prompt_ids(talk, user)
    (ids,) = answer(talk, user, talk.gates[None], [talk.dose], show)
    model, talk.before = talk.student.model, talk.context
    talk.context = prompt + (ids[:-1] if ids[-1] in model.stop_ids else ids)
    talk.turns.append(Turn(user, model.to_text(ids), talk.speaker, talk.dial))
    return talk.turns[-1].answer


def compare(talk: Talk, user: str) -> list[str]:
    """The answers of base, of the dial without the last round, and of the dial, to the same prompt,
    from one batch. The conversation stays as it was."""
    now = talk.gates
    before = now * talk.student.model.gates.before(talk.student.rounds - 1).to(now)
    rows = torch.stack([torch.zeros_like(now), before, now])
    answers = answer(talk, user, rows, [0.0, talk.dose, talk.dose])
    return [talk.student.model.to_text(ids) for ids in answers]
