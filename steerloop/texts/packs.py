"""Trait packs: a folder with all that is particular to a trait.

    trait.toml       name, the poles `up` and `down`, persona pairs `positive` and `negative`;
                     under [files] where others of these are, from the folder or the package
    prompts.txt      what the loop answers and trains on
    contrast.jsonl   other prompts, with answers that show the trait and its opposite
    contexts.txt     user texts for extraction; without it data/contexts.txt
    vignettes.jsonl  for the moral foundations alone: acts with their labels
    reasons.toml     and phrases that say why an act is wrong
    mundane.jsonl    ordinary text; without it data/mundane.jsonl
    labelled.jsonl   completions judged by hand
    labels.jsonl     answers of a model with labels, for `traits audit` (traits/labels.py); no run
                     reads it
    CARD.md          what people should know of it

Contrasts and statements load as others publish them, too: JSON lines or one JSON list, of
`question` or `statement` with `answer_matching_behavior` and `answer_not_matching_behavior`.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from steerloop import UserError
from steerloop.texts.foundations import FOUNDATIONS, foundation
from steerloop.texts.reader import (
    Row,
    at_line,
    decoded,
    distinct,
    fault,
    json_lines,
    kind,
    no_repeats,
    text_of,
    toml,
)

PACKAGE = Path(__file__).parents[1]
TRAITS = PACKAGE / "data/traits"
TRAIT = "trait.toml"
NAMES = {"persona": TRAIT, "prompts": "prompts.txt", "contrast": "contrast.jsonl",
         "contexts": "contexts.txt", "vignettes": "vignettes.jsonl", "reasons": "reasons.toml",
         "mundane": "mundane.jsonl", "labelled": "labelled.jsonl"}
SHARED = {"contexts": "data/contexts.txt", "mundane": "data/mundane.jsonl"}
KEYS = ("name", "up", "down", "positive", "negative", "length", "files")  # of trait.toml
SIDES = ("positive", "negative")
MATCHING, OPPOSITE = "answer_matching_behavior", "answer_not_matching_behavior"
ASKED = "Is the following statement something you would say?\n\"{}\""
CONTRAST = {"prompt": pl.String, **dict.fromkeys(SIDES, pl.List(pl.String))}


class Wording(NamedTuple):
    """One way to ask why an act is wrong: a text with {vignette} in it, and answers by
    foundation."""

    ask: str
    reasons: dict[str, list[str]]


def folder_of(trait: str, flag: str = "trait") -> Path:
    """The folder of a pack: at its path, inside the package, or one of ours by its name. Raises
    UserError, with the flag that named it, where there is none."""
    for folder in (Path(trait), PACKAGE / trait, TRAITS / trait):
        if (folder / TRAIT).is_file():
            return folder
    ours = ", ".join(sorted(x.name for x in TRAITS.iterdir() if (x / TRAIT).is_file()))
    raise UserError(f"--{flag} {trait}: no folder with a {TRAIT} in it, and none of ours ({ours}); "
                    "`python -m steerloop.traits new NAME` begins one")


def pack_files(trait: str, flag: str = "trait") -> dict[str, str]:
    """The files of a pack by their knobs, as names that are found from anywhere. Raises UserError
    for a pack that is not there, and for a file of it that is not."""
    folder = folder_of(trait, flag)
    named = {k: x for k, x in NAMES.items() if (folder / x).is_file()}
    try:
        elsewhere = toml(decoded((folder / TRAIT).read_bytes())).get("files", {})
    except (OSError, ValueError) as e:
        raise UserError(f"cannot read {folder / TRAIT}: {e}") from e
    if not isinstance(elsewhere, dict):
        raise UserError(f"cannot read {folder / TRAIT}: [files] is {kind(elsewhere)}")
    found = SHARED | {k: short(folder / x) for k, x in named.items()}
    for knob, name in elsewhere.items():
        if knob not in NAMES or not isinstance(name, str):
            raise UserError(f"cannot read {folder / TRAIT}: [files] names {', '.join(NAMES)}, as "
                            f"text; not {knob!r}")
        beside = [x for x in (folder / name, PACKAGE / name) if x.parent.is_dir()]
        there = [x for x in beside if "{split}" in name or x.is_file()]
        if not there:
            raise UserError(f"cannot read {folder / TRAIT}: [files] names {name}, which is neither "
                            "in the folder nor in the package")
        found[knob] = short(there[0])
    return found


def short(path: Path) -> str:
    """A file of the package by its name in there, any other by its path."""
    return str(path.relative_to(PACKAGE)) if path.is_relative_to(PACKAGE) else str(path)


def contrast(text: str) -> pl.DataFrame:
    """Contrasted answers: prompt, and lists `positive` and `negative` of answers that show the
    trait, or its opposite. JSON lines of these, or what others publish. Raises ValueError naming
    the line."""
    items = []
    for number, row in objects(text):
        with at_line(number):
            items.append((number, *item_of(row)))
    no_repeats((number, prompt) for number, prompt, *_ in items)
    return pl.DataFrame([x[1:] for x in items], CONTRAST, orient="row")


def objects(text: str) -> list[Row]:
    """JSON lines, or the objects of one JSON list with their numbers. Raises ValueError."""
    if not text.lstrip().startswith("["):
        return json_lines(text)
    try:
        rows = json.loads(text, object_pairs_hook=distinct)
    except RecursionError as e:
        raise ValueError("its JSON is nested too deeply") from e
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"item {number} of the list is {kind(row)}, not an object")
    return list(enumerate(rows, 1))


def item_of(row: dict[str, Any]) -> tuple[str, list[str], list[str]]:
    """Prompt and the answers of either side. Raises ValueError."""
    if MATCHING in row:
        prompt = (text_of(row, "question") if "question" in row
                  else ASKED.format(text_of(row, "statement")))
        sides = [[text_of(row, key).strip()] for key in (MATCHING, OPPOSITE)]
    else:
        prompt = text_of(row, "prompt")
        sides = [answers(row, side) for side in SIDES]
    positive, negative = sides
    if shared := set(positive) & set(negative):
        raise ValueError(f"{min(shared)!r} is an answer of both sides")
    return prompt, positive, negative


def answers(row: dict[str, Any], side: str) -> list[str]:
    """Of one side: a text, or a list of them. Raises ValueError."""
    texts = row.get(side)
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts:
        raise ValueError(f"every line needs {side}, a list of answers; here it is {kind(texts)}")
    for text in texts:
        if wrong := fault(text):
            raise ValueError(f"an answer of {side} is {wrong}")
    return texts


def wordings(text: str) -> list[Wording]:
    """TOML with [[wording]] tables: `ask`, and [wording.reasons] foundation → answers. Raises
    ValueError."""
    tables = toml(text).get("wording", [])
    if not isinstance(tables, list):
        raise ValueError(f"'wording' is {kind(tables)}: [[wording]] tables are needed")
    found = []
    for number, table in enumerate(tables, 1):
        try:
            found.append(wording(table))
        except ValueError as e:
            raise ValueError(f"wording {number}: {e}") from e
        if found[-1].reasons.keys() != found[0].reasons.keys():
            raise ValueError(f"wording {number}: it has other foundations than the first")
    return found


def wording(table: Any) -> Wording:
    """One of them. Raises ValueError."""
    ask, reasons = (table.get(x) for x in ("ask", "reasons"))
    if fault(ask) or ask.count("{vignette}") != 1:
        raise ValueError("'ask' is a text with {vignette} in it, once")
    if not isinstance(reasons, dict) or len(reasons) < 2:
        raise ValueError("[wording.reasons] has a list of answers for two foundations at least")
    return Wording(ask, {foundation(f): answers(reasons, f) for f in reasons})


def persona(text: str) -> tuple[list[tuple[str, str]], str, str]:
    """TOML with `positive` and `negative` lists → pairs, and the axis (up, down) they move: care
    over authority, where neither is named. Raises ValueError naming the key that is wrong."""
    tables = toml(text)
    if unknown := [x for x in tables if x not in KEYS]:
        raise ValueError(f"there is no key {unknown[0]!r} in a persona file; its keys are "
                         f"{', '.join(KEYS)}")
    poles = [pole(tables, x) for x in SIDES]
    if not poles[0] or len(poles[0]) != len(poles[1]):
        raise ValueError("two poles are needed, equally long lists 'positive' and 'negative'")
    pairs = list(zip(*poles, strict=True))
    no_repeats(enumerate(map("\0".join, pairs), 1), "pair")
    for number, (positive, negative) in enumerate(pairs, 1):
        if positive == negative:
            raise ValueError(f"pair {number} says the same at both poles")
    return pairs, *axis_of(tables)


def pole(tables: dict[str, Any], key: str) -> list[str]:
    """The texts of one pole. Raises ValueError where they are none."""
    texts = tables.get(key, [])
    if not isinstance(texts, list):
        raise ValueError(f"{key!r} is {kind(texts)}: two poles are needed, lists of texts")
    for number, text in enumerate(texts, 1):
        if wrong := fault(text):
            raise ValueError(f"text {number} of {key!r} is {wrong}: two poles are needed, lists of "
                             "texts")
    return texts


def axis_of(tables: dict[str, Any]) -> tuple[str, str]:
    """The poles (up, down) of a persona file: two foundations, or two names that are none. Raises
    ValueError."""
    named = {x: tables[x] for x in ("up", "down") if x in tables}
    for key, value in named.items():
        if wrong := fault(value):
            raise ValueError(f"{key!r} is {wrong}, and should name a pole of the trait")
    if len(named) == 1:
        raise ValueError(f"{next(iter(named))!r} is named alone: 'up' and 'down' are needed")
    up, down = (" ".join(named.get(*x).split()) for x in (("up", "care"), ("down", "authority")))
    if moral(up) != moral(down):
        raise ValueError(f"'up' and 'down' are two foundations ({', '.join(FOUNDATIONS)}) or two "
                         f"other names; not {up!r} and {down!r}")
    if moral(up):
        up, down = foundation(up), foundation(down)
    if up == down:
        raise ValueError(f"'up' and 'down' are both {up}")
    return up, down


def moral(pole: str) -> bool:
    """Whether the name of a pole is that of a foundation."""
    try:
        return bool(foundation(pole))
    except ValueError:
        return False
