"""Where morphem keeps what it can make again: indexes of shards, and the sample data."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder for what can be made again: `MORPHEM_CACHE`, or `morphem` in the user's cache folder."""
    if own := os.environ.get("MORPHEM_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "morphem"
