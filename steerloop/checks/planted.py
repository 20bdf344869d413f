"""A step of `bench gpu` that goes wrong, or does nothing, as its first argument says. No torch."""

import os
import signal
import time
from pathlib import Path


def main(argv: list[str]) -> None:
    """What a step may do, by its first argument."""
    what = argv[0]
    if what == "fails":
        try:
            raise ValueError("planted")
        except ValueError:
            raise SystemExit("error: the planted failure")  # noqa: B904, as a command ends
    if what == "hangs":
        print("I was here", flush=True)
        time.sleep(60)
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "wrong":
        Path(argv[2]).write_text('{"ok": false, "figure": "3 of 4 rows"}')
    if what == "fast":
        Path(argv[2]).write_text('{"a": {"seconds": 2.0, "share": 0.25}}')
