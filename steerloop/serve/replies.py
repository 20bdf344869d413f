"""What is answered, as the OpenAI protocol has it."""

import time
import uuid
from typing import Any

from steerloop.model import Model
from steerloop.serve.batch import Token
from steerloop.serve.engine import Piece
from steerloop.serve.protocol import Ask


class Reply:
    """The objects of one answer: whole, or as chunks of a stream."""

    def __init__(self, ask: Ask, model: Model) -> None:
        self.ask, self.model = ask, model
        kind = ("chat.completion" if ask.chat else "text_completion")
        self.head = {
            "id": f"{'chatcmpl' if ask.chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": kind, "created": int(time.time()), "model": ask.speaker,
            "steerloop": {"gates": ask.dial.gates.tolist(), "dose": ask.dial.dose,
                          "seed": ask.ways.seed},
        }
        self.offsets: dict[int, int] = {}
        self.drawn: dict[int, int] = {}

    def prompt_of(self, choice: int) -> list[int]:
        """Choices of one prompt follow each other."""
        return self.ask.prompts[choice // self.ask.ways.n]

    def usage(self) -> dict[str, int]:
        """Tokens of the prompts, once each, and of all answers."""
        asked, drawn = sum(map(len, self.ask.prompts)), sum(self.drawn.values())
        return {"prompt_tokens": asked, "completion_tokens": drawn, "total_tokens": asked + drawn}

    def word(self, id: int) -> str:
        """A token by itself."""
        return self.model.to_text([id], special=True)

    def chat_logprobs(self, tokens: list[Token]) -> dict[str, Any]:
        """Of the tokens of a chat answer."""

        def entry(id: int, logprob: float) -> dict[str, Any]:
            word = self.word(id)
            return {"token": word, "logprob": logprob, 
                    "bytes": None if "\ufffd" in word else list(word.encode())}

        return {"content": [entry(x.id, x.logprob)
                            | {"top_logprobs": [entry(*pair) for pair in x.top.items()]}
                            for x in tokens], "refusal": None}

    def plain_logprobs(self, choice: int, tokens: list[Token]) -> dict[str, Any]:
        """Of the tokens of a completion. Where two tokens read alike the likelier is listed."""
        words = [self.word(x.id) for x in tokens]
        offsets = []
        for word in words:
            offsets.append(self.offsets.setdefault(choice, 0))
            self.offsets[choice] += len(word)
        tops: list[dict[str, float] | None] = []
        for x in tokens:
            likely = {self.word(k): v for k, v in reversed(x.top.items())}
            tops.append(likely if x.logprob is not None else None)
        return {"tokens": words, "token_logprobs": [x.logprob for x in tokens],
                "top_logprobs": tops, "text_offset": offsets}

    def choice(self, piece: Piece, chunk: bool, first: bool) -> dict[str, Any]:
        """One choice of an answer, or what a chunk adds to it."""
        ask, text, tokens = self.ask, piece.text, piece.tokens
        self.drawn[piece.choice] = self.drawn.get(piece.choice, 0) + piece.drawn
        if ask.echo and first:
            ids = self.prompt_of(piece.choice)
            text = self.model.to_text(ids, special=True) + text
            tokens = [Token(ids[0]), *piece.about_prompt, *tokens]
        found: dict[str, Any] = {"index": piece.choice, "finish_reason": piece.finish or None,
                                 "logprobs": None}
        if ask.chat:
            said = {"role": "assistant"} if first or not chunk else {}
            found["delta" if chunk else "message"] = said | {"content": text}
            if not chunk:
                found["message"]["refusal"] = None
        else:
            found["text"] = text
        if ask.ways.top is not None:
            found["logprobs"] = (self.chat_logprobs(tokens) if ask.chat
                                 else self.plain_logprobs(piece.choice, tokens))
        return found

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        """The answer at once, from one piece a choice."""
        choices = [self.choice(x, chunk=False, first=True) for x in pieces]
        return self.head | {"choices": choices, "usage": self.usage()}

    def chunk(self, piece: Piece, first: bool) -> dict[str, Any]:
        """A part of a stream."""
        found = self.head | {"choices": [self.choice(piece, chunk=True, first=first)]}
        if self.ask.chat:
            found["object"] = "chat.completion.chunk"
        return found

    def last(self) -> dict[str, Any]:
        """The end of a stream that tells its usage."""
        found = self.head | {"choices": [], "usage": self.usage()}
        if self.ask.chat:
            found["object"] = "chat.completion.chunk"
        return found
