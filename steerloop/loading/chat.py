"""Text ↔ ids through a tokenizer's own chat template. Where a template can think first (Qwen3), it
is told not to, and a thought that it opens all the same (DeepSeek-R1) is closed: `think_tokens` is
the one place where thought is asked for."""

from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from steerloop import UserError
from steerloop.loading.rendering import Rendering, Turn

ANSWER = "\ufffc"  # stands for an assistant's text while the template writes what follows it


@dataclass
class Chat:
    """Renders prompts once, as ids. The template alone writes BOS.

    `stop_ids` comes from the generation config; the token that the template writes after an
    assistant's text joins it, since many a config knows only the end of the whole sequence.
    Raises UserError for a tokenizer without a chat template, with one that does not bring every
    text out once and whole (`Rendering`), doubles BOS or opens a thought that cannot be closed, or
    where nothing ends a turn.
    """

    tokenizer: PreTrainedTokenizerBase
    stop_ids: list[int]

    persona: str | None = field(default=None, kw_only=True)  # of prompts without a system text
    vocabulary: int | None = field(default=None, kw_only=True)  # rows of the embedding, once known

    def __post_init__(self) -> None:
        if not self.tokenizer.chat_template:
            raise UserError("the tokenizer has no chat template: --template plain gives it one (or "
                            "chatml, gemma, a file), or take an instruction-tuned model")
        try:
            template = self.tokenizer.get_chat_template()
        except ValueError as e:
            raise UserError("the tokenizer has several chat templates and none of them is the "
                            "default: keep one") from e
        self.rendering = Rendering(template, self.tokenizer.special_tokens_map,
                                   self.tokenizer.get_added_vocab())
        bos = self.tokenizer.bos_token_id
        if bos is not None and self.render("x", "y")[:2] == [bos, bos]:
            raise UserError("the chat template writes BOS more than once")
        after = self.rendering.words(("user", "assistant"), False).around[-1]
        added = self.tokenizer.added_tokens_decoder
        ends = [x for x in self.to_ids(after)[:1] if x in added and added[x].special]
        self.stop_ids = list(dict.fromkeys([*self.stop_ids, *ends]))
        if not self.stop_ids:
            raise UserError("neither generation config nor chat template says what ends a turn")
        self.end = (ends or self.stop_ids)[0]  # what an assistant's text ends with

    @property
    def system_role(self) -> bool:
        """Whether system texts have a turn of their own."""
        return self.rendering.system_role

    def render(self, user: str, system: str | None = None) -> list[int]:
        """Chat prompt → ids, up to where the answer begins.

        Where the template has no system role, the system text opens the user's turn. Raises
        UserError for a text that the template changes, or that the model has no token for.
        """
        system = system or self.persona
        return self.conversation([("system", system)] * bool(system) + [("user", user)])

    def conversation(self, turns: list[Turn]) -> list[int]:
        """The same of several turns, the user's last; a system text may come first."""
        first, *rest = turns
        if first[0] == "system" and not self.system_role:
            (_, user), *rest = rest
            first = ("user", f"{first[1]}\n\n{user}")
        return self.to_ids(self.rendering.text([first, *rest]))

    def follow(self, user: str) -> list[int]:
        """What stands between an assistant's text and the answer to the next user text, as ids:
        the end of its turn, the user's turn, the assistant tag. So earlier ids travel as they are.
        """
        text = self.rendering.text([("user", "x"), ("assistant", ANSWER), ("user", user)])
        return self.to_ids(text.partition(ANSWER)[2])

    def to_ids(self, text: str) -> list[int]:
        """Text → ids, no special token added. Raises UserError for one without an embedding."""
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        self.known(ids)
        return ids

    def known(self, ids: list[int]) -> None:
        """Raises UserError, naming the token, for an id beyond the model's embedding."""
        size = self.vocabulary
        if size is None or not ids or (max(ids) < size and min(ids) >= 0):
            return
        bad = next(x for x in ids if not 0 <= x < size)
        name = self.tokenizer.convert_ids_to_tokens(bad) if bad >= 0 else None
        raise UserError(f"token {bad}, {name!r}, of the chat template, a text or the end tokens "
                        f"has no place among the model's {size} embeddings: take the tokenizer "
                        "that belongs to the model, or leave that token out")

    def to_text(self, ids: list[int], special: bool = False) -> str:
        """Ids → text for people; nothing is tokenised again from it."""
        return self.tokenizer.decode(ids, skip_special_tokens=not special)
