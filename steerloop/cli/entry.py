"""How a command starts and ends: one line and a non-zero exit status for what a user did wrong."""

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from steerloop import UserError

T = TypeVar("T")


def command(
    parse: Callable[[list[str]], T], run: Callable[[T], Any], argv: list[str] | None = None
) -> None:
    """`run(parse(argv))`, of the command line by default; what a user did wrong ends in one line
    and a non-zero exit status.

    --tiny starts the same command anew with STEERLOOP_TYPECHECK=1: types are checked by an import
    hook, which has to be there before the core is.
    """
    try:
        options = parse(sys.argv[1:] if argv is None else argv)
        if getattr(options, "tiny", False) and os.environ.get("STEERLOOP_TYPECHECK") != "1":
            os.environ["STEERLOOP_TYPECHECK"] = "1"
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
        run(options)
    except torch.OutOfMemoryError as e:
        sys.exit(f"error: {str(e).splitlines()[0]}; try --checkpointing, --batch 1 --accumulate 6, "
                 "a smaller --batch_rows or --max_new_tokens, --quant nf4")
    except (UserError, OSError, FloatingPointError) as e:
        sys.exit(f"error: {e}")
    except KeyboardInterrupt as e:
        sys.exit(": ".join(["interrupted", *map(str, e.args)]))
