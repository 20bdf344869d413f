"""Text of a row as its tokens come."""

from collections.abc import Callable, Sequence

HALF = 8  # tokens after which what looks like half a character is one that the model wrote


class Spoken:
    """Tokens → text that will not change any more: half a character waits for its rest, and what
    may be the beginning of one of the `stops` for what follows. Nothing after a stop is given
    out, nor the stop itself."""

    def __init__(self, to_text: Callable[[list[int]], str], stops: Sequence[str] = ()) -> None:
        self.to_text, self.stops = to_text, stops
        self.ids: list[int] = []
        self.start = self.end = 0  # of the tokens before, with which new ones are decoded
        self.held = ""

    def add(self, token: int | None, last: bool) -> tuple[str, bool]:
        """What a token adds to the text (None: nothing more), and whether a stop was met."""
        if token is not None:
            self.ids.append(token)
        before = self.to_text(self.ids[self.start : self.end])
        now = self.to_text(self.ids[self.start :])
        if not now.endswith("\ufffd") or last or len(self.ids) - self.end >= HALF:
            self.held += now[len(before):]
            self.start, self.end = self.end, len(self.ids)
        met = [at for x in self.stops if (at := self.held.find(x)) >= 0]
        if met:
            return self.held[: min(met)], True
        keep = 0 if last else max((overlap(self.held, x) for x in self.stops), default=0)
        cut = len(self.held) - keep
        text, self.held = self.held[:cut], self.held[cut:]
        return text, False


def overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of a stop."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1)
                 if text.endswith(stop[:n])), 0)
