"""Where files that can be made again are kept."""

import os
from pathlib import Path

import platformdirs


def cache_directory() -> Path:
    """Return the directory of the cache, absolute; it need not exist yet.

    It is the user's cache directory of this platform, or the value of the environment variable FACTPATCH_CACHE where
    that is set and not empty. Read anew at each call, so that a program may set the variable after the import.
    """
    override = os.environ.get("FACTPATCH_CACHE")
    chosen = Path(override).expanduser() if override else Path(platformdirs.user_cache_dir("factpatch"))
    return chosen.absolute()
