"""A chat template that proves itself: what goes in comes out."""

from collections.abc import Collection
from functools import lru_cache
from itertools import product
from re import split
from textwrap import shorten
from typing import Any, NamedTuple

from steerloop import UserError
from steerloop.loading.template import TODAY, Refused, written
from steerloop.loading.thought import closing, opened
from steerloop.texts.printable import printable

Turn = tuple[str, str]  # role, text
MARK = "\ufffc"  # no template writes it
KNOWN = 64  # orders of roles that are remembered
PROBE = (  # what templates have been seen to change: case, quotes, spaces, tags, long texts
    "Does “it” say 'so', \"{so}\" & {{ so }} <b>so</b>, \\n http://so.it/?a=1%20&b 100% of 1e3?\n\n"
    "  * Ja:\tüber  alle\n" + "Ordinary Words, A Great Many of Them. " * 200 + "so."
)


class Words(NamedTuple):
    """What a template writes around the texts of turns: before the first, between them, after the
    last; the order in which it takes them; and what closes a thought that it opens ('': none)."""

    around: list[str]
    order: list[int]
    end: str


def whole(text: str) -> dict[str, None]:
    """A text as templates may write it: many trim it, and nothing else may happen to it."""
    return dict.fromkeys((text, text.strip(), text.lstrip(), text.rstrip()))


class Rendering:
    """Turns → the text of a prompt, by a chat template with its tokenizer's special tokens.

    How texts are given to it is chosen here: as they are or as the library's list of parts, with
    system texts in a turn of their own (`system_role`) unless the template refuses or ignores
    such turns. Raises UserError where in no way a probe of each comes out once and whole.
    """

    def __init__(self, template: str, special: dict[str, Any], added: Collection[str]) -> None:
        self.template, self.special, self.added = template, special, added
        self.words = lru_cache(KNOWN)(self._words)
        failures = []
        for self.system_role, self.parts in product((True, False), (False, True)):
            self.words.cache_clear()
            try:
                self.text([("system", f"You. {PROBE}")] * self.system_role + [("user", PROBE)])
                self.text([("user", PROBE)])
                break
            except UserError as e:
                failures.append(e)
        else:
            raise failures[2]  # in plain, without a system text
        if not self.system_role and not self._ignores_system():
            raise failures[self.parts]

    def _ignores_system(self) -> bool:
        """Whether the template refuses a turn of that role, or is the same without it."""
        user = ("user", "x")
        try:
            return self._write([("system", "y"), user]) == self._write([user])
        except Refused:
            return True

    def _write(self, turns: list[Turn], ask: bool = True) -> str:
        given = [(role, [{"type": "text", "text": x}] if self.parts else x) for role, x in turns]
        return written(
            self.template, [{"role": role, "content": x} for role, x in given], tools=None,
            documents=None, add_generation_prompt=ask, enable_thinking=False, thinking=False,
            date_string=f"{TODAY:%d %b %Y}", **self.special,
        )  # fmt: skip

    def _words(self, roles: tuple[str, ...], ask: bool) -> Words:
        """Found by marks in the place of texts. Raises UserError where one of them is lost."""
        marks = [f"{MARK}{i}{MARK}" for i in range(len(roles))]
        text = self._write(list(zip(roles, marks, strict=True)), ask)
        if any(text.count(x) != 1 for x in marks):
            raise UserError(f"the chat template does not write the text of each turn ("
                            f"{', '.join(roles)}) once: another model, or mend its chat template")
        order = sorted(range(len(marks)), key=lambda i: text.index(marks[i]))
        around = split("|".join(marks), text)
        return Words(around, order, self._end(roles, around[-1]) if ask else "")

    def _end(self, roles: tuple[str, ...], tail: str) -> str:
        unasked = self.words(roles, False).around[-1]
        opening = tail.removeprefix(unasked) if tail != unasked else ""
        tag = opened(opening, tail)
        return closing(tag, self.added) if tag else ""

    def text(self, turns: list[Turn], ask: bool = True) -> str:
        """The prompt of these turns, with `ask` up to where the answer begins. Raises UserError
        where a text does not come out once, as it is but for white space at its ends."""
        words = self.words(tuple(role for role, _ in turns), ask)
        text = self._write(turns, ask)
        ends = {len(words.around[0])} if text.startswith(words.around[0]) else set()
        for i, after in zip(words.order, words.around[1:], strict=True):
            parts = [x + after for x in whole(turns[i][1])]
            ends = {at + len(x) for at in ends for x in parts if text.startswith(x, at)}
        if len(text) in ends:
            return text + words.end
        longest = shorten(printable(max((x for _, x in turns), key=len)), 60, placeholder=" ...")
        raise UserError("the chat template changes, loses or repeats what it is given, "
                        f"'{longest}' for one: another text or model, or mend its chat template")
