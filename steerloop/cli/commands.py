"""`steerloop COMMAND …`: the same as `python -m steerloop.COMMAND …`."""

import runpy
import sys

from steerloop import UserError
from steerloop.cli.entry import command

COMMANDS = {
    "train": "the whole method: extract, dose, sample, filter, heal, fold, evaluate; looped",
    "chat": "talk to a student, with a dial per round",
    "serve": "base, student, every round and any dose for clients of the OpenAI protocol",
    "export": "take a student elsewhere: PEFT, a checkpoint, llama.cpp, a bundle",
    "score": "our evaluation of any model or adapter",
    "report": "pages and tables of runs, alone or compared",
    "sweep": "arms by seeds, resumable, and the tables of docs/results.md",
    "traits": "packs of texts: begun, checked on a model, answers labelled",
    "models": "which models have a short name, and whether they are here; fetch one",
    "bench": "each stage raced against a straightforward twin",
}
USAGE = "\n".join([
    "usage: steerloop COMMAND [OPTIONS]   (steerloop COMMAND --help lists them)", "",
    *(f"  {name:8} {what}" for name, what in COMMANDS.items())])


def parse(argv: list[str]) -> str | None:
    """The command that is named, if any. Raises UserError where there is none of that name."""
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        return None
    if name not in COMMANDS:
        raise UserError(f"there is no command {name}; there are {', '.join(COMMANDS)}")
    sys.argv[1:] = rest
    return name


def run(name: str | None) -> None:
    """Run a command as if it had been started by itself, or list what there is."""
    if name is None:
        print(USAGE)
        return
    runpy.run_module(f"{__package__.partition('.')[0]}.{name}", run_name="__main__",
                     alter_sys=True)


def main() -> None:
    """Run a command by its name. One line and exit status 2 where there is none of that name."""
    command(parse, run)
