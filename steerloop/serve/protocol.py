"""What may be asked: bodies of requests as the OpenAI protocol has them, and three fields of our
own: `gates` and `round`, which say who answers, and `dose`."""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from steerloop import UserError
from steerloop.cli.knobs import DIAL, Range
from steerloop.config import Config
from steerloop.export.student import Student
from steerloop.model import Model
from steerloop.texts.printable import printable

CHOICES, STOPS, LONGEST_STOP, LISTED, PROMPTS = 32, 4, 200, 20, 256  # at most
ROLES = ("system", "developer", "user", "assistant")
COMMON = {"model", "max_tokens", "n", "seed", "stop", "stream", "stream_options", "temperature",
          "top_p", "top_k", "gates", "dose", "round", "logprobs"}
CHAT = COMMON | {"messages", "max_completion_tokens", "top_logprobs"}
PLAIN = COMMON | {"prompt", "echo"}
ANY = object()
IDLE: dict[str, tuple[Any, ...]] = {  # known to the protocol, and done without: what they may be
    "user": (ANY,), "metadata": (ANY,), "store": (False,), "service_tier": ("auto", "default"),
    "presence_penalty": (0,), "frequency_penalty": (0,), "logit_bias": ({},), "best_of": (1,),
    "suffix": ("",), "tools": ([],), "functions": ([],), "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (ANY,), "response_format": ({"type": "text"},),
    "modalities": (["text"],), "skip_special_tokens": (True,),
}  # fmt: skip


class Refused(Exception):
    """A request that is not served: an HTTP status and the protocol's own error object."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None,
                 status: int = 400, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status = status
        param = printable(param) if param else param
        self.error = {"message": printable(message), "type": kind, "param": param, "code": code}


@dataclass(frozen=True)
class Dial:
    """Who answers: gates of all slots, and a dose in multiples of c*."""

    gates: Float[Tensor, "R"]
    dose: float


class Ways(NamedTuple):
    """How answers are drawn, and how much of them is said."""

    tokens: int
    temperature: float
    k: int
    p: float
    seed: int
    n: int
    stops: Sequence[str]
    top: int | None  # likeliest tokens listed; None: no log-probabilities


class Ask(NamedTuple):
    """A request that can be served."""

    chat: bool
    speaker: str
    dial: Dial
    prompts: list[list[int]]
    ways: Ways
    stream: bool
    usage: bool  # at the end of a stream
    echo: bool


class States:
    """Who can answer: base, student, and the student as it was after each round."""

    def __init__(self, student: Student, best: int, heard: Float[Tensor, "R"]) -> None:
        self.student, self.heard = student, heard
        count = student.rounds
        self.rounds = {"base": 0, "student": best}
        self.rounds |= {f"round-{k}": k for k in range(1, count + 1)}

    def gates(self, round: int) -> Float[Tensor, "R"]:
        """Of the student as it was after so many rounds."""
        return (torch.arange(len(self.heard)) < round).float()

    def dial(self, body: dict[str, Any]) -> tuple[str, Dial]:
        """Who answers a request: its name, and its dial."""
        name = body.get("model")
        if not isinstance(name, str) or name not in self.rounds:
            raise Refused(f"model {name!r:.80} is not served: take one of "
                          f"{', '.join(self.rounds)}", "model", "model_not_found", 404)
        gates = self.heard if name == "student" else self.gates(self.rounds[name])
        given = [x for x in ("gates", "round") if body.get(x) is not None]
        if len(given) == 2:
            raise Refused("gates and round both say which rounds are heard: leave one out", "round")
        if given == ["round"]:
            there = Range(0, self.student.rounds)
            gates = self.gates(int(number(body, "round", there, whole=True)))
        if given == ["gates"]:
            gates = self.given(body["gates"])
        return name, Dial(gates, float(number(body, "dose", DIAL, 0.0)))

    def given(self, value: Any) -> Float[Tensor, "R"]:
        """Gates as a request gives them: one number, or one a round."""
        rounds = self.student.rounds
        values = value if isinstance(value, list) else [value]
        if len(values) not in (1, rounds) or not all(within(x, DIAL) for x in values):
            raise Refused(f"gates: one number {DIAL}, or a list of {rounds}, one a round", "gates")
        gates = torch.zeros(len(self.heard))
        gates[:rounds] = torch.tensor([float(x) for x in values])
        return gates


def within(value: Any, allowed: Range, whole: bool = False) -> bool:
    """Whether something is a number in a range, and no truth value."""
    kinds = int if whole else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and allowed.holds(value)


def number(
    body: dict[str, Any], name: str, allowed: Range, default: float | int = 0, whole: bool = False
) -> float | int:
    """A field that is a number in a range."""
    value = body.get(name)
    if value is None:
        return default
    if not within(value, allowed, whole):
        kind = "a whole number" if whole else "a number"
        raise Refused(f"{name}: {kind} {allowed}, not {value!r:.80}", name)
    return value


def flag(body: dict[str, Any], name: str) -> bool:
    """A field that is true or false, false by default."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise Refused(f"{name}: true or false, not {value!r:.80}", name)
    return bool(value)


def text(value: Any, name: str) -> str:
    """A text that can be read."""
    if not isinstance(value, str):
        raise Refused(f"{name}: a text, not {value!r:.80}", name)
    try:
        value.encode()
    except UnicodeEncodeError as e:
        raise Refused(f"{name}: character {e.start + 1} is half of one (a lone surrogate)",
                      name) from e
    return value


def fields(raw: bytes, known: set[str]) -> dict[str, Any]:
    """A body → its fields, all of them known."""
    try:
        body = json.loads(raw, parse_constant=lambda x: float("nan"))
    except (ValueError, RecursionError) as e:
        raise Refused(f"the body is not JSON: {e}") from e
    if not isinstance(body, dict):
        raise Refused("the body has to be a JSON object")
    for name, value in body.items():
        if name in known or (value is None and name in IDLE):
            continue
        if name not in IDLE:
            raise Refused(f"{name[:80]!r} is not a field of this server: leave it out (there are "
                          f"{', '.join(sorted(known))})", name[:80], "unknown_field")
        if IDLE[name] != (ANY,) and value not in IDLE[name]:
            allowed = " or ".join(json.dumps(x) for x in IDLE[name])
            raise Refused(f"{name} is not supported: leave it out, or {allowed}", name,
                          "unsupported_value")
    return body


def stops(body: dict[str, Any]) -> list[str]:
    """Texts that end an answer."""
    value = body.get("stop")
    found = [] if value is None else value if isinstance(value, list) else [value]
    if len(found) > STOPS:
        raise Refused(f"stop: at most {STOPS} texts", "stop")
    for x in found:
        if not 0 < len(text(x, "stop")) <= LONGEST_STOP:
            raise Refused(f"stop: texts of 1 to {LONGEST_STOP} characters", "stop")
    return found


def filled(message: dict[str, Any]) -> dict[str, Any]:
    """Without the fields of an answer that say nothing: clients send answers back as they came."""
    return {k: x for k, x in message.items() if x is not None and x != []}


def messages(model: Model, value: Any) -> list[int]:
    """A conversation → the ids of its prompt."""
    if not isinstance(value, list) or not value:
        raise Refused("messages: a list of at least one message", "messages")
    turns = []
    for i, message in enumerate(value):
        at = f"messages[{i}]"
        if not isinstance(message, dict) or set(filled(message)) - {"role", "content", "name"}:
            raise Refused(f"{at}: an object with role and content", at)
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise Refused(f"{at}.role: one of {', '.join(ROLES)}, not {role!r:.80}", f"{at}.role")
        if isinstance(content, list):  # the protocol's parts
            if not all(isinstance(x, dict) and x.get("type") == "text" for x in content):
                raise Refused(f"{at}.content: parts of type text alone", f"{at}.content")
            content = "".join(text(x.get("text"), f"{at}.content") for x in content)
        turns.append(("system" if role == "developer" else role, text(content, f"{at}.content")))
    spoken = [role for role, _ in turns[turns[0][0] == "system":]]
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2) + ["user"]:
        raise Refused("messages: a system message may come first; then user and assistant take "
                      "turns, the user first and last", "messages")
    try:
        return model.conversation(turns)
    except UserError as e:
        raise Refused(str(e), "messages") from e


def prompts(model: Model, value: Any) -> list[list[int]]:
    """Texts, or ids, as completions take them → ids."""
    if isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int)):
        value = [value]
    if not isinstance(value, list) or not 0 < len(value) <= PROMPTS:
        raise Refused(f"prompt: a text, token ids, or a list of 1 to {PROMPTS} of either", "prompt")
    found = []
    for x in value:
        if isinstance(x, list):
            if not all(within(i, Range(0, 2**31), whole=True) for i in x):
                raise Refused("prompt: token ids are whole numbers from 0", "prompt")
            ids = x
        else:
            ids = model.tokenizer(text(x, "prompt")).input_ids  # with what begins every text
        try:
            model.known(ids)
        except UserError as e:
            raise Refused(str(e), "prompt") from e
        if not ids:
            raise Refused("prompt: at least one token", "prompt")
        found.append(ids)
    return found


def ways(body: dict[str, Any], cfg: Config, context: int, chat: bool) -> Ways:
    """How answers are drawn: as in the run, but for what the request says."""
    whole = Range(0, context)
    names = ("max_completion_tokens", "max_tokens")
    limit = next((x for x in names if body.get(x) is not None), names[1])
    top: int | None = None
    if not chat:
        top = body.get("logprobs")
        if top is not None:
            top = int(number(body, "logprobs", Range(0, LISTED), whole=True))
    elif flag(body, "logprobs"):
        top = int(number(body, "top_logprobs", Range(0, LISTED), whole=True))
    elif body.get("top_logprobs"):
        raise Refused("top_logprobs: only with logprobs true", "top_logprobs")
    seed = body.get("seed")
    if seed is None:
        seed = secrets.randbelow(2**31)
    elif not within(seed, Range(-(2**63), 2**63 - 1), whole=True):
        raise Refused("seed: a whole number of 64 bits", "seed")
    p = float(number(body, "top_p", Range(0, 1), cfg.top_p))
    if p == 0:
        raise Refused("top_p: above 0", "top_p")
    return Ways(
        int(number(body, limit, whole, cfg.max_new_tokens, whole=True)),
        float(number(body, "temperature", Range(0, 2), cfg.temperature)),
        int(number(body, "top_k", Range(1, 10**6), cfg.top_k, whole=True)), p, seed,
        int(number(body, "n", Range(1, CHOICES), 1, whole=True)), stops(body), top)


def read_ask(raw: bytes, chat: bool, states: States, context: int, rows: int) -> Ask:
    """A body → what is asked. `context`: most tokens of a prompt and its answer, `rows`: most
    answers to one request. Raises Refused."""
    body = fields(raw, CHAT if chat else PLAIN)
    speaker, dial = states.dial(body)
    model, cfg = states.student.model, states.student.cfg
    how = ways(body, cfg, context, chat)
    asked = [messages(model, body.get("messages"))] if chat else prompts(model, body.get("prompt"))
    if len(asked) * how.n > rows:
        raise Refused(f"{len(asked)} prompts and {how.n} answers to each are more than the {rows} "
                      "rows that may wait: send several requests", "n")
    longest = max(map(len, asked))
    if longest + how.tokens > context:
        raise Refused(f"{longest} tokens of prompt and {how.tokens} of answer are more than the "
                      f"{context} that this server takes: a shorter prompt, or less max_tokens",
                      "messages" if chat else "prompt", "context_length_exceeded")
    options = body.get("stream_options")
    if options is not None and (not isinstance(options, dict)
                                or set(options) - {"include_usage", "include_obfuscation"}):
        raise Refused("stream_options: an object with include_usage alone", "stream_options")
    usage = flag(options or {}, "include_usage")
    return Ask(chat, speaker, dial, asked, how, flag(body, "stream"), usage,
               not chat and flag(body, "echo"))
