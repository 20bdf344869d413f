"""A dataclass as a command line: presets on disk, or the config of the run that is gone on with."""

import json
import tomllib
from argparse import Action, ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Callable
from copy import copy
from dataclasses import fields, make_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from transformers import HfArgumentParser

from steerloop import UserError
from steerloop.cli.knobs import JOINED, RANGE, WORD, expanded
from steerloop.cli.options import Parser
from steerloop.runfolder.layout import CONFIG, EVENTS, located, upgraded

PRESETS = Path(__file__).parents[1] / "presets"
TINY = "tiny"  # the preset of the option, not of a model of that name
T = TypeVar("T")


def preset(name: str) -> dict[str, Any]:
    """The differences kept in presets/<name>.toml, over those of the preset that they name; none
    for a name without a file there."""
    known = {x.stem: x for x in PRESETS.glob("*.toml")}  # never one beside a model's folder
    if name not in known:
        return {}
    changes = tomllib.loads(known[name].read_text(encoding="utf-8"))
    return preset(changes.get("preset", "")) | changes


def chosen(said: dict[str, Any], model: str) -> dict[str, Any]:
    """What the preset of --preset changes; without one, that of a model. Raises UserError for a
    name that there is not."""
    name = said.get("preset", "")
    if name and not preset(name):
        names = ", ".join(sorted(x.stem for x in PRESETS.glob("*.toml")))
        raise UserError(f"--preset {name}: there is none of that name, only {names}")
    return preset(name or (model if model != TINY else ""))


class Joined(Action):
    """A flag that is given again adds to what it said: `--x A --x B` is `--x A,B`."""

    def __call__(self, parser: Any, namespace: Namespace, value: Any, flag: Any = None) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, f"{before},{value}" if before else value)


class Knobs(Parser, HfArgumentParser):
    """The one parser, with an option for every field of a dataclass; what else the metadata of a
    field says stays with the field."""

    def add_argument(self, *names: str, **options: Any) -> Action:
        """As argparse has it."""
        options.pop(RANGE, None)
        if options.pop(JOINED, False):
            options["action"] = Joined
        if word := options.pop(WORD, ""):

            def number(text: str) -> float | None:
                return None if text == word else float(text)

            options["type"] = number
        return super().add_argument(*names, **options)


def some(options: type, names: list[str]) -> type:
    """A dataclass with a few fields of another."""
    kept = [(x.name, x.type, copy(x)) for x in fields(options) if x.name in names]
    return make_dataclass("Some", kept)


def given(parser: ArgumentParser, argv: list[str]) -> dict[str, Any]:
    """What the command line says, by option: none that it leaves to a default. A word alone is an
    empty list."""
    nothing = Namespace(**{x.dest: None for x in parser._actions})
    said = {k: x for k, x in vars(parser.parse_args(argv, nothing)).items() if x is not None}
    for k, x in said.items():
        if isinstance(x, list) and None in x and len(x) > 1:
            parser.error(f"--{k} takes its word alone, or numbers")
    return {k: [] if x == [None] else x for k, x in said.items()}


def stored(run: Path) -> dict[str, Any]:
    """The config of a run folder, its inputs by where they were found; where config.json is gone,
    as the run recorded it. Raises UserError where there is none, or it is damaged."""
    try:
        known = written(run) if (run / CONFIG).exists() else noted(run)
        return located(known | {"config": upgraded(known["config"])})
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as e:
        if noted(run):
            raise UserError(f"{run / CONFIG} is damaged: delete it, then `python -m steerloop.train"
                            f" --resume {run}` makes it anew") from e
        raise UserError(f"--resume {run}: no run folder ({str(e).splitlines()[0]})") from e


def written(run: Path) -> dict[str, Any]:
    """What config.json of a run says, whatever that is."""
    return json.loads((run / CONFIG).read_text(encoding="utf-8"))


def noted(run: Path) -> dict[str, Any]:
    """The same as it was recorded last in events.jsonl; {} where it was not. (Who goes on with it
    finds out whether the records are damaged.)"""
    try:
        lines = (run / EVENTS).read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        told = [x["document"] for x in map(json.loads, lines) if x["stage"] == "config"]
        config = told[-1]["config"] | {"runs": str(run.parent)}  # where it lies is not recorded
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
    return told[-1] | {"config": config}


@cache
def _parser(options: type, description: str) -> Knobs:
    return Knobs(options, description=description, formatter_class=ArgumentDefaultsHelpFormatter)


def parse(
    options: type[T], argv: list[str], description: str,
    refuse: Callable[[T, dict[str, Any]], None] = lambda parsed, said: None,
) -> T:
    """Command line → options: a preset, by default that of --model, that of --tiny over it, then
    the flags.

    `refuse` may raise UserError for options that make no sense beside what was said. Raises it for
    a run folder that cannot be gone on with.
    """
    said = given(_parser(options, description), argv)
    changes = chosen(said, said.get("model", options.model))
    changes |= preset(TINY) if said.get(TINY) else {}
    if "resume" in said:
        if not said["resume"]:
            raise UserError("--resume is empty: name the run folder, or leave it out for a new run")
        if said.get("preset"):
            raise UserError("--resume takes the settings of the run: leave --preset out")
        changes = stored(Path(expanded(said["resume"])))
    if unknown := changes.keys() - {x.name for x in fields(options)}:
        raise UserError(f"{said['resume']} has knobs that this version lacks "
                        f"({', '.join(sorted(unknown))}): use the version that made the run")
    for name in ("steer", "lora"):  # a band on the command line beats blocks listed in a preset
        if f"{name}_band" in said:
            changes.pop(f"{name}_blocks", None)
    parsed = options(**changes | said)
    refuse(parsed, said)
    return parsed
