"""Text of a row as its tokens come."""

from collections.abc import Callable, Sequence

HALF = 4  # tokens after which bytes that made no character will make none


class Spoken:
    """Tokens → text that will not change any more: half a character waits for its rest, and what
    may be the beginning of one of the `stops` for what follows. Nothing after a stop is given
    out, nor the stop itself."""

    def __init__(self, to_text: Callable[[list[int]], str], stops: Sequence[str] = ()) -> None:
        self.to_text, self.stops = to_text, stops
        self.ids: list[int] = []
        self.start = self.end = 0  # of the tokens before, with which new ones are decoded
        self.held = ""

    def add(self, tokens: list[int], last: bool) -> tuple[str, bool]:
        """What tokens add to the text, and whether a stop was met."""
        self.ids += tokens
        before, now = self.between(self.end), self.between(len(self.ids))
        cut = len(self.ids)
        if now.endswith("\ufffd") and not last:
            cut = self.known(now)
        if cut > self.end:
            new = self.between(cut)[len(before):]
            self.held += new
            if new:  # tokens without a text tell nothing of a space at the start of the next
                self.start = self.end
            self.end = cut
        met = [at for x in self.stops if (at := self.held.find(x)) >= 0]
        if met:
            return self.held[: min(met)], True
        keep = 0 if last else max((overlap(self.held, x) for x in self.stops), default=0)
        cut = len(self.held) - keep
        text, self.held = self.held[:cut], self.held[cut:]
        return text, False


    def between(self, end: int) -> str:
        """The text of the last tokens up to one."""
        return self.to_text(self.ids[self.start : end])

    def known(self, now: str) -> int:
        """How many tokens make text that stays, where it ends in what may be half a character:
        after a while it shows which bytes make none."""
        for cut in range(len(self.ids) - HALF, self.end, -1):
            if now.startswith(self.between(cut)):
                return cut
        return self.end

    def whole(self) -> str:
        """The text up to the first stop, decoded at once."""
        text = self.to_text(self.ids)
        return text[: min((at for x in self.stops if (at := text.find(x)) >= 0), default=None)]


def overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of a stop."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1)
                 if text.endswith(stop[:n])), 0)
