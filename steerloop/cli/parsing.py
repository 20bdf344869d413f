"""A dataclass as a command line: presets on disk, one-line errors."""

import json
import sys
import tomllib
from argparse import Action
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from transformers import HfArgumentParser

from steerloop import UserError
from steerloop.cli.knobs import RANGE
from steerloop.runfolder.layout import CONFIG, EVENTS, located, upgraded

PRESETS = Path(__file__).parents[1] / "presets"
T = TypeVar("T")


def preset(name: str) -> dict[str, Any]:
    """The differences kept in presets/<name>.toml; none for a name without a file there."""
    known = {x.stem: x for x in PRESETS.glob("*.toml")}
    return tomllib.loads(known[name].read_text("utf-8")) if name in known else {}


class Parser(HfArgumentParser):
    """The library's parser, but a wrong option is answered by one line and exit status 2; and what
    else the metadata of a field says stays with the field."""

    def add_argument(self, *names: str, **options: Any) -> Action:
        """As argparse has it."""
        options.pop(RANGE, None)
        return super().add_argument(*names, **options)

    def error(self, message: str) -> NoReturn:
        print(f"error: {message} (--help lists every option)", file=sys.stderr)
        sys.exit(2)


def stored(run: Path) -> dict[str, Any]:
    """The config of a run folder, its inputs by where they were found; where config.json is gone,
    as the run recorded it. Raises UserError where there is none, or it is damaged."""
    try:
        known = written(run) if (run / CONFIG).exists() else noted(run)
        return located(known | {"config": upgraded(known["config"])})
    except (OSError, ValueError, LookupError, TypeError) as e:
        if noted(run):
            raise UserError(f"{run / CONFIG} is damaged: delete it, then `python -m steerloop.train"
                            f" --resume {run}` makes it anew") from e
        raise UserError(f"--resume {run}: no run folder ({str(e).splitlines()[0]})") from e


def written(run: Path) -> dict[str, Any]:
    """What config.json of a run says, whatever that is."""
    return json.loads((run / CONFIG).read_text("utf-8"))


def noted(run: Path) -> dict[str, Any]:
    """The same as it was recorded last in events.jsonl; {} where it was not. (Who goes on with it
    finds out whether the records are damaged.)"""
    try:
        lines = (run / EVENTS).read_text("utf-8", "replace").split("\n")[:-1]
        told = [x["document"] for x in map(json.loads, lines) if x["stage"] == "config"]
        config = told[-1]["config"] | {"runs": str(run.parent)}  # where it lies is not recorded
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return told[-1] | {"config": config}


def parse(options: type[T], argv: list[str], description: str) -> T:
    """Command line → options: the preset of --model, that of --tiny over it, then the flags."""
    parser = Parser(options, allow_abbrev=False, description=description)
    first, rest = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if rest:
        parser.error(f"unknown option {rest[0]}")
    named = first.model == "embedded" or not Path(first.model).is_dir()  # a folder has no preset
    changes = (preset(first.model) if named else {}) | (preset("tiny") if first.tiny else {})
    if first.resume:
        changes = stored(Path(first.resume))
    for name in ("steer", "lora"):  # a band on the command line beats blocks listed in a preset
        if any(x.partition("=")[0].replace("-", "_") == f"__{name}_band" for x in argv):
            changes.pop(f"{name}_blocks", None)
    parser.set_defaults(**changes)
    return parser.parse_args_into_dataclasses(argv)[0]
