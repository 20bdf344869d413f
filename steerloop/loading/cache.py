"""Where what can be made or fetched again is kept, for all runs of a user."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The package's own folder in the user's cache; $XDG_CACHE_HOME moves it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "steerloop"
