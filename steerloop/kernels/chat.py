"""Text ↔ ids through a tokenizer's own chat template."""

from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from steerloop import UserError


@dataclass
class Chat:
    """Renders prompts once, as ids. The template alone writes BOS.

    Raises UserError for a tokenizer without a chat template, or with one that doubles BOS.
    """

    tokenizer: PreTrainedTokenizerBase

    def __post_init__(self) -> None:
        if not self.tokenizer.chat_template:
            raise UserError("the tokenizer has no chat template: take an instruction-tuned model")
        try:
            turns = [{"role": "system", "content": "PROBE"}, {"role": "user", "content": "x"}]
            text = self.tokenizer.apply_chat_template(turns, tokenize=False)
            self.system_role = "PROBE" in text
        except TemplateError:
            self.system_role = False
        bos = self.tokenizer.bos_token_id
        if bos is not None and self.render("x", "y").count(bos) > 1:
            raise UserError("the chat template writes BOS more than once")

    def render(self, user: str, system: str | None = None) -> list[int]:
        """Chat prompt → ids, up to the assistant tag.

        Where the template has no system role, the system text opens the user's turn.
        """
        turns = [{"role": "user", "content": user}]
        if system and self.system_role:
            turns.insert(0, {"role": "system", "content": system})
        elif system:
            turns[0]["content"] = f"{system}\n\n{user}"
        try:
            text = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as e:
            raise UserError(f"the chat template refuses a user turn: {e}") from e
        return self.encode(text)

    def encode(self, text: str) -> list[int]:
        """Text → ids, no special token added."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def decode(self, ids: list[int], special: bool = False) -> str:
        """Ids → text for people; nothing is tokenised again from it."""
        return self.tokenizer.decode(ids, skip_special_tokens=not special)
