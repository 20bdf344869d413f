"""Two rounds along the path that real runs take, at the scale of `--tiny` and with types checked: a
random Gemma-3 in NF4, the compute dtype that is fast here, the library's attention, thought before
the forced choice, prompts past the attention window.

    python -m steerloop.checks.fast_dev_run [FLAG ...]     flags go to `steerloop.train`

Its text is noise, so the filter is off; what is shown is that everything runs.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from steerloop.checks.small import WINDOW, save_small

FLAGS = ("--tiny", "--no_filter", "--quant", "nf4", "--attn", "auto", "--dtype", "auto",
         "--think_tokens", str(2 * WINDOW))  # fmt: skip


def command(model: Path, flags: list[str]) -> list[str]:
    """The command line of the run; `flags` win."""
    return [sys.executable, "-m", "steerloop.train", "--model", str(model), *FLAGS, *flags]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        made = save_small(Path(folder) / "gemma-3-random", depth=8)
        sys.exit(subprocess.run(command(made, sys.argv[1:])).returncode)
