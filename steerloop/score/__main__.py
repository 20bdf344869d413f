"""Our evaluation on any model directory, hub id or PEFT adapter.

python -m steerloop.score google/gemma-3-1b-it               a model as it is
python -m steerloop.score my-adapter                         an adapter against its base
python -m steerloop.score my-checkpoint --base gemma-3-1b-it one model against another
python -m steerloop.score my-adapter --like runs/<folder>    on the items and settings of a run
python -m steerloop.score my-adapter --tasks piqa,arc_easy   and on tasks of lm-evaluation-harness
"""

import dataclasses
from typing import Any

from steerloop.cli.entry import command
from steerloop.cli.options import filled, path
from steerloop.cli.parsing import Knobs, given, some
from steerloop.config import Config
from steerloop.export.student import config_of
from steerloop.runfolder.inputs import compared
from steerloop.score import READ, score

SETTINGS = ["template", "persona", "vignettes", "mundane", "split", "quant", "dtype", "device",
            "runs", "tasks", "tasks_path", "tasks_limit", "tasks_chat", "every", "think_tokens",
            "batch_rows", "bootstrap", "seed", "threads", "force"]
ABOUT = f"{__doc__}\nSettings default to those of --like, or of a hub model."


def parse(argv: list[str]) -> tuple[str, Config, str, dict[str, str]]:
    """Command line → what to score, the settings, the base, and which data of the run named are not
    what they were. The settings are those of that run, or of hub models on a dense base; flags win.
    Raises UserError."""
    parser = Knobs(some(Config, SETTINGS), prog="python -m steerloop.score", description=ABOUT)
    add = parser.add_argument
    add("model", type=filled, help="directory, .gguf file, hub id, short name, or PEFT adapter")
    add("--base", type=filled, help="what to compare with; an adapter names its own")
    add("--like", type=path, help="a run folder: its data, split, dtype, seed")
    said = given(parser, argv)
    cfg = config_of(said["like"]) if "like" in said else Config(quant="none")
    settings: dict[str, Any] = {k: x for k, x in said.items() if k in SETTINGS}
    cfg = dataclasses.replace(cfg, **settings)
    taken = [x for x in READ if x != "model" and x not in said]
    forced = compared(said["like"], cfg, taken, cfg.force) if "like" in said else {}
    return said["model"], cfg, said.get("base", ""), forced


def run(asked: tuple[str, Config, str, dict[str, str]]) -> None:
    """Score, and say where the folder is. Raises UserError."""
    score(*asked)


def main(argv: list[str] | None = None) -> None:
    """Command line entry: one clear line and a non-zero exit status on bad input."""
    command(parse, run, argv)


if __name__ == "__main__":
    main()
