"""The versions of what an edit's numbers depend on."""

from __future__ import annotations

import platform
from importlib import metadata


def library_versions(*more: str) -> dict[str, str]:
    """Versions of what an edit's numbers depend on, and of further packages."""
    names = ("factpatch", "torch", "transformers", "tokenizers", "safetensors", *more)
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}
