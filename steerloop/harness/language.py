"""The wrapped model as the harness asks it: likelihoods of endings and of whole texts, and answers.

Nothing is loaded, copied or merged: rows go through the model's own batches, states and head, under
the gates in force and whatever steers it.

Letters: n positions, d width.
"""

import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import polars as pl
import torch
from jaxtyping import Float, Int
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from steerloop import UserError
from steerloop.config import Config
from steerloop.kernels.batch import Ids, by_length
from steerloop.kernels.decode import Choose, Rows, generate, pick
from steerloop.kernels.graphs import steps
from steerloop.kernels.head import Head
from steerloop.loading.fit import positions
from steerloop.model import Model
from steerloop.ranks import dealt, gathered
from steerloop.runfolder.progress import Bar
from steerloop.sample import COLUMNS, in_flight

TOKENS = 256  # of an answer, where a task does not say
WINDOW = 2048  # tokens of a text read at once, where the model does not say what it takes
TAIL = 16  # tokens of an answer, beside as many as a stop has bytes, in which it is looked for
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
ALL = 10**9  # candidate tokens: no limit


class Asked(TemplateLM):
    """A model, as it stands, behind the interface of the harness; `cut` counts prompts that had to
    lose their start. With --tasks_chat the model's template wraps what is asked, else texts begin
    as its tokenizer begins them."""

    def __init__(self, model: Model, cfg: Config) -> None:
        super().__init__()
        self.model, self.cfg, self.cut = model, cfg, 0
        self.tokenizer, self._device = model.tokenizer, model.device
        self.limit = positions(model.hf)
        first = self.tokenizer("x").input_ids[:1]
        self.begin = first if first == [self.tokenizer.bos_token_id] else []

    @property
    def eot_token_id(self) -> int:
        """What ends an answer."""
        return self.model.end

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that nothing stands before."""
        bos = self.tokenizer.bos_token_id
        return self.model.end if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """Of the cache of requests, which is not used."""
        return type(self.tokenizer).__name__

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Text → ids. A template has written what comes first."""
        ids = self.model.to_ids(string)
        if add_special_tokens is False or self.cfg.tasks_chat or ids[:1] == self.begin:
            return ids
        return self.begin + ids

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Turns → the text of a prompt, by the template that the run uses, under the persona of the
        model where it has one. Without a prompt to answer, the last turn is gone on with."""
        turns = [(x["role"], x["content"]) for x in chat_history]
        begun = "" if add_generation_prompt else turns.pop()[1]
        told = "\n\n".join(x for role, x in turns if role == "system") or self.model.persona or ""
        turns = [x for x in turns if x[0] != "system"]
        if told and self.model.system_role:
            turns.insert(0, ("system", told))
        elif told:
            turns[0] = turns[0][0], f"{told}\n\n{turns[0][1]}"
        return self.model.rendering.text(turns) + begun

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """An ending after all that a template wrote is as it is everywhere else here: ids of its
        own. (The harness moves white space at the end of a prompt into the ending, which would take
        the template's last line break into account.) Else as the harness cuts a text."""
        around = self.model.rendering.words(("user",), True)
        if self.cfg.tasks_chat and context.endswith(around.around[-1] + around.end):
            return self.model.to_ids(context), self.model.to_ids(continuation)
        return super()._encode_pair(context, continuation)

    def under(self, text: str) -> str:
        """A prompt under the persona of the model, where no template has put it there."""
        if self.cfg.tasks_chat or not self.model.persona:
            return text
        return f"{self.model.persona}\n\n{text}"

    def asked(self, text: str, room: int) -> list[int]:
        """A prompt as ids, with `room` for so many tokens after it. Raises UserError where the
        model takes no more than those."""
        ids = self.tok_encode(self.under(text))
        return self.fitting(ids or [self.prefix_token_id], room)

    def fitting(self, ids: list[int], room: int) -> list[int]:
        """The end of a prompt that is too long, counted. Raises UserError where none of it fits."""
        if self.limit is None or len(ids) + room <= self.limit:
            return ids
        if room >= self.limit:
            raise UserError(f"--tasks: {room} tokens after a prompt are more than the model takes "
                            f"({self.limit}): leave that task out")
        self.cut += 1
        return ids[room - self.limit :]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Of each (prompt, ending), the log-probability of the ending, nats, and whether it is what
        greedy decoding writes."""
        pairs = [SimpleNamespace(args=(self.under(x.args[0]), x.args[1])) for x in requests]
        return super().loglikelihood(pairs, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        prompts = [self.fitting(prompt, len(ending)) for _, prompt, ending in requests]
        return likelihoods(self.model, prompts, [x for *_, x in requests], self.cfg.batch_rows)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Of each text the log-probability of all of it, nats, under no prompt; one that is longer
        than the model takes is read in windows, of which each predicts what those before did not.
        """
        most, parts, owners = (self.limit or WINDOW) - 1, [], []
        for i, request in enumerate(requests):
            ids = self.model.to_ids(request.args[0])
            windows = get_rolling_token_windows(ids, self.prefix_token_id, most, context_len=1)
            parts += map(make_disjoint_window, windows)
            owners += [i] * (len(parts) - len(owners))
        found = [0.0] * len(requests)
        prompts, endings = ([x[side] for x in parts] for side in (0, 1))
        read = likelihoods(self.model, prompts, endings, self.cfg.batch_rows)
        for i, (logp, _) in zip(owners, read, strict=True):
            found[i] += logp
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Answers up to the first text that ends them, by the same settings at once. What is drawn
        is drawn by the row (see sample.py)."""
        texts, groups = [""] * len(requests), dict[str, list[int]]()
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        for settings, group in groups.items():
            how = json.loads(settings)
            cfg = drawn(how, self.cfg)
            until = [how["until"]] if isinstance(how.get("until"), str) else how.get("until") or []
            prompts = [self.asked(requests[i].args[0], cfg.max_new_tokens) for i in group]
            for i, text in zip(group, answers(self.model, prompts, group, cfg, until), strict=True):
                texts[i] = text
        return texts


def drawn(how: dict[str, Any], cfg: Config) -> Config:
    """The settings of a task's answers in the place of those of the run: greedy, unless it samples;
    TOKENS long, unless it says. Raises UserError for numbers that nothing can be drawn by."""
    most = next((how[x] for x in LIMITS if how.get(x) is not None), TOKENS)
    heat = how.get("temperature", 1.0 if how.get("do_sample") else 0.0)
    heat = 0.0 if how.get("do_sample") is False else float(heat)
    return replace(cfg, max_new_tokens=int(most), temperature=heat,
                   top_k=int(how.get("top_k") or ALL), top_p=float(how.get("top_p") or 1.0))


@torch.no_grad()
def likelihoods(
    model: Model, prompts: Ids, endings: Ids, size: int
) -> list[tuple[float, bool]]:
    """Of each ending after its prompt, the log-probability, nats, and whether every token of it is
    the most probable one. `size`: rows of one batch; rows of like lengths are read together."""
    kinds = {"prompt_ids": pl.List(pl.Int64), "completion_ids": pl.List(pl.Int64)}
    table = pl.DataFrame({"prompt_ids": prompts, "completion_ids": endings}, kinds)
    table, back = model.ordered(table.with_columns(dose=0.0))
    found: list[tuple[float, bool]] = []
    with model.dense():
        for batch in Bar(model.batches(dealt(table), size), "tasks"):
            read = by_token(model.hidden(batch), batch.targets, model.head)
            for row in batch.split(read.cpu()):
                found.append((row[:, 0].double().sum().item(), bool(row[:, 1].all())))
    found = gathered(found)
    return [found[i] for i in back]


def by_token(
    h: Float[Tensor, "n d"], targets: Int[Tensor, "n"], head: Head
) -> Float[Tensor, "n two"]:
    """Log-probability of each target, nats, and 1 where it is the most probable token, else 0;
    logits are made a chunk of positions at a time."""
    found = h.new_zeros(len(h), 2, dtype=torch.float32)
    for start in range(0, len(h), head.chunk):
        at = slice(start, start + head.chunk)
        z = head(h[at])
        found[at, 0] = z.gather(-1, targets[at, None])[:, 0] - z.logsumexp(-1)
        found[at, 1] = (z.argmax(-1) == targets[at]).float()
    return found


@torch.no_grad()
def answers(
    model: Model, prompts: Ids, numbers: list[int], cfg: Config, until: list[str]
) -> list[str]:
    """What the model writes after each prompt, up to the first of the texts `until`. A row has a
    number of its own, which its draws belong to."""
    order, back = by_length([len(x) for x in prompts])
    rows = [(numbers[i], 0, 0.0, 0, "", prompts[i]) for i in order]
    mine = dealt(pl.DataFrame(rows, COLUMNS, orient="row"))
    choose = partial(pick, temperature=cfg.temperature, k=cfg.top_k, p=cfg.top_p)
    found = []
    with model.dense(), Bar(total=len(mine), desc="tasks", unit="row") as bar:
        for part in mine.iter_slices(cfg.batch_rows):
            rows = in_flight(model, part, cfg, "tasks")
            step = steps(model.trunk, model.head, rows)
            stop = Stop(model, rows, until, choose) if until else choose
            found += generate(step, rows, stop, model.stop_ids, True, bar.drew)
    texts = [model.to_text(ids) for ids in gathered(found)]
    return [before(texts[i], until) for i in back]


def before(text: str, until: list[str]) -> str:
    """A text up to the first of several others."""
    for end in until:
        text = text.partition(end)[0] if end else text
    return text


class Stop:
    """Picks tokens as `choose` does; a row whose text has one of `until` in it ends with the next
    one. (That changes no text: what comes after is cut off.)"""

    def __init__(self, model: Model, rows: Rows, until: list[str], choose: Choose) -> None:
        self.model, self.rows, self.until, self.choose = model, rows, until, choose
        self.ids: Ids = [[] for _ in rows.index]
        self.tail = TAIL + max(len(x.encode()) for x in until)
        self.over = [False] * len(rows.index)

    def __call__(self, logits: Float[Tensor, "b v"], u: Float[Tensor, "b"]) -> Int[Tensor, "b"]:
        token = self.choose(logits, u)
        for place, (row, new) in enumerate(
                zip(self.rows.index.tolist(), token.tolist(), strict=True)):
            if self.over[row]:
                token[place] = self.model.stop_ids[0]
                continue
            self.ids[row].append(new)
            self.over[row] = self.ends(self.ids[row][-self.tail :]) and self.ends(self.ids[row])
        return token

    def ends(self, ids: list[int]) -> bool:
        """Whether one of the texts is in that of these tokens."""
        text = self.model.to_text(ids)
        return before(text, self.until) != text
