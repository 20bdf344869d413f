"""A step of `bench gpu` that goes wrong, or does nothing, as its first argument says. No torch."""

import os
import signal
import sys
import tempfile
import time
from pathlib import Path


def main(argv: list[str]) -> None:
    """What a step may do."""
    what = argv[0]
    if what == "fails":
        raise ValueError("the planted failure")
    if what == "says where":
        file = Path(tempfile.mkdtemp()) / "planted.txt"
        file.write_text("Traceback: deep inside")
        raise SystemExit(f"error: KeyError: 'x'; its traceback is in {file}")
    if what == "hangs":
        print("I was here")
        time.sleep(60)
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "wrong":
        Path(argv[2]).write_text('{"ok": false, "figure": "3 of 4 rows"}')
    if what == "fast":
        Path(argv[2]).write_text('{"a": {"seconds": 2.0, "share": 0.25}}')


if __name__ == "__main__":
    main(sys.argv[1:])
