"""Whether every prompt of a run, with what is written after it, fits the positions of the model;
and whether the files of --vector fit it, too.

Beyond them rotary models go on in silence with positions that they never learned, others fail
after hours, and attention over one overlong prompt can take the memory of the machine.
"""

from collections.abc import Iterator
from dataclasses import replace
from textwrap import shorten

from steerloop import UserError
from steerloop.config import Config
from steerloop.evidence.diary import TOKENS
from steerloop.loading.fit import positions
from steerloop.model import Model
from steerloop.readouts.forced_choice import JSON_TOKENS, answers
from steerloop.steer import extract
from steerloop.texts.data import Data, names
from steerloop.texts.packs import SIDES
from steerloop.texts.questions import question

Need = tuple[str, str, int, int, str]  # knob of the file, text, its tokens, those after, and whose


def evaluated(model: Model, data: Data, cfg: Config) -> Iterator[Need]:
    """What measuring a state reads: vignettes in both orders, and ordinary text."""
    think = cfg.think_tokens
    ending = max(JSON_TOKENS, *map(len, answers(model.to_ids, think > 0)))
    for text in data.vignettes["text"]:
        for reverse in (False, True):
            asked = len(model.render(question(text, reverse, think > 0)))
            yield "vignettes", text, asked, think + ending, "--think_tokens and the answer"
    for prompt, text in data.mundane.select("prompt", "text").rows():
        yield "mundane", prompt, len(model.render(prompt)), len(model.to_ids(text)), "its text"
    for wording in data.reasons:
        longest = max(len(model.to_ids(x)) for found in wording.reasons.values() for x in found)
        for text in data.vignettes["text"]:
            asked = len(model.render(wording.ask.replace("{vignette}", text)))
            yield "vignettes", text, asked, longest, "a reason"
    for prompt, *sides in data.contrast.filter("held").select("prompt", *SIDES).rows():
        longest = max(len(model.to_ids(x)) for side in sides for x in side)
        yield "contrast", prompt, len(model.render(prompt)), longest, "an answer"
        for persona in (x for pair in data.pairs for x in pair):
            asked = len(model.render(prompt, persona))
            yield "contrast", prompt, asked, cfg.said_tokens, "--said_tokens, under a persona"


def sampled(model: Model, data: Data, cfg: Config) -> Iterator[Need]:
    """What a run reads and writes beside that: contexts under either pole, completions, rollouts,
    the diary, completions judged by hand, and those to which a persona is planted."""
    for pairs in data.packs:
        for i, context in enumerate(data.contexts):
            for persona in pairs[i % len(pairs)]:
                yield "contexts", context, len(model.render(context, persona)), 0, "nothing"
    planted = max(len(model.to_ids(pair[0])) for pair in data.pairs)
    for i, prompt in enumerate(data.prompts):
        asked = len(model.render(prompt))
        after = cfg.max_new_tokens + planted
        yield "prompts", prompt, asked, after, "--max_new_tokens and a planted persona"
        if i < cfg.dose_prompts:
            yield "prompts", prompt, asked, cfg.dose_tokens, "--dose_tokens"
    written = min(TOKENS, cfg.max_new_tokens)
    for prompt in data.mundane["prompt"]:
        yield "mundane", prompt, len(model.render(prompt)), written, "the diary"
    for prompt, text in data.labelled.select("prompt", "text").rows():
        after = len(model.to_ids(text)) + 1
        yield "labelled", prompt, len(model.render(prompt)), after, "its text"


def needs(model: Model, data: Data, cfg: Config, loop: bool) -> Iterator[Need]:
    """Of a measurement alone, or of a whole run."""
    yield from evaluated(model, data, cfg)
    if loop:
        yield from sampled(model, data, cfg)
    if loop and cfg.baselines:
        yield from evaluated(replace(model, persona=data.pairs[0][0]), data, cfg)


def check_lengths(model: Model, data: Data, cfg: Config, loop: bool = True) -> None:
    """Raises UserError, naming file, text and knob, for the first prompt that does not fit with
    what comes after it, in a whole run or (without `loop`) in measuring a state; so that nothing is
    computed before. Models whose config has no limit take what comes. The same for a file of
    --vector that is none for this model."""
    if loop and data.files:
        extract(model, data, cfg)
    limit = positions(model.hf)
    if limit is None:
        return
    for knob, text, asked, after, what in needs(model, data, cfg, loop):
        if asked + after > limit:
            file = names(cfg)[knob]
            raise UserError(
                f"--{knob} {file}, '{shorten(text, 40, placeholder=' ...')}': {asked} tokens of "
                f"prompt and {after} of {what} are more than the {limit} that the model takes; "
                "shorten one of them")
