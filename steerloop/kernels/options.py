"""A dataclass as a command line: fields with help, ranges, presets on disk, one-line errors."""

import json
import math
import os
import sys
import tomllib
from collections.abc import Callable
from dataclasses import field, fields
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NoReturn, TypeVar

import torch
from torch import nn
from transformers import HfArgumentParser

from steerloop import UserError

PRESETS = Path(__file__).parents[1] / "presets"
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EVALS = {"own": [], "moralmaps": ["steerloop.bridge:moralmaps"]}  # --eval → probes
T = TypeVar("T")


class Help(str):
    """Help text that carries a range: the library hands all other metadata on to argparse."""

    range: tuple[int | None, float | int, str]


def knob(
    default: Any, help: str, low: int | None = None, high: float | int = math.inf, word: str = ""
) -> Any:
    """A dataclass field with help text (the library expands %, so it is doubled) and a range.

    Numbers run from `low` (None: all above 0) to `high`. With a `word`, the field is text that
    holds a number or that word.
    """
    start = {"default_factory": default.copy} if isinstance(default, list) else {"default": default}
    text = Help(help.replace("%", "%%"))
    text.range = low, high, word
    return field(**start, metadata={"help": text})


def check_ranges(options: Any) -> None:
    """Every number is finite and in the range of its knob. Raises UserError naming the field."""
    for knob in fields(options):
        (low, high, word), value = knob.metadata["help"].range, getattr(options, knob.name)
        for x in value if isinstance(value, list) else [value]:
            if word and x != word:
                try:
                    x = float(x)
                except ValueError as e:
                    raise UserError(f"--{knob.name} takes a number or {word}, not {x}") from e
            if isinstance(x, str | bool):
                continue
            if not (math.isfinite(x) and x <= high and (x > 0 if low is None else x >= low)):
                least = "above 0" if low is None else low
                raise UserError(
                    f"--{knob.name} takes finite numbers from {least} to {high}, not {x}")


def preset(name: str) -> dict[str, Any]:
    """The differences kept in presets/<name>.toml; none for a name without a file there."""
    path = PRESETS / f"{name}.toml"
    return tomllib.loads(path.read_text()) if path.is_file() else {}


def band(blocks: list[int], share: list[float], depth: int, name: str) -> list[int]:
    """The blocks listed, else those whose index / depth lies in share = [low, high].

    Raises UserError when that is none, or one that the model does not have.
    """
    chosen = blocks or [i for i in range(depth) if share[0] <= i / depth <= share[-1]]
    if not chosen or not set(chosen) <= set(range(depth)):
        raise UserError(f"--{name}_blocks {blocks}, --{name}_band {share}: selects no block, or one"
                        f" that does not exist; this model has blocks 0 to {depth - 1}")
    return sorted(set(chosen))


def projections(
    hf: nn.Module, layers: nn.ModuleList, chosen: list[int], targets: list[str]
) -> list[str]:
    """Paths of the linear layers in the chosen blocks whose names end in one of `targets`.

    Raises UserError for a target that is in none of them.
    """
    linear = {m for i in chosen for m in layers[i].modules() if isinstance(m, nn.Linear)}
    names = [path for path, m in hf.named_modules()
             if m in linear and path.rpartition(".")[2] in targets]
    if absent := sorted(set(targets) - {path.rpartition(".")[2] for path in names}):
        raise UserError(f"--targets {' '.join(absent)}: this model has no such linear layer")
    return names


class Parser(HfArgumentParser):
    """The library's parser, but a wrong option is answered by one line and exit status 2."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message} (--help lists every option)", file=sys.stderr)
        sys.exit(2)


def stored(run: Path) -> dict[str, Any]:
    """The config of a run folder. Raises UserError where there is none."""
    try:
        return json.loads((run / "config.json").read_text())["config"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"--resume {run}: no run folder ({str(e).splitlines()[0]})") from e


def parse(options: type[T], argv: list[str], description: str) -> T:
    """Command line → options: the preset of --model, that of --tiny over it, then the flags."""
    parser = Parser(options, allow_abbrev=False, description=description)
    first, rest = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if rest:
        parser.error(f"unknown option {rest[0]}")
    changes = preset(first.model) | (preset("tiny") if first.tiny else {})
    if first.resume:
        changes = stored(Path(first.resume))
    for name in ("steer", "lora"):  # a band on the command line beats blocks listed in a preset
        if any(x.partition("=")[0].replace("-", "_") == f"__{name}_band" for x in argv):
            changes.pop(f"{name}_blocks", None)
    parser.set_defaults(**changes)
    return parser.parse_args_into_dataclasses(argv)[0]


def resolve(name: str) -> Callable[..., Any]:
    """'module:function' → the function. Raises UserError when there is none."""
    try:
        return resolve_name(name)
    except (ImportError, AttributeError, ValueError) as e:
        raise UserError(f"cannot find {name} (--probes takes module:function): {e}") from e


def command(parse: Callable[[list[str]], T], run: Callable[[T], Any], argv: list[str]) -> None:
    """`run(parse(argv))`; what a user did wrong ends in one line and a non-zero exit status.

    --tiny starts the interpreter anew with STEERLOOP_TYPECHECK=1: types are checked by an import
    hook, which has to be there before the core is.
    """
    try:
        options = parse(argv)
        if options.tiny and os.environ.get("STEERLOOP_TYPECHECK") != "1":
            os.environ["STEERLOOP_TYPECHECK"] = "1"
            os.execv(sys.executable, [sys.executable, "-m", "steerloop.train", *argv])
        run(options)
    except torch.OutOfMemoryError as e:
        sys.exit(f"error: {str(e).splitlines()[0]}; try --checkpointing, --batch 1 --accumulate 6, "
                 "a smaller --batch_rows or --max_new_tokens, --quant nf4")
    except (UserError, OSError, FloatingPointError) as e:
        sys.exit(f"error: {e}")
    except KeyboardInterrupt as e:
        sys.exit(": ".join(["interrupted", *map(str, e.args)]))
