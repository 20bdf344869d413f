"""Where what is kept for all runs of a user lies."""

import os
from pathlib import Path

COMPILED = "TORCHINDUCTOR_CACHE_DIR"  # read when something is compiled for the first time


def user_cache() -> Path:
    """$XDG_CACHE_HOME/steerloop, or ~/.cache/steerloop. Nothing is made."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "steerloop"


def keep_compiled() -> None:
    """What is compiled is kept there, and not with temporary files, which end with the machine's
    uptime; unless that is said elsewhere, or cannot be."""
    try:
        (folder := user_cache() / "compiled").mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        os.environ.setdefault(COMPILED, str(folder))
