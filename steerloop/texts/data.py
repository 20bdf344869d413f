"""Files of people → tables: contexts, prompts, vignettes, ordinary text. Every error names the
file, and the line or key that is wrong. (What belongs to a trait: packs.py.)"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from steerloop import UserError
from steerloop.texts.foundations import FOUNDATIONS, H, foundation
from steerloop.texts.packs import PACKAGE, Wording, contrast, pack_files, persona, wordings
from steerloop.texts.parts import Part, joined, parts
from steerloop.texts.reader import (
    Row,
    at_line,
    decoded,
    is_blank,
    json_lines,
    json_object,
    kind,
    no_repeats,
    numbered,
    text_of,
)

FILES = ("template", "persona", "guide", "contexts", "prompts", "contrast", "vignettes", "reasons",
         "mundane", "labelled", "vector")
SEVERAL = ("guide", "vector")  # of them those that may name several files, each with a weight
TEMPLATES = {x: f"data/templates/{x}.jinja" for x in ("plain", "chatml", "gemma")}
NEEDED = ("persona", "contexts", "prompts", "mundane")
NO_PACK = "none"  # but the files that are given one by one
UNSTEERED = ("base", "prompt")  # teachers that no vector steers
TEACHERS = ("vector", "null", "pack", *UNSTEERED)
FEWEST = 3  # items behind an interval: resamples of two have no spread
PLAIN, TABLES = ("", ".txt", ".md"), (".jsonl", ".ndjson")  # ends of files of texts
JUDGED = ("coherent", "incoherent")  # labels of a completion judged by hand
RATED = "human_"  # how a column of ratings begins
MOST = 1e6  # of a rating: shares, percents or counts of people
LARGEST = 2**30  # bytes of a file with a vector

Pairs = list[tuple[str, str]]  # of persona texts: positive, negative


class Given(NamedTuple):
    """A file with a vector, what it counts in the sum, and the sha256 of its bytes."""

    path: Path
    weight: float
    sha256: str


@dataclass
class Data:
    """What a run reads. `up` and `down` name the poles of the trait: what the persona pairs should
    raise and lower. What a trait does not have is empty."""

    pairs: Pairs
    guide: list[tuple[float, Pairs]]  # weights and pairs of what steers, where it is not `pairs`
    up: str
    down: str
    contexts: list[str]
    prompts: list[str]
    contrast: pl.DataFrame
    vignettes: pl.DataFrame
    reasons: list[Wording]
    mundane: pl.DataFrame
    labelled: pl.DataFrame
    files: list[Given] = field(default_factory=list)  # whose vector steers, extracted from nothing

    @property
    def mix(self) -> list[tuple[float, Pairs]]:
        """The packs of pairs whose vectors, with their weights, add up to the one that steers."""
        return self.guide or [(1.0, self.pairs)]

    @property
    def packs(self) -> list[Pairs]:
        """All packs of persona pairs that are read, the trait's own first."""
        return [self.pairs, *(pairs for _, pairs in self.guide if pairs != self.pairs)]

    @property
    def personas(self) -> list[str]:
        """All their texts."""
        return [text for pairs in self.packs for pair in pairs for text in pair]


def read_data(cfg: Any) -> Data:
    """Every data file that a config names, by its path or inside the package; {split} is filled in.

    Raises UserError naming the file and what is wrong with it, or that it has too few items for
    an interval.
    """
    named = names(cfg)
    prompts = read(named["prompts"], texts_of(named["prompts"]))
    opposed = read(named["contrast"], contrast) if named["contrast"] else contrast("")
    pairs, up, down = read(named["persona"], persona)
    data = Data(
        pairs, guides(cfg, pairs, named["guide"]), up, down,
        contexts=read(named["contexts"], texts_of(named["contexts"]))[: cfg.max_contexts],
        prompts=prompts[: cfg.n_prompts],
        contrast=opposed.with_columns(held=~pl.col("prompt").is_in(prompts)),
        vignettes=vignettes("") if not named["vignettes"] else read(
            named["vignettes"], vignettes).gather_every(cfg.every),
        reasons=read(named["reasons"], wordings) if named["reasons"] else [],
        mundane=read(named["mundane"], table("prompt", "text")),
        labelled=read(named["labelled"], labelled) if named["labelled"] else labelled(""),
        files=[given_file(*x) for x in parts(named["vector"], "vector")],
    )
    enough(named["vignettes"], data.vignettes, f" (with --every {cfg.every})" * (cfg.every > 1))
    enough(named["contrast"], data.contrast)
    enough(named["mundane"], data.mundane)
    return data


def names(cfg: Any) -> dict[str, str]:
    """The data files of a config by their field: as it names them, else as its trait pack does (of
    several packs the first); {split} is filled in. `guide` and `vector` may be several, as `parts`
    reads them; of several packs `guide` are the persona files of the others. Raises UserError for a
    pack that is not there, and for what no run can do without."""
    (trait, _), *others = parts(cfg.trait, "trait")
    own = pack_files(trait) if trait != NO_PACK else {}
    own["guide"] = joined(Part(pack_files(x)["persona"], weight) for x, weight in others)
    named = {x: getattr(cfg, x) or own.get(x, "") for x in FILES}
    if missing := [x for x in NEEDED if not named[x]]:
        raise UserError(f"--trait {cfg.trait} names no {missing[0]}: add it to the folder, or give "
                        f"--{missing[0]}")
    return {field: name.replace("{split}", cfg.split) for field, name in named.items()}


def find(name: str) -> Path:
    """Where a data file is: at its own path, else inside the package."""
    return Path(name) if Path(name).exists() else PACKAGE / name


def sources(cfg: Any) -> dict[str, list[tuple[Path, float]]]:
    """The data files that a config names, by their field, each with its weight, which is 1 where
    only one is named."""
    several = {knob: parts(name, knob) if knob in SEVERAL else [Part(name, 1.0)]
               for knob, name in names(cfg).items() if name}
    return {knob: [(find(x.name), x.weight) for x in many] for knob, many in several.items()}


def keys_of(knob: str, count: int) -> list[str]:
    """How the files of a knob are told apart: by its name alone, or knob-1, knob-2."""
    return [knob] if count == 1 else [f"{knob}-{i}" for i in range(1, count + 1)]


def data_files(cfg: Any) -> dict[str, Path]:
    """The data files that a config names, by their field; of several by `keys_of`."""
    return {key: path for knob, many in sources(cfg).items()
            for key, (path, _) in zip(keys_of(knob, len(many)), many, strict=True)}


def located_at(cfg: Any, files: dict[str, Path]) -> dict[str, str]:
    """The fields of a config that name these files, keyed as `data_files` has them, in the place of
    its own."""
    known = {}
    for knob, many in sources(cfg).items():
        found = [Part(str(files[key]), weight)
                 for key, (_, weight) in zip(keys_of(knob, len(many)), many, strict=True)]
        known[knob] = joined(found) if knob in SEVERAL else found[0].name
    return known


def guides(cfg: Any, pairs: Pairs, named: str) -> list[tuple[float, Pairs]]:
    """What steers in the place of the pairs of a trait: another pack's, where that is the teacher;
    with several packs those of all of them, with their weights. Raises UserError."""
    others = [(weight, read(name, persona)[0]) for name, weight in parts(named, "guide")]
    own = parts(cfg.trait, "trait")
    if cfg.teacher == "pack" or (len(own) == 1 and own[0].weight == 1):
        return others
    return [(own[0].weight, pairs), *others]


def given_file(name: str, weight: float) -> Given:
    """A file of --vector as it is now. Raises UserError where it cannot be read, or is too large to
    be one."""
    path = find(name)
    try:
        if path.is_dir():
            raise ValueError("it is a folder: name the file in it")
        if (size := path.stat().st_size) > LARGEST or size == 0:
            raise ValueError("there is nothing in it" if size == 0 else
                             f"it has {size / 2**30:.1f} GB, which no vector has")
        return Given(path.absolute(), weight, hashlib.sha256(path.read_bytes()).hexdigest())
    except OSError as e:
        raise UserError(f"cannot read --vector {name}: {e.strerror}") from e
    except ValueError as e:
        raise UserError(f"cannot read --vector {name}: {e}") from e


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
    """Raises UserError where there are too few of them for an interval, of a file that is named."""
    if name and len(items) < FEWEST:
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
    return prompts_of if end in TABLES else lines


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


def prompts_of(text: str) -> list[str]:
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
