"""Thought that a chat template opens in the answer's place: `<think>` and its relatives."""

import re
from collections.abc import Collection

from steerloop import UserError

NAME = r"[\w:/]*(?:think|thought|reason|reflect|analys|scratchpad|monologue)[\w:]*"
TAG = re.compile(rf"<\|?{NAME}\|?>|\[{NAME}\]|◁{NAME}▷", re.IGNORECASE)
CLOSES = re.compile(r"\W*(?:/|no|.*(?<![a-z])end(?![a-z]))", re.IGNORECASE)
BEGINS = re.compile(r"(?<![a-z])(start|begin)(?![a-z])", re.IGNORECASE)
CHANNEL = re.compile(r">\s*(?:think\w*|thought|analysis|reasoning)\s*(?:<\|message\|>)?\s*$",
                     re.IGNORECASE)  # a word after a special token, with no tag of its own


def opened(opening: str, tail: str) -> str:
    """The tag of a thought that is still open where the answer begins, or ''.

    `opening` is what the template writes to open an answer and nothing else; `tail` all that it
    writes after the user's text, which may itself speak of such tags.
    """
    tags = list(TAG.finditer(opening)) or [
        x for x in TAG.finditer(tail) if not tail[x.end():].strip()]
    if tags:
        return "" if CLOSES.match(tags[-1][0]) else tags[-1][0]
    channel = CHANNEL.search(tail)
    return channel[0].strip() if channel else ""


def closing(tag: str, added: Collection[str]) -> str:
    """What closes a thought that `tag` opened, empty, in the way of templates that can be told not
    to think. `added` has the tokenizer's added tokens: one closes what another opened.

    Raises UserError where nothing is known to.
    """
    end = BEGINS.sub(lambda x: "END" if x[0].isupper() else "end", tag)
    if end == tag:
        end = f"{tag[0]}/{tag[1:]}"
    known = TAG.fullmatch(tag) and (end in added if tag in added else "|" not in tag)
    if not known:
        raise UserError(f"the chat template opens every answer with a thought, {tag!r}, and no "
                        "token is known that closes it: take a model that can answer without, or "
                        "close the thought at the end of its chat template")
    return f"\n{end}\n\n"
