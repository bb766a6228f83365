"""What several test files share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""Chromium, where it is on PATH."""


def shared(*parts: str) -> Path:
    """Return the path of a shared test file, or skip the test where it is absent.

    The folder is named by FACTPATCH_SHARED; without it, it is `shared` beside the repository.
    """
    default = Path(__file__).resolve().parents[2] / "shared"
    path = Path(os.environ.get("FACTPATCH_SHARED") or default).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is absent; FACTPATCH_SHARED names the folder of the shared test files")
    return path
