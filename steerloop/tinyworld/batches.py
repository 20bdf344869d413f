"""From conversations to fixed-shape micro-batches of about 1,280 tokens.

Conversations are rendered turn by turn (prompt and answer are tokenised separately, as they are
when the model is used), sorted into length buckets, and cut into micro-batches of a few fixed
shapes. Right padding needs no mask under causal attention. Only model turns are targets.

A shard of conversations depends on (seed, shard number) alone, so training resumes at any shard.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from steerloop.tinyworld.corpus import Conversation, draw_conversation
from steerloop.tinyworld.tokenizer import END_OF_TURN

LENGTHS = (48, 64, 80, 96, 112, 128, 160, 192, 256)
MICRO_TOKENS = 1280
SHARD = 2_000  # conversations
DIGIT_WEIGHT = 4.0  # loss weight of the answer digit; other model tokens weigh 1


@dataclass(frozen=True)
class Example:
    """One tokenised conversation; `weights[i]` is the loss weight of predicting ids[i]."""

    ids: list[int]
    weights: list[float]
    digits: dict[
        int, list[float]
    ]  # position of an answer digit -> distribution over the digits 1-7


@dataclass(frozen=True)
class MicroBatch:
    """b conversations of length s, with n target positions of which m are answer digits."""

    ids: Tensor  # (b, s)
    positions: Tensor  # (n,) flat positions whose next token is a target
    targets: Tensor  # (n,)
    weights: Tensor  # (n,)
    digit_rows: Tensor  # (m,) rows of `positions` that predict an answer digit
    digit_targets: Tensor  # (m, 7)


class Encoder:
    """Tokenises conversations of the micro-world."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.digit_ids = tokenizer.convert_tokens_to_ids(list("1234567"))
        self.end_of_turn = tokenizer.convert_tokens_to_ids(END_OF_TURN)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def encode(self, conversation: Conversation) -> Example:
        ids: list[int] = []
        weights: list[float] = []
        digits: dict[int, list[float]] = {}
        for number, turn in enumerate(conversation.turns):
            system = conversation.system + "\n\n" if conversation.system and number == 0 else ""
            opening = "<bos>" if number == 0 else "\n"
            prompt = f"{opening}<start_of_turn>user\n{system}{turn.user}<end_of_turn>\n"
            prompt_ids = self._ids(prompt + "<start_of_turn>model\n")
            answer_ids = [*self._ids(turn.answer), self.end_of_turn]
            ids += prompt_ids + answer_ids
            weights += [0.0] * len(prompt_ids) + [1.0] * len(answer_ids)
            if turn.digits is not None:
                place = len(ids) - 3  # digit, "}", <end_of_turn>
                assert ids[place] in self.digit_ids, turn.answer
                digits[place], weights[place] = turn.digits, DIGIT_WEIGHT
        return Example(ids, weights, digits)


def collate(examples: list[Example], length: int, pad: int, digit_ids: list[int]) -> MicroBatch:
    positions, targets, weights, digit_rows, digit_targets = [], [], [], [], []
    for row, example in enumerate(examples):
        for place, weight in enumerate(example.weights):
            if not weight:
                continue
            if place in example.digits:
                digit_rows.append(len(positions))
                digit_targets.append(example.digits[place])
            positions.append(row * length + place - 1)
            targets.append(example.ids[place])
            weights.append(weight)
    return MicroBatch(
        ids=torch.tensor([e.ids + [pad] * (length - len(e.ids)) for e in examples]),
        positions=torch.tensor(positions),
        targets=torch.tensor(targets),
        weights=torch.tensor(weights),
        digit_rows=torch.tensor(digit_rows, dtype=torch.long),
        digit_targets=torch.tensor(digit_targets).reshape(-1, len(digit_ids)),
    )


def shard(encoder: Encoder, seed: int, number: int) -> Iterator[MicroBatch]:
    """The micro-batches of one shard in random order; incomplete buckets are dropped."""
    rng = Random(f"corpus-{seed}-{number}")
    buckets: dict[int, list[Example]] = defaultdict(list)
    full: list[tuple[int, list[Example]]] = []
    for _ in range(SHARD):
        example = encoder.encode(draw_conversation(rng))
        fitting = [length for length in LENGTHS if length >= len(example.ids)]
        if not fitting:
            continue
        bucket = buckets[fitting[0]]
        bucket.append(example)
        if len(bucket) == MICRO_TOKENS // fitting[0]:
            full.append((fitting[0], bucket.copy()))
            bucket.clear()
    rng.shuffle(full)
    pad = encoder.tokenizer.pad_token_id
    for length, examples in full:
        yield collate(examples, length, pad, encoder.digit_ids)
