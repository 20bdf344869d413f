"""Text ↔ ids through a tokenizer's own chat template. Where a template can think first (Qwen3), it
is told not to: `think_tokens` is the one place where thought is asked for."""

from dataclasses import dataclass, field

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from steerloop import UserError

ANSWER = "\ufffc"  # stands for an assistant's text while the template writes what follows it
TODAY = "26 Jul 2024"  # for templates that print the date: prompts must not change overnight


@dataclass
class Chat:
    """Renders prompts once, as ids. The template alone writes BOS.

    `stop_ids` comes from the generation config; the token that the template writes after an
    assistant's text joins it, since many a config knows only the end of the whole sequence.
    Raises UserError for a tokenizer without a chat template, with one that doubles BOS, or where
    nothing ends a turn.
    """

    tokenizer: PreTrainedTokenizerBase
    stop_ids: list[int]

    persona: str | None = field(default=None, kw_only=True)  # of prompts without a system text

    def __post_init__(self) -> None:
        if not self.tokenizer.chat_template:
            raise UserError("the tokenizer has no chat template: take an instruction-tuned model")
        user = {"role": "user", "content": "x"}
        try:
            self.system_role = "PROBE" in self._text([{"role": "system", "content": "PROBE"}, user])
        except UserError:
            self.system_role = False
        bos = self.tokenizer.bos_token_id
        if bos is not None and self.render("x", "y")[:2] == [bos, bos]:
            raise UserError("the chat template writes BOS more than once")
        after = self._text([user, {"role": "assistant", "content": "PROBE"}]).rpartition("PROBE")[2]
        added = self.tokenizer.added_tokens_decoder
        ends = [x for x in self.to_ids(after)[:1] if x in added and added[x].special]
        self.stop_ids = list(dict.fromkeys([*self.stop_ids, *ends]))
        if not self.stop_ids:
            raise UserError("neither generation config nor chat template says what ends a turn")
        self.end = (ends or self.stop_ids)[0]  # what an assistant's text ends with

    def _text(self, turns: list[dict[str, str]], ask: bool = False) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=ask, enable_thinking=False,
                date_string=TODAY,
            )  # fmt: skip
        except TemplateError as e:
            raise UserError(f"the chat template refuses such turns: {e}") from e

    def render(self, user: str, system: str | None = None) -> list[int]:
        """Chat prompt → ids, up to the assistant tag.

        Where the template has no system role, the system text opens the user's turn.
        """
        turns, system = [{"role": "user", "content": user}], system or self.persona
        if system and self.system_role:
            turns.insert(0, {"role": "system", "content": system})
        elif system:
            turns[0]["content"] = f"{system}\n\n{user}"
        return self.to_ids(self._text(turns, ask=True))

    def follow(self, user: str) -> list[int]:
        """What stands between an assistant's text and the answer to the next user text, as ids:
        the end of its turn, the user's turn, the assistant tag. So earlier ids travel as they are.
        """
        turns = [("user", "x"), ("assistant", ANSWER), ("user", user)]
        text = self._text([{"role": r, "content": x} for r, x in turns], ask=True)
        return self.to_ids(text.partition(ANSWER)[2])

    def to_ids(self, text: str) -> list[int]:
        """Text → ids, no special token added."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def to_text(self, ids: list[int], special: bool = False) -> str:
        """Ids → text for people; nothing is tokenised again from it."""
        return self.tokenizer.decode(ids, skip_special_tokens=not special)
