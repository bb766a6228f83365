"""What a benchmark has measured, kept in a file that says what it is of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from factpatch.support.files import plain, write_json


def kept(file: Path, about: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Read what was measured before, or measure and keep it.

    Args:
        about: all that the numbers depend on.

    Raises:
        ValueError: the file holds the numbers of something else.
    """
    about = plain(about)
    if not file.exists():
        write_json(file, {**measure(), "about": about})
    found = dict(json.loads(file.read_text("utf-8")))
    if found["about"] != about:
        raise ValueError(f"{file} was measured with another model, facts or settings; choose another --directory.")
    return found
