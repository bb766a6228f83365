"""Words that messages share: names that were meant, counted things, settings that differ."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def quoted(value: object, most: int = 200) -> str:
    """Return the repr of a value in one line, cut in its middle where it is long; a file may hold a megabyte."""
    try:
        text = repr(value)
    except RecursionError:
        return f"{type(value).__name__} nested too deeply to show"
    return cut(text, most)


def cut(text: str, most: int) -> str:
    """Return a text without its middle, where it has more than so many characters."""
    return text if len(text) <= most else f"{text[: most - 40]} … {text[-35:]}"


def suggestion(word: object, known: Iterable[str]) -> str:
    """Return " Did you mean …? Known: ….", which follows the sentence that names the unknown word."""
    names = list(known)
    near = difflib.get_close_matches(str(word), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{hint} Known: {', '.join(names) or 'none'}."


def named(table: Mapping[str, T], name: str, what: str) -> T:
    """Look something up by its name; a ValueError suggests the nearest one."""
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}.{suggestion(name, table)}")
    return table[name]


def counted(number: int, thing: str) -> str:
    """Return `1 fact`, `2 facts` or `2 batches`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}{'es' if thing.endswith('ch') else 's'}"


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """Name the settings that differ, and show the first; None if all are the same."""
    names = [name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)]
    if not names:
        return None
    first = names[0]
    listed = f"{', '.join(names)}; " if len(names) > 1 else ""
    return f"{listed}{first} is {there.get(first)!r} there and {here.get(first)!r} here"
