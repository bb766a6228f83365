"""Words that several messages need."""

from __future__ import annotations


def counted(number: int, thing: str) -> str:
    """As `1 fact`, `2 facts`, `2 batches`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}{'es' if thing.endswith('ch') else 's'}"
