"""Write the micro-world's data files, in the formats that hub models use too.

    trait.toml                       paired system texts, care against authority
    contexts.txt  prompts.txt        user texts for extraction, dilemmas for sampling (train slots)
    vignettes.{dev,test}.jsonl       20 vignettes per foundation        } held-out slots
    mundane.{dev,test}.jsonl         40 ordinary prompts with answers   }
    dilemmas.{dev,test}.txt          40 dilemma prompts                 }
    contrast.{dev,test}.jsonl        60 dilemmas with opposed answers   }
    reasons.toml                     two questions about a vignette, phrases per foundation

The files do not depend on the training seed, so all trained models are measured on the same items.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from steerloop.texts.data import lines
from steerloop.texts.foundations import FOUNDATIONS
from steerloop.texts.reader import read_text
from steerloop.tinyworld import grammar, personas
from steerloop.tinyworld.contrast import Row, contrast_rows, wordings
from steerloop.tinyworld.mundane import draw_mundane
from steerloop.tinyworld.splits import Split
from steerloop.tinyworld.vignettes import draw_vignette

DATA = Path(__file__).parent / "data"
CONTEXTS = 320
CONTEXT_KINDS = {"dilemma": 0.5, "opinion": 0.15, "story": 0.2, "mundane": 0.15}
PROMPTS = 60
PER_FOUNDATION = 20
MUNDANE = 40
DILEMMAS = 40
CONTRASTED = 60


def distinct(draw: Callable[[], str], count: int) -> list[str]:
    """The first `count` different texts."""
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts.setdefault(draw())
    return list(texts)


def persona_pairs() -> list[tuple[str, str]]:
    """Eight (care, authority) system texts that differ in their pole alone."""
    parts = zip(personas.STEMS, personas.TRAITS, personas.PRICES, strict=True)
    return [
        (f"{stem} {trait[0]} {price[0]}.", f"{stem} {trait[1]} {price[1]}.")
        for stem, trait, price in parts
    ]


def draw_dilemma_prompt(rng: Random, split: Split) -> str:
    return grammar.dilemma_prompt(rng, grammar.draw_dilemma(rng, split))


def draw_context(rng: Random) -> str:
    (kind,) = rng.choices(tuple(CONTEXT_KINDS), tuple(CONTEXT_KINDS.values()))
    if kind == "dilemma":
        return draw_dilemma_prompt(rng, "train")
    if kind == "opinion":
        return grammar.draw_opinion(rng, 0.5)[0]
    return grammar.draw_story(rng, 0.5)[0] if kind == "story" else draw_mundane(rng).prompt


def vignette_rows(rng: Random, split: Split) -> list[dict[str, str]]:
    rows = []
    for foundation in FOUNDATIONS:

        def draw(foundation: str = foundation) -> str:
            return draw_vignette(rng, split, foundation).text

        rows += [
            {"text": text, "foundation_coarse": foundation}
            for text in distinct(draw, PER_FOUNDATION)
        ]
    return rows


def mundane_rows(rng: Random, split: Split) -> list[dict[str, str]]:
    answers: dict[str, str] = {}
    while len(answers) < MUNDANE:
        task = draw_mundane(rng, split)
        answers.setdefault(task.prompt, task.answer)
    return [{"prompt": prompt, "text": text} for prompt, text in answers.items()]


def _lines(path: Path, note: str, texts: Iterable[str]) -> None:
    path.write_text("\n".join([f"# {note}", *texts]) + "\n", encoding="utf-8")


def _jsonl(path: Path, rows: Iterable[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _toml_list(name: str, texts: Iterable[str]) -> str:
    return f"{name} = [\n" + "".join(f"    {json.dumps(text)},\n" for text in texts) + "]\n"


def _trait_toml() -> str:
    care, authority = zip(*persona_pairs(), strict=True)
    head = 'name = "care_over_authority"\nup = "care"\ndown = "authority"\n'
    files = ("vignettes", "mundane", "contrast")
    where = "".join(f'{x} = "{x}.{{split}}.jsonl"\n' for x in files)
    lists = _toml_list("positive", care) + _toml_list("negative", authority)
    return f"{head}{lists}\n[files]\n{where}"


def _reasons_toml() -> str:
    tables = []
    for ask, phrases in wordings():
        lists = [_toml_list(json.dumps(name), texts) for name, texts in phrases.items()]
        tables.append(f"[[wording]]\nask = {json.dumps(ask)}\n[wording.reasons]\n" + "".join(lists))
    return "\n".join(tables)


def write_files(folder: Path) -> None:
    """Write every data file; each has its own generator, so none depends on another."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trait.toml").write_text(_trait_toml(), encoding="utf-8")
    (folder / "reasons.toml").write_text(_reasons_toml(), encoding="utf-8")
    rng = Random("contexts")
    contexts = distinct(lambda: draw_context(rng), CONTEXTS)
    _lines(folder / "contexts.txt", "user texts for extraction, one a line", contexts)
    rng = Random("prompts")
    prompts = distinct(lambda: draw_dilemma_prompt(rng, "train"), PROMPTS)
    _lines(folder / "prompts.txt", "dilemmas that the loop's completions answer", prompts)
    for split in ("dev", "test"):
        rng = Random(f"held-out-{split}")
        _jsonl(folder / f"vignettes.{split}.jsonl", vignette_rows(rng, split))
        _jsonl(folder / f"mundane.{split}.jsonl", mundane_rows(rng, split))
        dilemmas = distinct(lambda: draw_dilemma_prompt(rng, split), DILEMMAS)  # noqa: B023
        _lines(
            folder / f"dilemmas.{split}.txt", f"dilemmas with held-out slots ({split})", dilemmas
        )
        _jsonl(folder / f"contrast.{split}.jsonl", contrasted(split, dilemmas))


def contrasted(split: Split, dilemmas: list[str]) -> list[Row]:
    """Opposed answers to these dilemmas and, up to CONTRASTED, to others of the split."""
    rng = Random(f"contrast-{split}")
    others = distinct(lambda: draw_dilemma_prompt(rng, split), CONTRASTED + len(dilemmas))
    prompts = dict.fromkeys(dilemmas + others)
    return contrast_rows(rng, list(prompts)[:CONTRASTED])


def stale(folder: Path) -> list[str]:
    """Names of the data files that are missing in a folder, or not what `write_files` writes."""
    with TemporaryDirectory() as fresh:
        write_files(Path(fresh))
        return [
            path.name
            for path in sorted(Path(fresh).iterdir())
            if not (folder / path.name).is_file()
            or (folder / path.name).read_bytes() != path.read_bytes()
        ]


def read_dilemmas(folder: Path, split: Split) -> list[str]:
    """The held-out dilemma prompts of a split."""
    return lines(read_text(folder / f"dilemmas.{split}.txt"))
