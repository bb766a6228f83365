"""The parts, and the sections that each consists of."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from tests.hostile.common import Place, Tally

PARTS: dict[str, tuple[str, ...]] = {
    "patches": ("accidents", "documents", "shifts", "headers"),
    "facts": ("records", "whole_files", "named"),
    "sessions": (
        "kills",
        "signals",
        "second_process",
        "journals",
        "records",
        "files",
        "paths",
        "full_disk",
        "read_only",
    ),
    "security": ("pages", "cards", "terminals", "modes", "templates", "code"),
    "workers": ("killed_workers", "killed_drivers"),
    "overflow": ("weights", "targets", "corpora", "models", "memory"),
}


def tried(part: str, place: Place) -> Tally:
    """Try a part, or some sections of it, as PART:SECTION+SECTION."""
    name, _, only = part.partition(":")
    module = import_module(f"tests.hostile.{name}")
    tally = Tally()
    with module.bench(place) as bench:
        for section in only.split("+") if only else PARTS[name]:
            function: Callable[..., None] = getattr(module, section)
            try:
                function(bench, tally)
            except Exception as error:  # what the other sections find is not lost
                tally.add(f"{section} ended early", "defect", f"{type(error).__name__}: {error}")
    return tally
