"""Files of people → tables: persona pairs, contexts, prompts, vignettes, ordinary text. Every error
names the file and what it lacks."""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from steerloop import UserError
from steerloop.texts.foundations import FOUNDATIONS, H, foundation

PACKAGE = Path(__file__).parents[1]
FILES = ("persona", "contexts", "prompts", "vignettes", "mundane", "labelled")


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

    Raises UserError naming the file and what it lacks.
    """
    judged = table("prompt", "text", "label", "note")
    asked, mundane = (x.replace("{split}", cfg.split) for x in (cfg.vignettes, cfg.mundane))
    return Data(
        *read(cfg.persona, persona),
        contexts=read(cfg.contexts, lines)[: cfg.max_contexts],
        prompts=read(cfg.prompts, lines)[: cfg.n_prompts],
        vignettes=read(asked, vignettes).gather_every(cfg.every),
        mundane=read(mundane, table("prompt", "text")),
        labelled=read(cfg.labelled, judged) if cfg.labelled else judged(""),
    )


def read(name: str, parse: Callable[[str], Any]) -> Any:
    """`parse` the text of a file, found by its own path or inside the package.

    Raises UserError with one line when it is missing, malformed or holds nothing.
    """
    path = Path(name) if Path(name).exists() else PACKAGE / name
    try:
        parsed = parse(path.read_text())
    except (OSError, ValueError, pl.exceptions.PolarsError) as e:
        raise UserError(f"cannot read {name}: {str(e).splitlines()[0]}") from e
    if len(parsed) == 0:
        raise UserError(f"cannot read {name}: there is nothing in it")
    return parsed


def lines(text: str) -> list[str]:
    """One text a line; blank lines and those that start with # do not count."""
    return [x.strip() for x in text.splitlines() if x.strip() and not x.startswith("#")]


def table(*columns: str) -> Callable[[str], pl.DataFrame]:
    """JSON lines → a frame of these text columns."""

    def parse(text: str) -> pl.DataFrame:
        rows = pl.read_ndjson(text.encode()) if text.strip() else pl.DataFrame()
        if not len(rows):
            return pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
        if not set(columns) <= set(rows.columns) or rows.select(columns).null_count().row(0) != (
                0,) * len(columns):
            raise ValueError(f"every line needs {' and '.join(columns)}")
        return rows.select(pl.col(columns).cast(pl.String))

    return parse


def vignettes(text: str) -> pl.DataFrame:
    """JSON lines of moral vignettes, as published ones are: `text`, `foundation_coarse`, and where
    people rated them human_<foundation> → text, label, and h_<foundation> as shares of their sum.

    The label is what most people chose where that is known, else foundation_coarse; a line without
    any rating has shares of 0. Raises ValueError for a foundation that is none, or that has no
    rating.
    """
    rows = table("text", "foundation_coarse")(text)
    if not len(rows):
        return rows
    rated = pl.read_ndjson(text.encode()).select("^human_.*$")
    label = pl.col("foundation_coarse").map_elements(foundation, pl.String)
    if not rated.width:
        return rows.select("text", label=label)
    rated = rated.rename(lambda x: "h_" + foundation(x.removeprefix("human_"))).fill_null(0.0)
    if missing := {f"h_{f}" for f in FOUNDATIONS} - set(rated.columns):
        raise ValueError(f"human ratings lack {', '.join(sorted(missing))}")
    shares = rated.select(pl.col(H) / pl.max_horizontal(pl.sum_horizontal(H), 1e-9))
    best = [FOUNDATIONS[row.index(max(row))] if max(row) > 0 else coarse for row, coarse in zip(
        shares.rows(), rows.select(label).to_series(), strict=True)]
    return pl.concat([rows.select("text", label=pl.Series(best)), shares], how="horizontal")


def persona(text: str) -> tuple[list[tuple[str, str]], str, str]:
    """TOML with `positive` and `negative` lists → pairs, and the axis (up, down) they move."""
    tables = tomllib.loads(text)
    poles = [tables.get(pole, []) for pole in ("positive", "negative")]
    texts = all(isinstance(x, list) and all(isinstance(t, str) for t in x) for x in poles)
    if not texts or not poles[0] or len(poles[0]) != len(poles[1]):
        raise ValueError("two poles are needed, equally long lists 'positive' and 'negative'")
    up, down = (foundation(tables.get(*x)) for x in (("up", "care"), ("down", "authority")))
    if up == down:
        raise ValueError(f"'up' and 'down' are both {up}")
    return list(zip(*poles, strict=True)), up, down


def data_files(cfg: Any) -> dict[str, Path]:
    """The data files that a config names, by their field."""
    names = {x: getattr(cfg, x).replace("{split}", cfg.split) for x in FILES if getattr(cfg, x)}
    return {x: Path(n) if Path(n).exists() else PACKAGE / n for x, n in names.items()}
