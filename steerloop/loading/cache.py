"""Where what is kept for all runs of a user lies."""

import os
from pathlib import Path


def user_cache() -> Path:
    """$XDG_CACHE_HOME/steerloop, or ~/.cache/steerloop. Nothing is made."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "steerloop"
