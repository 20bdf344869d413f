"""Files of people → tables: persona pairs, contexts, prompts, vignettes, ordinary text. Every error
names the file, and the line or key that is wrong."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from steerloop import UserError
from steerloop.texts.foundations import FOUNDATIONS, H, foundation
from steerloop.texts.reader import (
    Row,
    at_line,
    decoded,
    fault,
    is_blank,
    json_lines,
    json_object,
    kind,
    no_repeats,
    numbered,
    text_of,
    toml,
)

PACKAGE = Path(__file__).parents[1]
FILES = ("template", "persona", "contexts", "prompts", "vignettes", "mundane", "labelled")
TEMPLATES = {x: f"data/templates/{x}.jinja" for x in ("plain", "chatml", "gemma")}
FEWEST = 3  # items behind an interval: resamples of two have no spread
PLAIN, TABLES = ("", ".txt", ".md"), (".jsonl", ".ndjson")  # ends of files of texts
KEYS = ("name", "up", "down", "positive", "negative")  # of a persona file
JUDGED = ("coherent", "incoherent")  # labels of a completion judged by hand
RATED = "human_"  # how a column of ratings begins
MOST = 1e6  # of a rating: shares, percents or counts of people


@dataclass
class Data:
    """What a run reads. `up` and `down` name the foundations that the persona pairs should move."""

    pairs: list[tuple[str, str]]
    up: str
    down: str
    contexts: list[str]
    prompts: list[str]
    vignettes: pl.DataFrame
    mundane: pl.DataFrame
    labelled: pl.DataFrame


def read_data(cfg: Any) -> Data:
    """Every data file that a config names, by its path or inside the package; {split} is filled in.

    Raises UserError naming the file and what is wrong with it, or that it has too few items for
    an interval.
    """
    named = names(cfg)
    data = Data(
        *read(named["persona"], persona),
        contexts=read(named["contexts"], texts_of(named["contexts"]))[: cfg.max_contexts],
        prompts=read(named["prompts"], texts_of(named["prompts"]))[: cfg.n_prompts],
        vignettes=read(named["vignettes"], vignettes).gather_every(cfg.every),
        mundane=read(named["mundane"], table("prompt", "text")),
        labelled=read(named["labelled"], labelled) if named["labelled"] else labelled(""),
    )
    enough(named["vignettes"], data.vignettes, f" (with --every {cfg.every})" * (cfg.every > 1))
    enough(named["mundane"], data.mundane)
    return data


def names(cfg: Any) -> dict[str, str]:
    """The data files of a config as it names them, by their field; {split} is filled in."""
    return {x: getattr(cfg, x).replace("{split}", cfg.split) for x in FILES}


def find(name: str) -> Path:
    """Where a data file is: at its own path, else inside the package."""
    return Path(name) if Path(name).exists() else PACKAGE / name


def data_files(cfg: Any) -> dict[str, Path]:
    """The data files that a config names, by their field."""
    return {field: find(name) for field, name in names(cfg).items() if name}


def read(name: str, parse: Callable[[str], Any]) -> Any:
    """`parse` the text of a file, found by its own path or inside the package.

    Raises UserError with one line when it is missing, malformed or holds nothing.
    """
    try:
        path = find(name)
        if path.exists() and not path.is_file():
            raise ValueError("it is no file (a folder, a pipe)")
        parsed = parse(decoded(path.read_bytes()))
    except OSError as e:
        raise UserError(f"cannot read {name}: {e.strerror}") from e
    except ValueError as e:
        raise UserError(f"cannot read {name}: {e}") from e
    if len(parsed) == 0:
        raise UserError(f"cannot read {name}: there is nothing in it")
    return parsed


def enough(name: str, items: pl.DataFrame, which: str = "") -> None:
    """Raises UserError where there are too few of them for an interval."""
    if len(items) < FEWEST:
        raise UserError(f"cannot read {name}: it has {len(items)} items{which}, and an interval "
                        f"needs {FEWEST} at least")


def texts_of(name: str) -> Callable[[str], list[str]]:
    """How a file of texts is read, by the end of its name: one text a line, or JSON lines with a
    column `prompt`.

    Raises UserError for a file of another kind.
    """
    end = Path(name).suffix.lower()
    if end not in PLAIN + TABLES:
        raise UserError(f"cannot read {name}: {end} is not read here; write one text a line (.txt),"
                        " or JSON lines with a column 'prompt' (.jsonl)")
    return prompts if end in TABLES else lines


def lines(text: str) -> list[str]:
    """One text a line; blank lines and comments, which start with #, do not count.

    Raises ValueError for a text that is there twice, and for JSON lines.
    """
    found = [(n, x.strip()) for n, x in numbered(text)
             if not is_blank(x) and not x.strip().startswith("#")]
    if found and is_json(found[0][1]):
        raise ValueError(f"line {found[0][0]} is a JSON object, not a prompt: end the name of JSON "
                         "lines in .jsonl")
    no_repeats(found)
    return [x for _, x in found]


def is_json(line: str) -> bool:
    """Whether a line is an object of JSON."""
    try:
        return bool(json_object(line))
    except ValueError:
        return False


def prompts(text: str) -> list[str]:
    """JSON lines → the texts of their column `prompt`. Raises ValueError."""
    return table("prompt")(text)["prompt"].to_list()


def table(*columns: str, blank: tuple[str, ...] = ()) -> Callable[[str], pl.DataFrame]:
    """JSON lines → a frame of these text columns, of which those in `blank` may be empty. What
    raises ValueError: a line without them, and one whose first two say what another's do."""

    def parse(text: str) -> pl.DataFrame:
        return frame(json_lines(text), columns, blank)

    return parse


def frame(rows: list[Row], columns: tuple[str, ...], blank: tuple[str, ...]) -> pl.DataFrame:
    """As `table`, of rows that were read."""
    found = []
    for number, row in rows:
        with at_line(number):
            found.append([text_of(row, x, x in blank) for x in columns])
    numbers = [number for number, _ in rows]
    no_repeats(zip(numbers, ("\0".join(x[:2]) for x in found), strict=True))
    return pl.DataFrame(found, dict.fromkeys(columns, pl.String), orient="row")


def labelled(text: str) -> pl.DataFrame:
    """JSON lines of completions judged by hand: prompt, text, label ("coherent" or "incoherent"),
    note (which may be empty). Raises ValueError for another label."""
    rows = json_lines(text)
    judged = frame(rows, ("prompt", "text", "label", "note"), ("note",))
    for (number, _), label in zip(rows, judged["label"], strict=True):
        if label not in JUDGED:
            raise ValueError(f"line {number}: label is {' or '.join(JUDGED)}, not {label!r}")
    return judged


def vignettes(text: str) -> pl.DataFrame:
    """JSON lines of moral vignettes, as published ones are: `text`, `foundation_coarse`, and where
    people rated them human_<foundation> → text, label, and h_<foundation> as shares of their sum.

    The label is what most people chose where that is known, else foundation_coarse; a line without
    any rating has shares of 0. Raises ValueError for a foundation that is none, or that has no
    rating on any line, for a rating that is no number from 0 to MOST, and for a text that is there
    twice.
    """
    rows = json_lines(text)
    labels, rated = [], []
    for number, row in rows:
        with at_line(number):
            labels.append(foundation(text_of(row, "foundation_coarse")))
            rated.append(ratings(row))
    asked = frame(rows, ("text",), ())
    seen = {f for row in rated for f in row}
    if seen and (missing := [f"h_{f}" for f in sorted(set(FOUNDATIONS) - seen)]):
        raise ValueError(f"human ratings lack {', '.join(missing)}")
    people = [shares(row) for row in rated]
    best = [FOUNDATIONS[x.index(max(x))] if any(x) else label
            for x, label in zip(people, labels, strict=True)]
    asked = asked.with_columns(label=pl.Series(best, dtype=pl.String))
    if not any(map(any, people)):  # nobody was asked
        return asked
    said = pl.DataFrame(people, dict.fromkeys(H, pl.Float64), orient="row")
    return pl.concat([asked, said], how="horizontal")


def ratings(row: dict[str, Any]) -> dict[str, float]:
    """Foundation → how people rated a vignette; null, or a foundation left out, is 0. Raises
    ValueError for what is no rating."""
    rated: dict[str, float] = {}
    for name, value in row.items():
        if not name.startswith(RATED):
            continue
        about = foundation(name.removeprefix(RATED))
        if about in rated:
            raise ValueError(f"{name} is there twice, spelt in two ways")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{name} is {kind(value)}, not a number")
        if value is not None and not 0 <= value <= MOST:
            raise ValueError(f"{name} is {value!s:.30}, and ratings are from 0 to {MOST:g}")
        rated[about] = float(value or 0)
    return rated


def shares(rated: dict[str, float]) -> list[float]:
    """Ratings → shares of their sum in the order of FOUNDATIONS, 0 where there is no rating."""
    total = sum(rated.values())
    return [rated.get(f, 0.0) / total if total > 0 else 0.0 for f in FOUNDATIONS]


def persona(text: str) -> tuple[list[tuple[str, str]], str, str]:
    """TOML with `positive` and `negative` lists → pairs, and the axis (up, down) they move: care
    over authority, where neither is named. Raises ValueError naming the key that is wrong."""
    tables = toml(text)
    if unknown := [x for x in tables if x not in KEYS]:
        raise ValueError(f"there is no key {unknown[0]!r} in a persona file; its keys are "
                         f"{', '.join(KEYS)}")
    poles = [pole(tables, x) for x in ("positive", "negative")]
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
    """The foundations (up, down) of a persona file. Raises ValueError."""
    named = {x: tables[x] for x in ("up", "down") if x in tables}
    for key, value in named.items():
        if wrong := fault(value):
            raise ValueError(f"{key!r} is {wrong}, and should be one of: {', '.join(FOUNDATIONS)}")
        named[key] = foundation(value)
    if len(named) == 1:
        raise ValueError(f"{next(iter(named))!r} is named alone: 'up' and 'down' are needed")
    up, down = named.get("up", "care"), named.get("down", "authority")
    if up == down:
        raise ValueError(f"'up' and 'down' are both {up}")
    return up, down
